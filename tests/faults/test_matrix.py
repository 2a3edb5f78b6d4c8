"""Every failure of every command of every operation that writes.

The driver reports the commands of each operation, so a new command is covered at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
import pytest_asyncio

from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from tests.faults.calls import Answer, Call, make_calls, outcome_of
from tests.faults.checks import (
    check_answers,
    check_no_transaction_open,
    check_stored_rows,
    effects_of,
    kind_of,
)
from tests.faults.cluster import Cluster
from tests.faults.commands import Command
from tests.faults.faults import FAULTS, Fault, Primary
from tests.faults.operations import OPERATIONS, Operation, prices
from tests.faults.settings import COUNTS, sample
from tests.faults.targets import (
    ORDERS,
    InTransaction,
    Target,
    in_a_stubborn_transaction,
    in_a_transaction,
    spread_over,
    take_turns,
    turn_held,
)
from tests.integration.promises import Client, Database

TARGETS = 8
# An election may interfere: the tests share their machine with others.
TRIES = 3


@pytest_asyncio.fixture(scope="module")
async def targets(replica_set: LocalReplicaSet) -> AsyncIterator[list[Target]]:
    """Eight clients: the server has one fault at a time, and most of a case runs without it."""
    targets = [Target(replica_set.uri, number) for number in range(TARGETS)]
    yield targets
    await asyncio.gather(*(target.client.close() for target in targets))


@dataclass(frozen=True)
class Case:
    """One failure of one command."""

    command: Command
    fault: Fault

    def __str__(self) -> str:
        return f"{self.command}: {self.fault.name}"


class Matrix:
    """All cases of one operation, in one database."""

    def __init__(
        self, operation: Operation, database: Database, primary: Primary, books: CreditLedger
    ) -> None:
        self.operation = operation
        self.database = database
        self.primary = primary
        self.books = books
        self.in_session = False
        self.application: InTransaction = in_a_transaction
        self.one_fault = asyncio.Lock()
        self.prepared: list[tuple[str, list[Call]]] = []
        self.violations: list[str] = []

    async def prepare(self, count: int) -> None:
        """Create what so many cases need, all at once."""
        users = [f"user-{uuid4().hex}" for _ in range(count)]
        calls = await asyncio.gather(
            *(self.operation.prepare(self.books, self.database, user_id) for user_id in users)
        )
        self.prepared += zip(users, calls, strict=True)

    async def record_commands(self, target: Target) -> list[Command]:
        """Record what the operation sends when nothing fails, and check its effects too."""
        async with self._prepared(target) as (ledger, calls):
            target.commands.start()
            answers = await self._make_calls(target, ledger, calls)
            commands = target.sent(in_session=self.in_session)
            await self._check(ledger, answers)
        assert {kind_of(each.outcome) for each in answers} <= {"done", "refused"}, answers
        return commands

    async def try_case(self, target: Target, case: Case) -> None:
        """Try a case, and keep any violation with the case's name."""
        try:
            for _ in range(TRIES):
                if await self._try(target, case):
                    break
            else:
                raise AssertionError("the fault was not met")  # noqa: TRY301
        except Exception as error:
            self.violations.append(f"{case}\n    {type(error).__name__}: {error}")
        else:
            COUNTS["cases: operation by command by failure"] += 1

    async def _try(self, target: Target, case: Case) -> bool:
        async with self._prepared(target) as (ledger, calls):
            async with self.one_fault:
                target.commands.start()
                await self.primary.fail(
                    case.command, target.app_name, self.database.name, case.fault.data
                )
                calling = asyncio.create_task(self._make_calls(target, ledger, calls))
                meeting = asyncio.create_task(
                    target.commands.until(lambda: case.command in target.commands.failures)
                )
                await asyncio.wait({calling, meeting}, return_when=asyncio.FIRST_COMPLETED)
                await self.primary.heal()
            has_met = meeting.done()
            meeting.cancel()
            answers = await calling
            if has_met:
                self._check_that_the_ledger_retried(answers, case)
            await self._check(ledger, answers)
        return has_met

    @contextlib.asynccontextmanager
    async def _prepared(self, target: Target) -> AsyncIterator[tuple[CreditLedger, list[Call]]]:
        if not self.prepared:
            await self.prepare(1)
        user_id, calls = self.prepared.pop()
        async with CreditLedger(target.client[self.database.name], prices()) as ledger:
            if self.operation.in_turns:
                await take_turns(ledger, target.commands, self.database, user_id)
            yield ledger, calls

    async def _make_calls(
        self, target: Target, ledger: CreditLedger, calls: list[Call]
    ) -> list[Answer]:
        if self.in_session:
            [call] = calls
            database = target.client[self.database.name]
            return [Answer(call, await outcome_of(self.application(call, ledger, database)))]
        async with contextlib.AsyncExitStack() as stack:
            if self.operation.turn_is_taken:
                await stack.enter_async_context(turn_held(target.commands, self.database))
            return await make_calls(calls, ledger)

    def _check_that_the_ledger_retried(self, answers: list[Answer], case: Case) -> None:
        """The ledger retries a failure that passes, and any failure of its own commit."""
        if self.application is in_a_stubborn_transaction:
            return
        kinds = {kind_of(each.outcome) for each in answers}
        is_ending = case.command.name in ("commitTransaction", "abortTransaction")
        # The commit of an application's transaction belongs to the application, and the ledger
        # writes the row of a refusal outside it.
        is_outside = self.in_session and case.command.collection == "audit_logs"
        if self.in_session and (is_ending or is_outside):
            return
        if not self.in_session and _reads_the_owner(answers[0].call, case.command):
            assert kinds <= {"done", "refused", "failed"}, [each.outcome for each in answers]
            return
        if self.operation.is_repeated:
            # Nothing will be written, so a commit that fails for good is reported as a failure.
            is_strict = case.fault.passes and not case.fault.is_applied
        else:
            is_strict = case.fault.passes or is_ending
        if is_strict:
            assert kinds <= {"done", "refused"}, [each.outcome for each in answers]
        assert "unknown" not in kinds, [each.outcome for each in answers]

    async def _check(self, ledger: CreditLedger, answers: list[Answer]) -> None:
        if self.in_session:
            await self._check_order(answers[0])
        await check_answers(
            answers, ledger=ledger, database=self.database, audits_may_stay=self.in_session
        )

    async def _check_order(self, answer: Answer) -> None:
        """Check that an order exists if and only if its charge does."""
        mark = answer.call.mark
        kind = kind_of(answer.outcome)
        is_there = await self.database[ORDERS].count_documents({"_id": mark})
        if kind == "unknown":
            has_effect = len(await effects_of(answer.call, self.database))
            # What the first call with this key did stays done.
            assert is_there == has_effect or answer.call.is_repeated, answer
        else:
            assert is_there == (kind == "done"), answer


def _reads_the_owner(call: Call, command: Command) -> bool:
    """Whether a call on a hold or a grant learns by the command whose it is: a read like others."""
    first_finds = {Command("find", name, 0) for name in ("holds", "transactions")}
    return call.subject is not None and command in first_finds


async def try_all(matrix: Matrix, targets: list[Target], observers: list[Client]) -> None:
    """Record the commands, try every failure of each, and check what the cases left behind."""
    commands = await matrix.record_commands(targets[0])
    cases = [
        Case(command, fault) for command in commands for fault in FAULTS if fault.fits(command)
    ]
    assert len(cases) >= len(FAULTS)
    name = f"cases {matrix.operation.name} {matrix.in_session}"
    cases = sample(cases, name, lambda case: (case.command, case.fault.name))
    await matrix.prepare(len(cases))
    await spread_over(targets, cases, matrix.try_case)
    assert not matrix.violations, "\n".join(
        [f"{len(matrix.violations)} of {len(cases)} cases:", *matrix.violations]
    )
    await check_stored_rows(matrix.database)
    await check_no_transaction_open(observers)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_each_failure_of_each_command(
    operation: Operation, targets: list[Target], cluster: Cluster
) -> None:
    """Each call has one effect or none, its caller was told the truth, and its key settles it."""
    async with CreditLedger(cluster.database, prices()) as books:
        matrix = Matrix(operation, cluster.database, cluster.primary, books)
        # A database has only one turn.
        await try_all(matrix, targets[:1] if operation.in_turns else targets, cluster.observers)


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.in_sessions],
    ids=lambda operation: operation.name,
)
async def test_each_failure_of_each_command_in_an_applications_transaction(
    operation: Operation, targets: list[Target], cluster: Cluster
) -> None:
    """The same holds inside an application's transaction, and for what the application wrote."""
    await cluster.database.create_collection(ORDERS)
    async with CreditLedger(cluster.database, prices()) as books:
        matrix = Matrix(operation, cluster.database, cluster.primary, books)
        matrix.in_session = True
        await try_all(matrix, targets, cluster.observers)


@pytest.mark.parametrize("name", ["create_user", "charge", "refund of a charge"])
async def test_no_failure_lets_a_stubborn_application_commit_a_half(
    name: str, targets: list[Target], cluster: Cluster
) -> None:
    """An application that catches every failure and commits is refused, and nothing was written."""
    [operation] = [each for each in OPERATIONS if each.name == name]
    await cluster.database.create_collection(ORDERS)
    async with CreditLedger(cluster.database, prices()) as books:
        matrix = Matrix(operation, cluster.database, cluster.primary, books)
        matrix.in_session, matrix.application = True, in_a_stubborn_transaction
        await try_all(matrix, targets, cluster.observers)

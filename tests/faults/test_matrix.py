"""Every operation by every command that it sends by every failure of that command.

The commands are those that the driver reports: a command that is new is covered by itself.
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
from tests.faults.asks import Ask, Told, outcome_of, put_all
from tests.faults.commands import Command
from tests.faults.everything import all_told_hold, nothing_is_open, promises_hold, was_told_of
from tests.faults.faults import FAULTS, Fault, Primary
from tests.faults.grounds import Grounds
from tests.faults.operations import OPERATIONS, Operation, prices
from tests.faults.sizes import REACHED, some
from tests.faults.stages import (
    ORDERS,
    InTransaction,
    Stage,
    each_on_a_stage,
    in_a_stubborn_transaction,
    in_a_transaction,
    take_turns,
    turn_held,
)
from tests.integration.promises import Client, Database

STAGES = 8
# An election that nobody asked for may come between: these machines are shared.
TRIES = 3


@pytest_asyncio.fixture(scope="module")
async def stages(replica_set: LocalReplicaSet) -> AsyncIterator[list[Stage]]:
    """Eight clients; the server has one fault at a time, and most of a case is without."""
    stages = [Stage(replica_set.uri, number) for number in range(STAGES)]
    yield stages
    await asyncio.gather(*(stage.client.close() for stage in stages))


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
        self.prepared: list[tuple[str, list[Ask]]] = []
        self.violations: list[str] = []

    async def prepare(self, count: int) -> None:
        """What so many cases need before, at once."""
        users = [f"user-{uuid4().hex}" for _ in range(count)]
        asks = await asyncio.gather(
            *(self.operation.prepare(self.books, self.database, user_id) for user_id in users)
        )
        self.prepared += zip(users, asks, strict=True)

    async def record(self, stage: Stage) -> list[Command]:
        """What the operation sends when nothing fails, which must hold as well."""
        async with self._prepared(stage) as (ledger, asks):
            stage.commands.start()
            told = await self._ask(stage, ledger, asks)
            commands = stage.sent(in_session=self.in_session)
            await self._check(ledger, told)
        assert {was_told_of(each.outcome) for each in told} <= {"done", "refused"}, told
        return commands

    async def try_case(self, stage: Stage, case: Case) -> None:
        """Keep what is violated, and by which case."""
        try:
            for _ in range(TRIES):
                if await self._try(stage, case):
                    break
            else:
                raise AssertionError("the fault was not met")  # noqa: TRY301
        except Exception as error:
            self.violations.append(f"{case}\n    {type(error).__name__}: {error}")
        else:
            REACHED["cases: operation by command by failure"] += 1

    async def _try(self, stage: Stage, case: Case) -> bool:
        async with self._prepared(stage) as (ledger, asks):
            async with self.one_fault:
                stage.commands.start()
                await self.primary.fail(
                    case.command, stage.app_name, self.database.name, case.fault.data
                )
                asking = asyncio.create_task(self._ask(stage, ledger, asks))
                meeting = asyncio.create_task(
                    stage.commands.until(lambda: case.command in stage.commands.failures)
                )
                await asyncio.wait({asking, meeting}, return_when=asyncio.FIRST_COMPLETED)
                await self.primary.heal()
            has_met = meeting.done()
            meeting.cancel()
            told = await asking
            if has_met:
                self._check_that_it_was_tried_again(told, case)
            await self._check(ledger, told)
        return has_met

    @contextlib.asynccontextmanager
    async def _prepared(self, stage: Stage) -> AsyncIterator[tuple[CreditLedger, list[Ask]]]:
        if not self.prepared:
            await self.prepare(1)
        user_id, asks = self.prepared.pop()
        async with CreditLedger(stage.client[self.database.name], prices()) as ledger:
            if self.operation.in_turns:
                await take_turns(ledger, stage.commands, self.database, user_id)
            yield ledger, asks

    async def _ask(self, stage: Stage, ledger: CreditLedger, asks: list[Ask]) -> list[Told]:
        if self.in_session:
            [ask] = asks
            database = stage.client[self.database.name]
            return [Told(ask, await outcome_of(self.application(ask, ledger, database)))]
        async with contextlib.AsyncExitStack() as stack:
            if self.operation.turn_is_taken:
                await stack.enter_async_context(turn_held(stage.commands, self.database))
            return await put_all(asks, ledger)

    def _check_that_it_was_tried_again(self, told: list[Told], case: Case) -> None:
        """A failure that passes is not the caller's, nor is any failure of the ledger's commit."""
        if self.application is in_a_stubborn_transaction:
            return
        kinds = {was_told_of(each.outcome) for each in told}
        is_ending = case.command.name in ("commitTransaction", "abortTransaction")
        # Of an application's transaction the commit is the application's; and the row of a
        # refusal is written outside of it.
        is_outside = self.in_session and case.command.collection == "audit_logs"
        if self.in_session and (is_ending or is_outside):
            return
        if self.operation.is_repeated:
            # Nothing is to be written: a commit that fails for good is told as what it is.
            is_strict = case.fault.passes and not case.fault.is_applied
        else:
            is_strict = case.fault.passes or is_ending
        if is_strict:
            assert kinds <= {"done", "refused"}, [each.outcome for each in told]
        assert "unknown" not in kinds, [each.outcome for each in told]

    async def _check(self, ledger: CreditLedger, told: list[Told]) -> None:
        if self.in_session:
            await self._check_order(told[0])
        await all_told_hold(
            told, ledger=ledger, database=self.database, audits_may_stay=self.in_session
        )

    async def _check_order(self, told: Told) -> None:
        """An order is there if its charge is, and not without."""
        mark = told.ask.mark
        kind = was_told_of(told.outcome)
        is_there = await self.database[ORDERS].count_documents({"_id": mark})
        if kind == "unknown":
            query = {"metadata.mark": mark}
            has_effect = await self.database["transactions"].count_documents(query)
            # What a key had done before stays done.
            assert is_there == has_effect or told.ask.is_repeated, told
        else:
            assert is_there == (kind == "done"), told


async def try_all(matrix: Matrix, stages: list[Stage], observers: list[Client]) -> None:
    """Record, try, and check what stays behind."""
    commands = await matrix.record(stages[0])
    cases = [
        Case(command, fault) for command in commands for fault in FAULTS if fault.fits(command)
    ]
    assert len(cases) >= len(FAULTS)
    name = f"cases {matrix.operation.name} {matrix.in_session}"
    cases = some(cases, name, lambda case: (case.command, case.fault.name))
    await matrix.prepare(len(cases))
    await each_on_a_stage(stages, cases, matrix.try_case)
    assert not matrix.violations, "\n".join(
        [f"{len(matrix.violations)} of {len(cases)} cases:", *matrix.violations]
    )
    await promises_hold(matrix.database)
    await nothing_is_open(observers)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_each_failure_of_each_command(
    operation: Operation, stages: list[Stage], grounds: Grounds
) -> None:
    """One effect or none, as the caller is told, and the key settles it."""
    async with CreditLedger(grounds.database, prices()) as books:
        matrix = Matrix(operation, grounds.database, grounds.primary, books)
        # There is one turn in a database.
        await try_all(matrix, stages[:1] if operation.in_turns else stages, grounds.observers)


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.in_sessions],
    ids=lambda operation: operation.name,
)
async def test_each_failure_of_each_command_in_an_applications_transaction(
    operation: Operation, stages: list[Stage], grounds: Grounds
) -> None:
    """The same, and with what the application wrote beside it."""
    await grounds.database.create_collection(ORDERS)
    async with CreditLedger(grounds.database, prices()) as books:
        matrix = Matrix(operation, grounds.database, grounds.primary, books)
        matrix.in_session = True
        await try_all(matrix, stages, grounds.observers)


@pytest.mark.parametrize("name", ["create_user", "charge", "refund of a charge"])
async def test_no_failure_lets_a_stubborn_application_commit_a_half(
    name: str, stages: list[Stage], grounds: Grounds
) -> None:
    """It catches every failure and commits; it is refused, and nothing is there."""
    [operation] = [each for each in OPERATIONS if each.name == name]
    await grounds.database.create_collection(ORDERS)
    async with CreditLedger(grounds.database, prices()) as books:
        matrix = Matrix(operation, grounds.database, grounds.primary, books)
        matrix.in_session, matrix.application = True, in_a_stubborn_transaction
        await try_all(matrix, stages, grounds.observers)

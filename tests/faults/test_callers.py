"""Callers that are cancelled or run out of time at each command, and clients with no room left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import anyio
import pytest
import pytest_asyncio
from pymongo.cursor import CursorType

from credit_mongo import CreditLedger, LedgerBusyError, StorageError
from credit_mongo.engine import lanes
from credit_mongo.local import LocalReplicaSet
from tests.faults.calls import Answer, make_calls, outcome_of
from tests.faults.checks import (
    check_answers,
    check_deadlines,
    check_everything,
    check_no_transaction_open,
    check_stored_rows,
    kind_of,
)
from tests.faults.cluster import Cluster
from tests.faults.commands import Command
from tests.faults.faults import client_of
from tests.faults.isolated_runs import IsolatedRuns
from tests.faults.operations import OPENING_CREDITS, OPERATIONS, charge_of, prices
from tests.faults.settings import COUNTS, SETTINGS, sample
from tests.faults.targets import ORDERS, Target, in_a_stubborn_transaction
from tests.integration.promises import Row

IN_SESSIONS = [operation for operation in OPERATIONS if operation.in_sessions]
STUBBORN = [each for each in IN_SESSIONS if each.name in ("charge", "refund of a charge")]
TIMEOUT_SECONDS: Final = 1.0
SHORT = prices(operation_timeout_seconds=TIMEOUT_SECONDS)
# Longer than the deadline. The server still runs the command afterwards.
BLOCKED: Final = {"blockConnection": True, "blockTimeMS": 1300}


@pytest_asyncio.fixture
async def target(replica_set: LocalReplicaSet) -> AsyncIterator[Target]:
    """A client whose commands are recorded."""
    target = Target(replica_set.uri, 1)
    async with target.client:
        yield target


Cancellation = Callable[[Callable[[], Awaitable[Any]], Target, Command], Awaitable[Any]]


async def cancelled(
    perform: Callable[[], Awaitable[Any]], target: Target, command: Command, *, twice: bool = False
) -> Any:
    """Cancel the caller while the command is on its way."""
    calling = asyncio.ensure_future(perform())
    loop = asyncio.get_running_loop()

    def cancel(sent: Command) -> None:
        if sent == command:
            loop.call_soon(calling.cancel)
            if twice:
                loop.call_soon(lambda: loop.call_soon(calling.cancel))

    target.commands.when_sent = cancel
    await asyncio.wait([calling])
    return await outcome_of(calling)


async def cancelled_twice(
    perform: Callable[[], Awaitable[Any]], target: Target, command: Command
) -> Any:
    """Cancel the caller again while it cleans up."""
    return await cancelled(perform, target, command, twice=True)


async def left_by_a_scope(
    perform: Callable[[], Awaitable[Any]], target: Target, command: Command
) -> Any:
    """Cancel as web frameworks do: each await in the cancelled scope is cancelled anew."""
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:

        def leave(sent: Command) -> None:
            if sent == command:
                loop.call_soon(scope.cancel)

        target.commands.when_sent = leave
        return await perform()
    return asyncio.CancelledError()


CANCELLATIONS: dict[str, Cancellation] = {
    "once": cancelled,
    "twice": cancelled_twice,
    "by a scope": left_by_a_scope,
}


async def cancel_at_each_command(runs: IsolatedRuns, how: str, cluster: Cluster) -> None:
    """A cancelled call happened once or not at all. After a repeat it has happened once."""
    commands = await runs.record_commands()
    assert commands
    name = f"cancelled {how} {runs.operation.name} {runs.in_session}"
    for command in sample(commands, name):
        async with runs.prepared() as (ledger, calls, perform):
            first, *others = calls
            answers = [
                Answer(call, outcome)
                for call, outcome in zip(
                    calls,
                    await asyncio.gather(
                        CANCELLATIONS[how](lambda: perform(first), runs.target, command),  # noqa: B023
                        *(outcome_of(perform(call)) for call in others),
                    ),
                    strict=True,
                )
            ]
            kinds = [kind_of(each.outcome) for each in answers]
            assert set(kinds[1:]) <= {"done", "refused"}, "somebody else's cancellation was felt"
            COUNTS["cancellations: operation by command by way"] += 1
            await check_no_transaction_open(cluster.observers)
            await check_answers(
                answers,
                ledger=ledger,
                database=runs.database,
                audits_may_stay=runs.in_session,
            )


@pytest.mark.parametrize("how", CANCELLATIONS)
async def test_callers_cancelled_at_each_command(
    how: str, target: Target, cluster: Cluster
) -> None:
    """A cancelled call has one effect or none, and its key settles which."""
    for operation in OPERATIONS:
        runs = IsolatedRuns(operation, target, cluster.database, in_session=False)
        await cancel_at_each_command(runs, how, cluster)
    await check_stored_rows(cluster.database)


@pytest.mark.parametrize("how", CANCELLATIONS)
async def test_callers_cancelled_at_each_command_in_an_applications_transaction(
    how: str, target: Target, cluster: Cluster
) -> None:
    """The charge and the application's order still commit together or not at all."""
    await cluster.database.create_collection(ORDERS)
    for operation in IN_SESSIONS:
        runs = IsolatedRuns(operation, target, cluster.database, in_session=True)
        await cancel_at_each_command(runs, how, cluster)
    await check_stored_rows(cluster.database)


@pytest.mark.parametrize("how", CANCELLATIONS)
async def test_cancelled_calls_leave_no_half_that_an_application_could_commit(
    how: str, target: Target, cluster: Cluster
) -> None:
    """An application that commits after a cancelled call commits nothing."""
    await cluster.database.create_collection(ORDERS)
    for operation in STUBBORN:
        runs = IsolatedRuns(
            operation,
            target,
            cluster.database,
            in_session=True,
            application=in_a_stubborn_transaction,
        )
        await cancel_at_each_command(runs, how, cluster)
    await check_stored_rows(cluster.database)


async def test_deadlines_that_pass_at_each_command(target: Target, cluster: Cluster) -> None:
    """Every call ends by its deadline, whichever command the server does not answer.

    All operations that send the command wait for it at once, each on its own ledger.
    """
    all_runs = [
        IsolatedRuns(operation, target, cluster.database, in_session=False)
        for operation in OPERATIONS
        if not operation.in_turns
    ]
    sent = {runs.operation.name: await runs.record_commands() for runs in all_runs}
    senders: dict[Command, list[IsolatedRuns]] = defaultdict(list)
    for runs in all_runs:
        for command in sent[runs.operation.name]:
            if not command.number:
                senders[command].append(runs)
    for command in sample(
        list(senders), "deadlines", lambda c: {each.operation for each in senders[c]}
    ):
        await _pass_deadlines(command, senders[command], target, cluster)
    await check_stored_rows(cluster.database)


async def test_deadlines_that_pass_at_each_command_in_turns(
    target: Target, cluster: Cluster
) -> None:
    """The same in turns. A database has one turn, so the ledgers run one after the other."""
    for operation in OPERATIONS:
        if not operation.in_turns:
            continue
        runs = IsolatedRuns(operation, target, cluster.database, in_session=False)
        first = [command for command in await runs.record_commands() if not command.number]
        for command in sample(first, f"deadlines {operation.name}"):
            await _pass_deadlines(command, [runs], target, cluster)
    await check_stored_rows(cluster.database)


async def _pass_deadlines(
    command: Command, all_runs: list[IsolatedRuns], target: Target, cluster: Cluster
) -> None:
    database = cluster.database
    blocked: Row = {"failCommands": [command.name], **BLOCKED}
    if command.collection:
        blocked["namespace"] = f"{database.name}.{command.collection}"
    async with contextlib.AsyncExitStack() as stack:
        calling = [
            await stack.enter_async_context(
                runs.prepared(operation_timeout_seconds=TIMEOUT_SECONDS)
            )
            for runs in all_runs
        ]
        target.commands.start()
        async with cluster.primary.failing(target.app_name, **blocked):
            answers = await asyncio.gather(
                *(make_calls(calls, ledger) for ledger, calls, _ in calling)
            )
        assert command in target.commands.sent
        await check_no_transaction_open(cluster.observers)
        for (ledger, _, _), of_one in zip(calling, answers, strict=True):
            COUNTS["deadlines: operation by command"] += 1
            check_deadlines(of_one, TIMEOUT_SECONDS)
            await check_answers(of_one, ledger=ledger, database=database)


async def test_a_full_connection_pool(cluster: Cluster) -> None:
    """While the application's cursor holds the only connection, calls fail in time.

    Then they work.
    """
    database, observers = cluster.database, cluster.observers
    await database["papers"].insert_many([{"text": "x" * 1000} for _ in range(1000)])
    async with (
        client_of(cluster.replica_set.uri, "full", maxPoolSize=1) as full,
        CreditLedger(full[database.name], SHORT) as ledger,
    ):
        await ledger.create_user("user", credits=OPENING_CREDITS)
        calls = [charge_of("user") for _ in range(50)]
        papers = full[database.name]["papers"]
        async with papers.find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
            await cursor.next()
            answers = await make_calls(calls, ledger)
            with pytest.raises(StorageError):
                await ledger.get_balance("user")
        assert {kind_of(each.outcome) for each in answers} == {"failed"}
        await check_everything(
            answers,
            ledger=ledger,
            database=database,
            observers=observers,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        COUNTS["full connection pools"] += 1


async def test_one_connection_is_enough(cluster: Cluster) -> None:
    """An application's transaction on the only connection delays just the users it touched."""
    database, observers = cluster.database, cluster.observers
    async with (
        client_of(cluster.replica_set.uri, "full", maxPoolSize=1) as full,
        CreditLedger(full[database.name], prices(operation_timeout_seconds=5)) as ledger,
        CreditLedger(full[database.name], SHORT) as hasty,
    ):
        for user_id in ("held", "free"):
            await ledger.create_user(user_id, credits=OPENING_CREDITS)
        async with full.start_session() as session, await session.start_transaction():
            await ledger.charge("held", "post", session=session)
            free = await make_calls([charge_of("free") for _ in range(SETTINGS.callers)], ledger)
            held = await make_calls([charge_of("held") for _ in range(5)], hasty)
        assert {kind_of(each.outcome) for each in free} == {"done"}
        assert {kind_of(each.outcome) for each in held} == {"failed"}
        for answers, called in ((free, ledger), (held, hasty)):
            await check_everything(
                answers, ledger=called, database=database, observers=observers, timeout_seconds=5
            )
        COUNTS["full connection pools"] += 1


async def test_a_full_queue(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that finds the queue full learns at once that nothing was written.

    The rest succeed. The queue is a quarter as long as it is for users, to save time.
    """
    monkeypatch.setattr(lanes, "LONGEST_QUEUE", 5000)
    database, observers = cluster.database, cluster.observers
    async with (
        client_of(cluster.replica_set.uri, "queue") as client,
        CreditLedger(client[database.name], prices(operation_timeout_seconds=20)) as ledger,
    ):
        await ledger.create_user("user", credits=OPENING_CREDITS)
        # One call in eight has no key, so it cannot be repeated. Its rows are checked all the same.
        calls = [charge_of("user", key=not number % 8) for number in range(5600)]
        async with cluster.primary.failing("queue", {"times": 1}, failCommands=["find"], **BLOCKED):
            answers = await make_calls(calls, ledger)
        busy = [each for each in answers if isinstance(each.outcome, LedgerBusyError)]
        assert len(busy) == 5600 - 5000
        assert {kind_of(each.outcome) for each in answers if each not in busy} == {"done"}
        await check_everything(
            answers, ledger=ledger, database=database, observers=observers, timeout_seconds=20
        )
        COUNTS["callers who found the queue full"] += len(busy)

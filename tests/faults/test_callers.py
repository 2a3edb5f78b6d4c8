"""Callers who are cancelled or run out of time at each command, and clients that are full."""

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
from credit_mongo.local import LocalReplicaSet
from tests.faults.asks import Told, outcome_of, put_all
from tests.faults.commands import Command
from tests.faults.everything import (
    all_told_hold,
    check_that_all_ended_in_time,
    everything_holds,
    nothing_is_open,
    promises_hold,
    was_told_of,
)
from tests.faults.faults import client_of
from tests.faults.grounds import Grounds
from tests.faults.operations import OPENING_CREDITS, OPERATIONS, charge_of, prices
from tests.faults.sizes import REACHED, SIZES, some
from tests.faults.stages import ORDERS, Stage, in_a_stubborn_transaction
from tests.faults.trials import Trial
from tests.integration.promises import Row

IN_SESSIONS = [operation for operation in OPERATIONS if operation.in_sessions]
STUBBORN = [each for each in IN_SESSIONS if each.name in ("charge", "refund of a charge")]
TIMEOUT_SECONDS: Final = 1.0
SHORT = prices(operation_timeout_seconds=TIMEOUT_SECONDS)
# Longer than the deadline, and the server goes on with the command after it.
BLOCKED: Final = {"blockConnection": True, "blockTimeMS": 1300}


@pytest_asyncio.fixture
async def stage(replica_set: LocalReplicaSet) -> AsyncIterator[Stage]:
    """A client whose commands are told of."""
    stage = Stage(replica_set.uri, 1)
    async with stage.client:
        yield stage


Way = Callable[[Callable[[], Awaitable[Any]], Stage, Command], Awaitable[Any]]


async def cancelled(
    call: Callable[[], Awaitable[Any]], stage: Stage, command: Command, *, twice: bool = False
) -> Any:
    """Cancel the caller while the command is on its way."""
    asking = asyncio.ensure_future(call())
    loop = asyncio.get_running_loop()

    def cancel(sent: Command) -> None:
        if sent == command:
            loop.call_soon(asking.cancel)
            if twice:
                loop.call_soon(lambda: loop.call_soon(asking.cancel))

    stage.commands.when_sent = cancel
    await asyncio.wait([asking])
    return await outcome_of(asking)


async def cancelled_twice(
    call: Callable[[], Awaitable[Any]], stage: Stage, command: Command
) -> Any:
    """The second time while it cleans up."""
    return await cancelled(call, stage, command, twice=True)


async def left_by_a_scope(
    call: Callable[[], Awaitable[Any]], stage: Stage, command: Command
) -> Any:
    """As web frameworks do: each await in the scope is cancelled anew."""
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:

        def leave(sent: Command) -> None:
            if sent == command:
                loop.call_soon(scope.cancel)

        stage.commands.when_sent = leave
        return await call()
    return asyncio.CancelledError()


WAYS: dict[str, Way] = {
    "once": cancelled,
    "twice": cancelled_twice,
    "by a scope": left_by_a_scope,
}


async def cancel_at_each_command(trial: Trial, way: str, grounds: Grounds) -> None:
    """The caller is gone; what it asked for has happened once, or not, or does when asked again."""
    commands = await trial.record()
    assert commands
    name = f"cancelled {way} {trial.operation.name} {trial.in_session}"
    for command in some(commands, name):
        async with trial.asking() as (ledger, asks, call):
            first, *others = asks
            told = [
                Told(ask, outcome)
                for ask, outcome in zip(
                    asks,
                    await asyncio.gather(
                        WAYS[way](lambda: call(first), trial.stage, command),  # noqa: B023
                        *(outcome_of(call(ask)) for ask in others),
                    ),
                    strict=True,
                )
            ]
            kinds = [was_told_of(each.outcome) for each in told]
            assert set(kinds[1:]) <= {"done", "refused"}, "somebody else's cancellation was felt"
            REACHED["cancellations: operation by command by way"] += 1
            await nothing_is_open(grounds.observers)
            await all_told_hold(
                told,
                ledger=ledger,
                database=trial.database,
                audits_may_stay=trial.in_session,
            )


@pytest.mark.parametrize("way", WAYS)
async def test_callers_cancelled_at_each_command(way: str, stage: Stage, grounds: Grounds) -> None:
    """Once, twice, and by a scope."""
    for operation in OPERATIONS:
        trial = Trial(operation, stage, grounds.database, in_session=False)
        await cancel_at_each_command(trial, way, grounds)
    await promises_hold(grounds.database)


@pytest.mark.parametrize("way", WAYS)
async def test_callers_cancelled_at_each_command_in_an_applications_transaction(
    way: str, stage: Stage, grounds: Grounds
) -> None:
    """The application's transaction ends as the application ends it."""
    await grounds.database.create_collection(ORDERS)
    for operation in IN_SESSIONS:
        trial = Trial(operation, stage, grounds.database, in_session=True)
        await cancel_at_each_command(trial, way, grounds)
    await promises_hold(grounds.database)


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_calls_leave_no_half_that_an_application_could_commit(
    way: str, stage: Stage, grounds: Grounds
) -> None:
    """It commits at once, whatever has become of the call."""
    await grounds.database.create_collection(ORDERS)
    for operation in STUBBORN:
        trial = Trial(
            operation,
            stage,
            grounds.database,
            in_session=True,
            application=in_a_stubborn_transaction,
        )
        await cancel_at_each_command(trial, way, grounds)
    await promises_hold(grounds.database)


async def test_deadlines_that_pass_at_each_command(stage: Stage, grounds: Grounds) -> None:
    """Every call ends by its deadline, whichever command the server does not answer.

    All operations that send the command wait for it at once: each has a ledger of its own.
    """
    trials = [
        Trial(operation, stage, grounds.database, in_session=False)
        for operation in OPERATIONS
        if not operation.in_turns
    ]
    sent = {trial.operation.name: await trial.record() for trial in trials}
    senders: dict[Command, list[Trial]] = defaultdict(list)
    for trial in trials:
        for command in sent[trial.operation.name]:
            if not command.number:
                senders[command].append(trial)
    for command in some(list(senders), "deadlines", lambda c: {t.operation for t in senders[c]}):
        await _pass_deadlines(command, senders[command], stage, grounds)
    await promises_hold(grounds.database)


async def test_deadlines_that_pass_at_each_command_in_turns(stage: Stage, grounds: Grounds) -> None:
    """There is one turn, so one ledger after the other."""
    for operation in OPERATIONS:
        if not operation.in_turns:
            continue
        trial = Trial(operation, stage, grounds.database, in_session=False)
        first = [command for command in await trial.record() if not command.number]
        for command in some(first, f"deadlines {operation.name}"):
            await _pass_deadlines(command, [trial], stage, grounds)
    await promises_hold(grounds.database)


async def _pass_deadlines(
    command: Command, trials: list[Trial], stage: Stage, grounds: Grounds
) -> None:
    database = grounds.database
    blocked: Row = {"failCommands": [command.name], **BLOCKED}
    if command.collection:
        blocked["namespace"] = f"{database.name}.{command.collection}"
    async with contextlib.AsyncExitStack() as stack:
        asking = [
            await stack.enter_async_context(trial.asking(operation_timeout_seconds=TIMEOUT_SECONDS))
            for trial in trials
        ]
        stage.commands.start()
        async with grounds.primary.failing(stage.app_name, **blocked):
            told = await asyncio.gather(*(put_all(asks, ledger) for ledger, asks, _ in asking))
        assert command in stage.commands.sent
        await nothing_is_open(grounds.observers)
        for (ledger, _, _), of_ledger in zip(asking, told, strict=True):
            REACHED["deadlines: operation by command"] += 1
            check_that_all_ended_in_time(of_ledger, TIMEOUT_SECONDS)
            await all_told_hold(of_ledger, ledger=ledger, database=database)


async def test_a_full_connection_pool(grounds: Grounds) -> None:
    """Held by a cursor of the application's: calls end in time, and go on when it is done."""
    database, observers = grounds.database, grounds.observers
    await database["papers"].insert_many([{"text": "x" * 1000} for _ in range(1000)])
    async with (
        client_of(grounds.replica_set.uri, "full", maxPoolSize=1) as full,
        CreditLedger(full[database.name], SHORT) as ledger,
    ):
        await ledger.create_user("user", credits=OPENING_CREDITS)
        asks = [charge_of("user") for _ in range(50)]
        papers = full[database.name]["papers"]
        async with papers.find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
            await cursor.next()
            told = await put_all(asks, ledger)
            with pytest.raises(StorageError):
                await ledger.get_balance("user")
        assert {was_told_of(each.outcome) for each in told} == {"failed"}
        await everything_holds(
            told,
            ledger=ledger,
            database=database,
            observers=observers,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        REACHED["full connection pools"] += 1


async def test_one_connection_is_enough(grounds: Grounds) -> None:
    """A transaction of the application's on the same client holds its users, and nobody else."""
    database, observers = grounds.database, grounds.observers
    async with (
        client_of(grounds.replica_set.uri, "full", maxPoolSize=1) as full,
        CreditLedger(full[database.name], prices(operation_timeout_seconds=5)) as ledger,
        CreditLedger(full[database.name], SHORT) as hasty,
    ):
        for user_id in ("held", "free"):
            await ledger.create_user(user_id, credits=OPENING_CREDITS)
        async with full.start_session() as session, await session.start_transaction():
            await ledger.charge("held", "post", session=session)
            free = await put_all([charge_of("free") for _ in range(SIZES.callers)], ledger)
            held = await put_all([charge_of("held") for _ in range(5)], hasty)
        assert {was_told_of(each.outcome) for each in free} == {"done"}
        assert {was_told_of(each.outcome) for each in held} == {"failed"}
        for told, asked in ((free, ledger), (held, hasty)):
            await everything_holds(
                told, ledger=asked, database=database, observers=observers, timeout_seconds=5
            )
        REACHED["full connection pools"] += 1


async def test_a_full_queue(grounds: Grounds) -> None:
    """Who finds it full is told at once that nothing was written; the others are served."""
    database, observers = grounds.database, grounds.observers
    async with (
        client_of(grounds.replica_set.uri, "queue") as client,
        CreditLedger(client[database.name], prices(operation_timeout_seconds=20)) as ledger,
    ):
        await ledger.create_user("user", credits=OPENING_CREDITS)
        # One of eight asks again; what the others are told is looked for all the same.
        asks = [charge_of("user", key=not number % 8) for number in range(5600)]
        async with grounds.primary.failing("queue", {"times": 1}, failCommands=["find"], **BLOCKED):
            told = await put_all(asks, ledger)
        busy = [each for each in told if isinstance(each.outcome, LedgerBusyError)]
        assert len(busy) == 5600 - 5000
        assert {was_told_of(each.outcome) for each in told if each not in busy} == {"done"}
        await everything_holds(
            told, ledger=ledger, database=database, observers=observers, timeout_seconds=20
        )
        REACHED["callers who found the queue full"] += len(busy)

"""Turns of several processes: they go in order, and none waits long for one that is frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from pymongo import AsyncMongoClient

import credit_mongo
from credit_mongo import CommitOutcomeUnknownError, CreditConfig, CreditLedger, StorageError
from credit_mongo.engine import tickets
from credit_mongo.engine.cooldown import Cooldown
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    end_all_transactions,
    failing,
    with_options,
)

CONFIG = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=4)
# A process waits for the turn up to a tenth of the deadline. The rest is for slow machines.
SHORT_SECONDS = 3

# The process stops itself when its commit is written but not yet sent.
HOLDER = """
import asyncio, os, signal, sys
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener
from credit_mongo import CreditConfig, CreditLedger

class Stop(CommandListener):
    armed = False
    def started(self, event):
        if self.armed and event.command_name == "commitTransaction":
            self.armed = False
            print("has the turn", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
    def succeeded(self, event): pass
    def failed(self, event): pass

async def main(uri, database):
    stop = Stop()
    client = AsyncMongoClient(uri, event_listeners=[stop])
    ledger = CreditLedger(client[database], CreditConfig(costs={"post": {"default": 10}}))
    await ledger.get_balance("held")
    ledger._committer._turns.met_conflict(2, asyncio.get_running_loop().time())
    stop.armed = True
    try:
        await ledger.charge("held", "post", idempotency_key="held")
    finally:
        os._exit(0)

asyncio.run(main(*sys.argv[1:]))
"""


def has_stopped(process: Process) -> bool:
    """Whether a signal has stopped the process."""
    options = os.WSTOPPED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, process.pid, options) is not None


@asynccontextmanager
async def holder(uri: str, database: Database) -> AsyncIterator[Process]:
    """A process that stopped during its turn, in the middle of a charge of "held"."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, uri, database.name),
        env={**os.environ, "PYTHONPATH": str(Path(credit_mongo.__file__).parents[1])},
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"has the turn\n"
        # It stops itself just after it says so. A signal in between would stop it twice.
        while not has_stopped(process):  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.01)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def take_turns(ledger: CreditLedger) -> None:
    """Let a ledger take turns, as after two conflicts in a row."""
    ledger._committer._turns.met_conflict(2, asyncio.get_running_loop().time())


async def charge_beside_the_holder(ledger: CreditLedger, users: list[str]) -> None:
    """Charge with one short wait, then with none. Only the locked user cannot be charged."""
    take_turns(ledger)
    held = asyncio.ensure_future(ledger.charge("held", "post"))
    began = time.monotonic()
    await asyncio.gather(*(ledger.charge(user, "post") for user in users))
    assert time.monotonic() - began < SHORT_SECONDS
    began = time.monotonic()
    for _ in range(10):
        await asyncio.gather(*(ledger.charge(user, "post") for user in users))
    assert time.monotonic() - began < SHORT_SECONDS
    with pytest.raises(StorageError):
        await held


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL], ids=lambda sent: sent.name)
async def test_a_process_frozen_in_its_turn_costs_the_others_one_short_wait(
    client: Client, database: Database, replica_set_uri: str, sent: signal.Signals
) -> None:
    """From then on, all processes charge all other users at once."""
    async with CreditLedger(database, CONFIG) as ledger, CreditLedger(database, CONFIG) as other:
        await ledger.ensure_indexes()
        users = [f"free-{number}" for number in range(8)]
        await asyncio.gather(*(ledger.create_user(u, credits=1000) for u in [*users, "held"]))
        async with holder(replica_set_uri, database) as process:
            process.send_signal(sent)
            try:
                await asyncio.gather(
                    charge_beside_the_holder(ledger, users[:4]),
                    charge_beside_the_holder(other, users[4:]),
                )
            finally:
                # The server itself would end the stopped process's transaction only after a minute.
                await end_all_transactions(client)
            if sent is signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
                await asyncio.wait_for(process.wait(), 20)
        await ledger.charge("held", "post", idempotency_key="held")
        assert await ledger.get_balance("held") == 990
        for user in users:
            assert await ledger.get_balance(user) == 1000 - 11 * 10
    await check_promises(database)


async def test_turns_come_back_when_the_turn_changes_hands(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """A process that was only slow gets its turn again."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("held", credits=1000)
        await ledger.create_user("free", credits=1000)
        turns, clock = ledger._committer._turns, asyncio.get_running_loop().time
        async with holder(replica_set_uri, database) as process:
            take_turns(ledger)
            await ledger.charge("free", "post")
            assert turns.are_stuck(clock())
            process.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        # As when the pause from turns is over.
        turns._stuck = Cooldown(shortest_seconds=5, longest_seconds=60)
        take_turns(ledger)
        assert turns.are_needed(clock())
        await ledger.charge("held", "post")
        assert turns.are_needed(clock())
        assert await ledger.get_balance("held") == 980
    await check_promises(database)


async def test_a_charge_that_joins_a_batch_has_its_own_deadline(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """It does not fail with the batch, which had begun to wait for its turn long before."""
    uri = with_options(replica_set_uri, appName="joining")
    config = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=2)
    async with (
        AsyncMongoClient[Row](uri, tz_aware=True) as application,
        CreditLedger(application[database.name], config) as ledger,
    ):
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=1000)
        take_turns(ledger)
        await ledger.charge("ann", "post")  # Now there is a turn.
        ledger._committer._turns._longest_kept_seconds = 60
        slow = {"blockConnection": True, "blockTimeMS": 800}
        users = {"failCommands": ["find"], "namespace": f"{database.name}.users"}
        async with failing(client, "joining", {"times": 1}, **users, **slow):
            async with client.start_session() as session, await session.start_transaction():
                turn = client[database.name]["turns"]
                await turn.update_one({"_id": "turn"}, {"$inc": {"taken": 1}}, session=session)
                first = asyncio.ensure_future(ledger.charge("ann", "post"))
                await asyncio.sleep(1.2)
                second = asyncio.ensure_future(ledger.charge("ann", "post"))
                await asyncio.sleep(0.1)
            # The batch goes on, so the outcome of its first charge is still unknown.
            with pytest.raises(CommitOutcomeUnknownError):
                await first
            assert (await second).balance_after == 970
    await check_promises(database)


async def numbers_drawn(client: Client, database: Database) -> int:
    """How many numbers were drawn so far."""
    row = await client[database.name]["turns"].find_one({"_id": "tickets"})
    return int(row["drawn"]) if row else 0


@pytest.fixture
def never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is passed over, however slow the machine is."""
    monkeypatch.setattr(tickets, "_PASSED_OVER_SECONDS", 60)
    monkeypatch.setattr(tickets, "_LONGEST_PATIENCE_SECONDS", 60)


@pytest.mark.usefixtures("never_passed_over")
async def test_ledgers_have_their_turns_in_the_order_of_their_arrival(
    client: Client, database: Database
) -> None:
    """Whoever came first is served first, though all wait for the same turn to end."""
    async with AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(CreditLedger(database, CONFIG)) for _ in "1234"]
        await ledgers[0].ensure_indexes()
        await ledgers[0].create_user("ann", credits=1000)
        for ledger in ledgers:
            take_turns(ledger)
            await ledger.charge("ann", "post")
        turns = client[database.name]["turns"]
        held = await numbers_drawn(client, database) + 1
        await turns.update_one({"_id": "tickets"}, {"$set": {"drawn": held}})
        charges = []
        async with client.start_session() as session, await session.start_transaction():
            await turns.update_one({"_id": "turn"}, {"$set": {"served": held}}, session=session)
            for number, ledger in enumerate(ledgers, start=1):
                charges.append(asyncio.ensure_future(ledger.charge("ann", "post")))
                while await numbers_drawn(client, database) < held + number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        results = await asyncio.gather(*charges)
        assert [result.balance_after for result in results] == [950, 940, 930, 920]
    await check_promises(database)


async def test_a_number_that_nobody_comes_for_stops_nobody(
    client: Client, database: Database
) -> None:
    """Its process has died, or its batch has given up."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=1000)
        take_turns(ledger)
        for dead in (0, 1, 3, 500):
            turns = client[database.name]["turns"]
            await turns.update_one({"_id": "tickets"}, {"$inc": {"drawn": dead}})
            await ledger.charge("ann", "post")
            row = await turns.find_one({"_id": "turn"})
            assert row is not None
            assert row["served"] == await numbers_drawn(client, database)
        assert not ledger._committer._turns.are_stuck(asyncio.get_running_loop().time())
    await check_promises(database)


@pytest.mark.usefixtures("never_passed_over")
async def test_a_batch_that_waits_for_a_held_user_lets_others_have_their_turns(
    client: Client, database: Database
) -> None:
    """An application's transaction holds the user; those of other users go on."""
    async with CreditLedger(database, CONFIG) as ledger, CreditLedger(database, CONFIG) as other:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=1000)
        await ledger.create_user("ben", credits=1000)
        take_turns(ledger)
        take_turns(other)
        async with client.start_session() as session, await session.start_transaction():
            await ledger.charge("ann", "post", session=session)
            waiting = asyncio.ensure_future(ledger.charge("ann", "post"))
            for _ in range(20):
                await other.charge("ben", "post")
            assert not waiting.done()
        assert (await waiting).balance_after == 980
    await check_promises(database)


async def test_a_call_whose_user_is_held_until_its_deadline_says_so(
    client: Client, database: Database
) -> None:
    """It has written nothing, whichever moment the deadline comes in."""
    config = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=1)
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=1000)
        async with client.start_session() as session, await session.start_transaction():
            await ledger.charge("ann", "post", session=session)
            with pytest.raises(StorageError, match="nothing was written") as raised:
                await ledger.charge("ann", "post")
        assert "WriteConflict" not in str(raised.value)
        assert await ledger.get_balance("ann") == 990
    await check_promises(database)

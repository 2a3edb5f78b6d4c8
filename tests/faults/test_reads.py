"""Every failure of every command of every read gives the right answer or a typed error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from credit_mongo import CreditConfig, CreditLedger, StorageError
from credit_mongo.storage.database import LedgerDatabase
from tests.faults.calls import outcome_of
from tests.faults.checks import GRACE_SECONDS, check_no_transaction_open
from tests.faults.cluster import Cluster
from tests.faults.faults import FAULTS
from tests.faults.operations import prices
from tests.faults.settings import COUNTS
from tests.faults.targets import Target
from tests.integration.promises import Database

Read = Callable[[CreditLedger, Any, str], Awaitable[Any]]
READS: dict[str, Read] = {
    "get_user": lambda ledger, session, _: ledger.get_user("user", session=session),
    "get_balance": lambda ledger, session, _: ledger.get_balance("user", session=session),
    "get_history": lambda ledger, session, _: _rows(ledger.get_history("user", session=session)),
    "get_audit_log": lambda ledger, session, _: _rows(
        ledger.get_audit_log("user", session=session)
    ),
    "validate_access": lambda ledger, session, _: ledger.validate_access(
        "user", "post", session=session
    ),
    "get_hold": lambda ledger, session, hold_id: ledger.get_hold(hold_id, session=session),
    "get_holds": lambda ledger, session, _: ledger.get_holds("user", session=session),
    "quote": lambda ledger, _, __: ledger.quote("user", "post"),
}
SHORT = prices(operation_timeout_seconds=1)


async def _rows(page: Awaitable[Sequence[Any]]) -> list[Any]:
    return list(await page)


async def opened(database: Database, config: CreditConfig) -> str:
    """Create a user with some history. Returns a hold that has ended, as has a lot.

    Nobody has posted these ends yet: the reads take them into account.
    """
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    async with CreditLedger(database, config, clock=lambda: past) as ledger:
        await ledger.create_user("user", credits=100, membership_tier="premium")
        for number in range(3):
            await ledger.charge("user", "post", idempotency_key=f"key-{number}")
        end = past + timedelta(minutes=5)
        await ledger.grant("user", 30, action="bonus", expires_at=end, priority=60)
        hold = await ledger.place_hold("user", "post", amount=20)
        await ledger.extend_hold(hold.hold_id, used=9)
        return hold.hold_id


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("in_session", [False, True], ids=["alone", "in a transaction"])
async def test_each_failure_of_each_command_of_a_read(
    name: str, in_session: bool, cluster: Cluster
) -> None:
    """A read never returns a wrong answer and never raises the driver's bare error."""
    database, primary = cluster.database, cluster.primary
    hold_id = await opened(database, prices())
    target = Target(cluster.replica_set.uri, 1)
    ledger = CreditLedger(target.client[database.name], prices())

    async def read() -> Any:
        if not in_session:
            return await outcome_of(READS[name](ledger, None, hold_id))
        async with target.client.start_session() as session:
            await session.start_transaction()
            answer = await outcome_of(READS[name](ledger, session, hold_id))
            await session.abort_transaction()
            return answer

    async with ledger, target.client:
        await read()
        target.commands.start()
        right = await read()
        commands = [c for c in target.commands.sent if c.name != "abortTransaction"]
        assert commands
        assert not isinstance(right, BaseException)
        for command in commands:
            for fault in FAULTS:
                if not fault.fits(command):
                    continue
                target.commands.start()
                await primary.fail(command, target.app_name, database.name, fault.data)
                answer = await read()
                await primary.heal()
                assert command in target.commands.failures, (command, fault)
                if isinstance(answer, BaseException):
                    assert isinstance(answer, StorageError), (command, fault, answer)
                    assert answer.__cause__ is not None
                else:
                    assert answer == right, (command, fault)
                assert await read() == right, (command, fault)
                COUNTS["cases: read by command by failure"] += 1
    await check_no_transaction_open(cluster.observers)


async def test_reads_slower_than_the_deadline_end_in_time(cluster: Cluster) -> None:
    """Reads that the server blocks end by their deadline, and the next ones are answered."""
    database, primary = cluster.database, cluster.primary
    hold_id = await opened(database, SHORT)
    target = Target(cluster.replica_set.uri, 1)
    blocked = {"blockConnection": True, "blockTimeMS": 1500}
    async with target.client, CreditLedger(target.client[database.name], SHORT) as ledger:

        async def read_all() -> list[Any]:
            reads = (
                outcome_of(read(ledger, None, hold_id), 1 + GRACE_SECONDS)
                for read in READS.values()
            )
            return await asyncio.gather(*reads)

        right = await read_all()
        async with primary.failing(target.app_name, failCommands=["find"], **blocked):
            for name, answer in zip(READS, await read_all(), strict=True):
                assert isinstance(answer, StorageError), (name, answer)
        assert await read_all() == right
        COUNTS["deadlines of reads"] += len(READS)


async def test_a_command_that_reads_survives_one_broken_connection(cluster: Cluster) -> None:
    """The driver repeats its own reads, but no command: the ledger's database does that."""
    target = Target(cluster.replica_set.uri, 1)
    ledger = LedgerDatabase.of(target.client[cluster.database.name])
    broken = {"failCommands": ["buildInfo"], "closeConnection": True}
    async with target.client:
        await ledger.ask({"buildInfo": 1})
        async with cluster.primary.failing(target.app_name, {"times": 1}, **broken):
            assert "version" in await ledger.ask({"buildInfo": 1})
        async with cluster.primary.failing(target.app_name, {"times": 2}, **broken):
            with pytest.raises(AutoReconnect):
                await ledger.ask({"buildInfo": 1})

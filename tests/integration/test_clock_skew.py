"""Wrong clocks: their operations are refused, and what they did earlier is found and settled.

The ledgers here use this machine's clock, moved for each of them, as in production. The server's
clock is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from credit_mongo import (
    ClockSkewError,
    CreditConfig,
    CreditLedger,
    IdempotencyConfig,
    MembershipRequiredError,
    TransactionAbortedError,
    UserMapping,
)
from credit_mongo.core.values import to_milliseconds
from credit_mongo.engine import writing
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Client, Database, check_promises, count, rows

UTC: Final = timezone.utc
FAR: Final = datetime(2099, 1, 1, tzinfo=UTC)
Opened: TypeAlias = Callable[..., AbstractAsyncContextManager[CreditLedger]]


def now() -> datetime:
    """Return the current time as BSON stores it."""
    return to_milliseconds(datetime.now(UTC))


@pytest.fixture
def opened(database: Database, config: CreditConfig, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open ledgers of processes whose clocks are this many seconds ahead."""

    @asynccontextmanager
    async def opened(seconds: float = 0, **settings: Any) -> AsyncIterator[CreditLedger]:
        with monkeypatch.context() as patch:
            patch.setattr(writing, "_now", lambda: now() + timedelta(seconds=seconds))
            ledger = CreditLedger(database, config.model_copy(update=settings))
        async with ledger:
            await ledger.ensure_indexes()
            yield ledger

    return opened


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [70, -90, 70 * 365 * 86400, -50 * 365 * 86400])
async def test_a_process_whose_clock_is_wrong_writes_nothing(
    opened: Opened, database: Database, client: Client, seconds: int
) -> None:
    """Ahead or behind, nothing is written: no row, refusal or key, in a transaction or outside."""
    async with opened() as right:
        await right.create_user("ann", credits=100, membership_tier="premium")
    before = [await rows(database, name) for name in ("users", "transactions", "audit_logs")]
    async with opened(seconds) as wrong:
        works = (
            wrong.charge("ann", "generate-post", idempotency_key="k"),
            wrong.charge("ann", "generate-post", amount=10**9),
            wrong.create_user("bob"),
            wrong.renew_tier("ann", membership_expires_at=FAR),
            wrong.validate_access("ann", "generate-image"),
            wrong.quote("ann", "generate-post"),
        )
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, ClockSkewError), repr(outcome)
            assert outcome.skew_seconds == pytest.approx(seconds, abs=5)
            assert outcome.allowed_seconds == 60
        async with client.start_session() as session:
            await session.start_transaction()
            with pytest.raises(ClockSkewError):
                await wrong.charge("ann", "generate-post", session=session)
            with pytest.raises(TransactionAbortedError):
                await session.commit_transaction()
        # Reads that do not depend on the time succeed.
        assert await wrong.get_balance("ann") == 100
        assert len(await wrong.get_history("ann")) == 1
    after = [await rows(database, name) for name in ("users", "transactions", "audit_logs")]
    assert after == before
    assert await count(database, "idempotency_records") == 0


@pytest.mark.parametrize("seconds", [70, 70 * 365 * 86400, -3 * 3600])
async def test_a_clock_corrected_during_an_operation_decides_nothing(
    database: Database,
    client: Client,
    config: CreditConfig,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    """The clock is wrong when an operation begins, and right a moment later."""
    readings: list[datetime] = []
    monkeypatch.setattr(writing, "_now", lambda: readings.pop() if readings else now())
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        readings.append(now() + timedelta(seconds=seconds))
        with pytest.raises(ClockSkewError) as caught:
            await ledger.charge("ann", "translate")
        assert caught.value.skew_seconds == pytest.approx(seconds, abs=5)
        async with client.start_session() as session:
            await session.start_transaction()
            readings.append(now() + timedelta(seconds=seconds))
            with pytest.raises(ClockSkewError):
                await ledger.charge("ann", "translate", session=session)
        assert (await ledger.charge("ann", "translate")).balance_before == 100
    await check_promises(database)


async def test_time_does_not_go_back_between_clocks_that_are_allowed(
    opened: Opened, database: Database
) -> None:
    """The clocks are as far apart as allowed. Each row is dated no earlier than the last."""
    async with opened(50) as ahead, opened(-50) as behind:
        await ahead.create_user("ann", credits=100)
        for ledger in (behind, ahead, behind):
            await ledger.charge("ann", "translate")
    await check_promises(database)
    assert not (await verify(database)).findings


class Hellos(CommandListener):
    """Counts how often the server was asked for its clock."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: CommandStartedEvent) -> None:
        self.count += event.command_name == "hello"

    def succeeded(self, event: object) -> None:
        """Count only ``hello``."""

    def failed(self, event: object) -> None:
        """Nothing fails here."""


async def test_an_idle_server_is_asked_for_its_clock(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """On an idle server the operation time stands still, and says nothing about any clock."""
    hellos = Hellos()
    strict = config.model_copy(update={"max_clock_skew_seconds": 1})
    async with (
        AsyncMongoClient[dict[str, Any]](replica_set_uri, event_listeners=[hellos]) as client,
        CreditLedger(client[database.name], strict) as ledger,
    ):
        await ledger.create_user("ann", credits=100)
        asked = hellos.count
        for _ in range(5):
            await ledger.charge("ann", "translate")
        assert hellos.count <= asked + 1, "the replies tell enough"
        await asyncio.sleep(3)
        await ledger.quote("ann", "translate")
        assert (await ledger.charge("ann", "translate")).balance_after == 82


async def test_a_clock_that_jumps_after_the_primary_was_asked_is_refused(
    database: Database, config: CreditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary's answer counts for some seconds, but not after the ledger's clock jumps."""
    offset = timedelta()
    monkeypatch.setattr(writing, "_now", lambda: now() + offset)
    strict = config.model_copy(update={"max_clock_skew_seconds": 1})
    async with CreditLedger(database, strict) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        await asyncio.sleep(3)  # Makes the operation time lag, so that the ledger asks the primary.
        await ledger.quote("ann", "translate")
        offset = timedelta(days=9000)
        with pytest.raises(ClockSkewError):
            await ledger.charge("ann", "translate")
        offset = timedelta()
        assert (await ledger.charge("ann", "translate")).balance_before == 100


# --- Earlier damage -------------------------------------------------------------------------------


async def test_rows_of_a_wrong_clock_decide_nothing_and_are_settled(
    opened: Opened, database: Database, config: CreditConfig
) -> None:
    """The membership is in force, rows are dated now, and keys expire within a day."""
    ends = now() + timedelta(days=30)
    async with opened() as right:
        await right.create_user(
            "ann", credits=100, membership_tier="premium", membership_expires_at=ends
        )
        # Written as by an earlier version, or by a process with its own clock.
        async with CreditLedger(database, config, clock=lambda: FAR) as wrong:
            for number in range(3):
                await wrong.charge("ann", "translate", amount=1, idempotency_key=f"key-{number}")
            with pytest.raises(MembershipRequiredError):
                await wrong.validate_access("ann", "generate-image")

        assert await right.validate_access("ann", "generate-image")
        assert (await right.quote("ann", "generate-post")).tier == "premium"
        found = await verify(database)
        codes = {finding.code for finding in found.findings}
        assert codes == {"dated-in-future", "changed-in-future", "key-in-future"}
        assert len(found.findings) == 3

        charge = await right.charge("ann", "generate-post")
        assert charge.cost == 8, "the price of the tier in force"
        assert abs(charge.created_at - now()) < timedelta(seconds=30)
        assert (await right.renew_tier("ann", membership_expires_at=ends)).new_credits == 2000
        codes = {finding.code for finding in (await verify(database)).findings}
        assert codes == {"dated-in-future", "key-in-future"}

        done = await repair(database, operator="ops", reason="a clock was wrong")
        assert done.is_complete
        assert not (await verify(database)).findings
        for record in await rows(database, "idempotency_records"):
            assert record["expiresAt"] <= now() + timedelta(days=1)
        again = await right.charge("ann", "translate", amount=1, idempotency_key="key-1")
        assert again.replayed
        await right.charge("ann", "translate", idempotency_key="new")
        assert not (await verify(database)).findings, "what follows is right"


async def test_a_date_of_the_applications_own_ends_no_membership(
    database: Database, config: CreditConfig
) -> None:
    """Others may write a mapped field, so its date may be anything."""
    mapped = config.model_copy(update={"users": UserMapping()})
    async with CreditLedger(database, mapped) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(
            "ann",
            credits=100,
            membership_tier="premium",
            membership_expires_at=now() + timedelta(days=30),
        )
        await database["users"].update_one({"_id": "ann"}, {"$set": {"updatedAt": FAR}})
        [finding] = (await verify(database, users=UserMapping())).findings
        assert (finding.user_id, finding.code) == ("ann", "changed-in-future")
        assert await ledger.validate_access("ann", "generate-image")
        assert (await ledger.charge("ann", "generate-post")).cost == 8
        assert not (await verify(database, users=UserMapping())).findings


async def test_a_repair_keeps_the_longer_lifetime_that_a_call_gave_its_key(
    database: Database, config: CreditConfig
) -> None:
    """A payment's webhook that comes again after three days still changes nothing."""
    payment: dict[str, Any] = {"action": "payment", "idempotency_key": "payment"}
    async with CreditLedger(database, config, clock=lambda: FAR) as wrong:
        await wrong.ensure_indexes()
        await wrong.create_user("ann")
        await wrong.grant("ann", 5, **payment, idempotency_ttl=5 * 24 * 3600)
        await wrong.grant("ann", 5, action="tip", idempotency_key="tip", idempotency_ttl=1)
    assert (await repair(database, operator="ops", reason="a clock was wrong")).is_complete
    for record in await rows(database, "idempotency_records"):
        assert timedelta(days=4.9) < record["expiresAt"] - now() <= timedelta(days=5)
    later = now() + timedelta(days=3)
    async with CreditLedger(database, config, clock=lambda: later) as ledger:
        assert (await ledger.grant("ann", 5, **payment)).replayed
        assert await ledger.get_balance("ann") == 10


# --- Keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [{}, {"idempotency_ttl": 120}], ids=["configured", "own"])
async def test_a_key_lives_its_full_time_by_any_allowed_clock(
    opened: Opened, database: Database, own: dict[str, Any]
) -> None:
    """A clock that is behind writes the key, and one that is ahead looks it up near its end."""
    ttl = 120
    settings = {"idempotency": IdempotencyConfig(ttl_seconds=1 if own else ttl)}
    async with opened(-55, **settings) as behind, opened(55, **settings) as ahead:
        await behind.create_user("ann", credits=100)
        await behind.charge("ann", "translate", idempotency_key="k", **own)
        # Move everything back by this many seconds.
        passed = -1000 * (ttl - 2)
        records = database["idempotency_records"]
        moved = {n: {"$add": [f"${n}", passed]} for n in ("createdAt", "expiresAt")}
        await records.update_many({}, [{"$set": moved}])
        [record] = await rows(database, "idempotency_records")
        assert record["expiresAt"] > now(), "nor has the server swept it"
        assert (await ahead.charge("ann", "translate", idempotency_key="k")).replayed
        assert await ahead.get_balance("ann") == 97

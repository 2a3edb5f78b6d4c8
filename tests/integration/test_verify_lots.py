"""verify and repair of lots, debts and holds: they find what is wrong, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import Int64, ObjectId

from credit_mongo import CreditConfig, CreditLedger, InsufficientCreditsError
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.testing.clocks import MovableClock
from tests.integration.promises import Database, Row, rows

WHO: dict[str, Any] = {"operator": "Ada", "reason": "a disk was lost"}
CONFIG = CreditConfig(costs={"post": {"default": 10}})
DAY = timedelta(days=1)


class Bob:
    """A user with lots, a debt in the past, and holds of every kind, over nine days."""

    def __init__(self, ledger: CreditLedger, clock: MovableClock, database: Database) -> None:
        self.ledger = ledger
        self.clock = clock
        self.database = database
        self.lots: dict[str, str] = {}
        self.holds: dict[str, str] = {}

    async def live(self) -> None:
        ledger, clock = self.ledger, self.clock
        begun = clock()
        await ledger.create_user("bob", credits=30)
        await ledger.set_overdraft("bob", 50)
        debt = await ledger.charge("bob", "post", amount=70)
        await self._grant("short", 200, begun + 2 * DAY)
        await ledger.refund("bob", 5, action="sorry", transaction_id=debt.transaction_id)
        await self._grant("long", 500, begun + 400 * DAY, priority=60, source="pack")
        await self._grant("brief", 40, begun + 2 * DAY, priority=70)
        await ledger.grant("bob", 100, action="gift")
        await self._hold("kept", 100)
        clock.advance(3 * DAY)
        spent = await ledger.charge("bob", "post", amount=150)
        await ledger.refund("bob", 20, action="sorry", transaction_id=spent.transaction_id)
        await self._hold("captured", 40)
        await ledger.capture_hold(self.holds["captured"], amount=25, final=False)
        await ledger.capture_hold(self.holds["captured"], amount=35)
        await self._hold("released", 40)
        await ledger.release_hold(self.holds["released"])
        await self._hold("expired", 40, ttl=60)
        await ledger.extend_hold(self.holds["expired"], used=15)
        clock.advance(DAY)
        await ledger.revoke(self.lots["long"], 10, action="chargeback")
        await ledger.capture_hold(self.holds["kept"], amount=30, final=False)
        await ledger.set_overdraft("bob", 10)
        await ledger.charge("bob", "post", amount=7)

    async def _grant(self, name: str, amount: int, end: datetime, **options: Any) -> None:
        grant = await self.ledger.grant("bob", amount, action="gift", expires_at=end, **options)
        self.lots[name] = grant.transaction_id

    async def _hold(self, name: str, amount: int, *, ttl: float = 30 * 86400) -> None:
        hold = await self.ledger.place_hold("bob", "post", amount=amount, ttl=ttl)
        self.holds[name] = hold.hold_id

    # What harms do

    async def user(self, change: Row) -> None:
        done = await self.database["users"].update_one({"_id": "bob"}, change)
        assert done.modified_count == 1

    async def hold(self, name: str, change: Row) -> None:
        where = {"_id": ObjectId(self.holds[name])}
        assert (await self.database["holds"].update_one(where, change)).modified_count == 1

    async def lose_hold(self, name: str) -> None:
        where = {"_id": ObjectId(self.holds[name])}
        assert (await self.database["holds"].delete_one(where)).deleted_count == 1

    async def row(self, query: Row, change: Row) -> None:
        done = await self.database["transactions"].update_one({"userId": "bob", **query}, change)
        assert done.modified_count == 1


@pytest.fixture
async def bob(database: Database) -> AsyncIterator[Bob]:
    clock = MovableClock()
    clock.advance(-9 * DAY)
    async with CreditLedger(database, CONFIG, clock=clock) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=5)
        bob = Bob(ledger, clock, database)
        await bob.live()
        yield bob


async def end_earlier(bob: Bob) -> None:
    """As if the lot had ended two days before the last change, and nobody had noticed."""
    earlier = bob.clock() - 2 * DAY
    lot = {"lots.id": ObjectId(bob.lots["long"])}
    done = await bob.database["users"].update_one(
        {"_id": "bob", "creditExtras.lots.id": lot["lots.id"]},
        {"$set": {"creditExtras.lots.$.expiresAt": earlier}},
    )
    assert done.modified_count == 1
    await bob.database["transactions"].update_many(
        {"userId": "bob", "legs.lot": lot["lots.id"]},
        {"$set": {"legs.$[of].expiresAt": earlier}},
        array_filters=[{"of.lot": lot["lots.id"]}],
    )


async def end_twice(bob: Bob) -> None:
    """Post the end of a lot again, with consistent balances."""
    database = bob.database
    user = await database["users"].find_one({"_id": "bob"})
    ended = {"operation": "expire", "legs.lot": ObjectId(bob.lots["brief"])}
    row = await database["transactions"].find_one(ended)
    assert user is not None
    assert row is not None
    audit = await database["audit_logs"].find_one({"_id": row["_id"]})
    after = user["credits"] + row["amount"]
    again = {
        **row,
        "_id": ObjectId(),
        "seq": Int64(user["seq"] + 1),
        "balanceBefore": Int64(user["credits"]),
        "balanceAfter": Int64(after),
        "createdAt": user["updatedAt"],
    }
    details = {name: again[name] for name in ("amount", "balanceBefore", "balanceAfter")}
    await database["transactions"].insert_one(again)
    same = {"_id": again["_id"], "createdAt": again["createdAt"], "details": details}
    await database["audit_logs"].insert_one({**(audit or {}), **same})
    await bob.user({"$set": {"credits": Int64(after), "seq": again["seq"]}})


@dataclass(frozen=True)
class Harm:
    """A change by hand, the codes of the findings that it causes, and whether repair settles it."""

    name: str
    do: Callable[[Bob], Awaitable[Any]]
    codes: set[str]
    is_repairable: bool = True


LOTS, HOLDS = "creditExtras.lots", "creditExtras.holds"
HARMS = [
    Harm(
        "a lot has more",
        lambda b: b.user({"$inc": {f"{LOTS}.1.amount": Int64(5)}}),
        {"lot-differs"},
    ),
    Harm("a lot is gone", lambda b: b.user({"$pop": {LOTS: 1}}), {"lot-differs"}),
    Harm(
        "a lot has another priority",
        lambda b: b.user({"$set": {f"{LOTS}.1.priority": 10}}),
        {"lot-changed"},
    ),
    Harm(
        "a lot has no amount",
        lambda b: b.user({"$unset": {f"{LOTS}.1.amount": ""}}),
        {"extras-unusable"},
        is_repairable=False,
    ),
    Harm(
        "a leg has another amount",
        lambda b: b.row({"operation": "revoke"}, {"$inc": {"legs.0.amount": Int64(3)}}),
        {"legs-differ", "lot-differs"},
    ),
    Harm(
        "legs are text",
        lambda b: b.row({"operation": "revoke"}, {"$set": {"legs": "long"}}),
        {"legs-unusable", "lot-differs"},
    ),
    Harm("a lot has ended and nobody noticed", end_earlier, {"expiry-missing", "lot-used-late"}),
    Harm("a lot has ended twice", end_twice, {"expiry-doubled", "lot-differs"}),
    Harm(
        "a hold keeps more",
        lambda b: b.user({"$inc": {f"{HOLDS}.0.pins.0.amount": Int64(5)}}),
        {"hold-differs", "pins-exceed"},
        is_repairable=False,
    ),
    Harm(
        "a hold keeps less",
        lambda b: b.user({"$inc": {f"{HOLDS}.0.pins.0.amount": Int64(-5)}}),
        {"hold-differs", "expiry-missing"},
    ),
    Harm(
        "a hold has captured more",
        lambda b: b.user({"$inc": {f"{HOLDS}.0.captured": Int64(5)}}),
        {"hold-differs"},
    ),
    Harm(
        "a hold is unknown to its account",
        lambda b: b.user({"$set": {HOLDS: []}}),
        {"hold-orphaned", "expiry-missing"},
    ),
    Harm(
        "a hold's document is gone",
        lambda b: b.lose_hold("kept"),
        {"hold-missing", "capture-orphaned"},
    ),
    Harm(
        "a hold's document says it is over",
        lambda b: b.hold("kept", {"$set": {"status": "released"}}),
        {"hold-missing"},
    ),
    Harm(
        "a hold that is over is active again",
        lambda b: b.hold("released", {"$set": {"status": "active"}}),
        {"hold-orphaned"},
    ),
    Harm(
        "a hold has no end",
        lambda b: b.database.command(
            {
                "update": "holds",
                "updates": [
                    {
                        "q": {"_id": ObjectId(b.holds["kept"])},
                        "u": {"$unset": {"expiresAt": ""}},
                    }
                ],
                "bypassDocumentValidation": True,
            }
        ),
        {"hold-unusable"},
    ),
    Harm(
        "a hold should have ended",
        lambda b: b.user({"$set": {f"{HOLDS}.0.expiresAt": b.clock() - DAY}}),
        {"hold-overdue", "hold-differs"},
    ),
    Harm(
        "a captured hold's document is gone",
        lambda b: b.lose_hold("captured"),
        {"capture-orphaned"},
    ),
    Harm(
        "a hold is somebody else's",
        lambda b: b.hold("captured", {"$set": {"userId": "ann"}}),
        {"capture-orphaned"},
    ),
    Harm(
        "a hold says that more was captured",
        lambda b: b.hold("captured", {"$inc": {"captured": Int64(5)}}),
        {"captured-differs"},
    ),
    Harm(
        "a debt exceeds the overdraft of its time",
        lambda b: b.row({"newOverdraft": 50}, {"$set": {"newOverdraft": Int64(20)}}),
        {"below-zero"},
    ),
]


async def test_books_with_lots_debts_and_holds_have_no_findings(bob: Bob) -> None:
    """Neither for the sweep nor for the look at one user, whatever was due meanwhile."""
    user = await bob.ledger.get_user("bob")
    assert user.held
    assert user.lots
    done = await verify(bob.database)
    assert (done.findings, done.users) == ((), 2)
    assert (await verify(bob.database, user_ids=["bob"])).findings == ()
    for _ in range(3):
        bob.clock.advance(timedelta(hours=5))
        await bob.ledger.extend_hold(bob.holds["kept"], amount=150)
        assert (await verify(bob.database)).findings == ()
        with pytest.raises(InsufficientCreditsError):
            await bob.ledger.charge("bob", "post", amount=100_000)
        assert (await verify(bob.database)).findings == ()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
async def test_every_kind_of_harm_to_lots_and_holds_is_found_and_settled(
    bob: Bob, harm: Harm
) -> None:
    """The sweep and the look at one user find it. The repair settles it and moves no credits."""
    await harm.do(bob)
    found = await verify(bob.database)
    assert {finding.code for finding in found.findings} == harm.codes
    assert {finding.user_id for finding in found.findings} == {"bob"}
    assert found.findings_total == len(found.findings)
    alone = await verify(bob.database, user_ids=["bob"])
    assert sorted(alone.findings, key=str) == sorted(found.findings, key=str)
    for finding in found.findings:
        assert "None" not in finding.detail

    before = {name: await rows(bob.database, name) for name in ("users", "holds", "transactions")}
    await repair(bob.database, **WHO, dry_run=True)
    for name, documents in before.items():
        assert await rows(bob.database, name) == documents
    done = await repair(bob.database, **WHO)
    assert done.is_complete is harm.is_repairable
    again = await verify(bob.database)
    assert (again.findings == ()) is harm.is_repairable
    for document in before["transactions"]:
        assert document in await rows(bob.database, "transactions")
    if harm.is_repairable:
        await check_after_repair(bob)


async def check_after_repair(bob: Bob) -> None:
    """All goes on from the corrected books, and they stay right."""
    account = await bob.ledger.get_user("bob")
    if account.available > 0:
        await bob.ledger.charge("bob", "post", amount=1)
    for hold in await bob.ledger.get_holds("bob", status="active"):
        await bob.ledger.release_hold(hold.hold_id)
    assert (await bob.ledger.get_user("bob")).held == 0
    bob.clock.advance(40 * DAY)
    await bob.ledger.grant("bob", 1, action="gift")
    again = await verify(bob.database, max_clock_skew_seconds=None)
    assert again.findings == ()

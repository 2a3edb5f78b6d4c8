"""Lots, overdrafts and holds on a real server: what is stored, read and written together."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

from credit_mongo import (
    AccountDataError,
    AccountLimitError,
    AuditConfig,
    CreditLedger,
    HoldClosedError,
    HoldExceededError,
    HoldNotFoundError,
    InsufficientCreditsError,
    InvalidRequestError,
    RevokeExceedsGrantError,
    TransactionNotFoundError,
)
from tests.integration.operations.accounts import (
    KEY_LIFETIME,
    START,
    Clock,
    check_types,
    one,
    prices,
)
from tests.integration.promises import Client, Database, rows

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")

HOUR = timedelta(hours=1)


# Lots


async def test_a_lot_ends_at_its_moment_whoever_looks(
    books: CreditLedger, shared: Database, user: str, clock: Clock
) -> None:
    """Reads see the end without writing; the next operation posts it, dated when it was due."""
    await books.create_user(user, credits=30)
    grant = await books.grant(user, 100, action="promo", expires_at=START + HOUR, source="promo")
    clock.now = START + HOUR - timedelta(milliseconds=1)
    found = await books.get_user(user)
    assert (found.credits, found.available, len(found.lots)) == (130, 130, 1)
    clock.now = START + HOUR
    found = await books.get_user(user)
    assert (found.credits, found.lots, found.seq) == (30, (), 2)
    assert (await books.quote(user, "post")).balance == 30
    assert len(await rows(shared, "transactions", userId=user)) == 2

    clock.now = START + HOUR * 5
    with pytest.raises(InsufficientCreditsError) as refused:
        await books.charge(user, "post", amount=31)
    assert refused.value.available == 30
    charge = await books.charge(user, "post", amount=30)
    history = list(await books.get_history(user))
    told = [(row.operation, row.amount) for row in history[:2]]
    assert told == [("charge", -30), ("expire", -100)]
    assert history[1].created_at == START + HOUR
    assert history[1].written_at == clock.now
    [leg] = history[1].legs
    assert (leg.lot_id, leg.source, leg.amount) == (grant.lot_id, "promo", -100)
    assert charge.balance_before == 30
    for document in await rows(shared, "transactions", userId=user):
        check_types({name: value for name, value in document.items() if name != "legs"})
    # An account without lots has nothing of them any more.
    assert "creditExtras" not in await one(shared, "users", _id=user)


async def test_lots_that_are_alike_are_one_and_the_65th_is_refused(
    books: CreditLedger, user: str
) -> None:
    """Equal priority, end and source make one lot."""
    await books.create_user(user)
    first = await books.grant(user, 1, action="promo", source="a", priority=10)
    again = await books.grant(user, 2, action="promo", source="a", priority=10)
    assert again.lot_id == first.lot_id == first.transaction_id
    for number in range(63):
        await books.grant(user, 1, action="promo", source=f"b{number}")
    before = await books.get_user(user)
    assert len(before.lots) == 64
    with pytest.raises(AccountLimitError) as refused:
        await books.grant(user, 1, action="promo", source="c")
    assert (refused.value.what, refused.value.limit) == ("lots", 64)
    assert await books.get_user(user) == before
    # Into a lot that is there, and into the base, more can be given.
    await books.grant(user, 1, action="promo", source="a", priority=10)
    await books.grant(user, 1, action="bonus")


async def test_a_refund_of_a_charge_goes_back_to_the_lots(
    books: CreditLedger, user: str, clock: Clock
) -> None:
    """Also when the row of the charge is all that is left of its lot, and also after its end."""
    await books.create_user(user, credits=5)
    await books.grant(user, 10, action="promo", expires_at=START + HOUR)
    charge = await books.charge(user, "post", amount=12)
    back = await books.refund(user, 4, action="sorry", transaction_id=charge.transaction_id)
    assert (back.expired_amount, back.balance_after) == (0, 7)
    assert [lot.amount for lot in (await books.get_user(user)).lots] == [2]
    clock.now = START + HOUR * 2
    back = await books.refund(
        user, 8, action="sorry", transaction_id=charge.transaction_id, idempotency_key=user
    )
    assert (back.balance_before, back.expired_amount, back.balance_after) == (5, 8, 5)
    again = await books.refund(
        user, 8, action="sorry", transaction_id=charge.transaction_id, idempotency_key=user
    )
    assert again == back


async def test_refunded_credits_live_on_for_the_configured_grace(
    shared: Database, user: str, clock: Clock
) -> None:
    """The lot's end plus the grace, in a lot of their own."""
    config = prices(lots={"refund_grace_seconds": 7200})
    async with CreditLedger(shared, config, clock=clock) as books:
        await books.create_user(user)
        await books.grant(user, 10, action="promo", expires_at=START + HOUR)
        charge = await books.charge(user, "post", amount=10)
        clock.now = START + HOUR * 2
        back = await books.refund(user, 10, action="sorry", transaction_id=charge.transaction_id)
        assert (back.expired_amount, back.balance_after) == (0, 10)
        [lot] = (await books.get_user(user)).lots
        assert lot.expires_at == START + HOUR * 3
        clock.now = START + HOUR * 3
        assert await books.get_balance(user) == 0


async def test_a_grant_is_revoked_once(books: CreditLedger, user: str) -> None:
    """The sum of all revocations of a grant never exceeds it."""
    await books.create_user(user)
    grant = await books.grant(user, 100, action="purchase", source="card")
    await books.charge(user, "post", amount=30)
    first = await books.revoke(grant.transaction_id, 60, action="chargeback", idempotency_key=user)
    assert (first.amount, first.uncollected, first.balance_after) == (60, 0, 10)
    again = await books.revoke(grant.transaction_id, 60, action="chargeback", idempotency_key=user)
    assert (again, again.replayed) == (first, True)
    rest = await books.revoke(grant.transaction_id, action="chargeback")
    assert (rest.amount, rest.uncollected, rest.balance_after) == (10, 30, 0)
    with pytest.raises(RevokeExceedsGrantError) as refused:
        await books.revoke(grant.transaction_id, action="chargeback")
    assert (refused.value.revocable, refused.value.requested) == (0, 0)
    charge = await books.grant(user, 1, action="bonus")
    assert (await books.get_history(user))[1].revoke_of == grant.transaction_id
    for stranger in (str(ObjectId()), "no id"):
        with pytest.raises(TransactionNotFoundError):
            await books.revoke(stranger, action="chargeback")
    assert charge.balance_after == 1


async def test_charges_at_once_never_exceed_what_is_available(
    books: CreditLedger, user: str
) -> None:
    """Base, lots, holds and overdraft together."""
    await books.create_user(user, credits=100)
    await books.grant(user, 50, action="promo", expires_at=START + HOUR)
    await books.set_overdraft(user, 25)
    await books.place_hold(user, "post", amount=40)
    outcomes = await asyncio.gather(
        *(books.charge(user, "post", amount=10) for _ in range(30)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 13
    found = await books.get_user(user)
    assert (found.credits, found.available, found.held) == (20, 5, 40)


# Holds


async def test_a_hold_and_its_capture_are_stored_with_the_account(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """The hold's document and the account's part of it tell the same."""
    await books.create_user(user, credits=100)
    metadata = {"job": 7}
    hold = await books.place_hold(
        user, "tokens", variables={"token": 30_000}, metadata=metadata, idempotency_key=user
    )
    assert (hold.amount, hold.status, hold.price) == (40, "active", "{token} * 0.001 + 10")
    assert hold.metadata == metadata
    again = await books.place_hold(
        user, "tokens", variables={"token": 30_000}, metadata=metadata, idempotency_key=user
    )
    assert (again, again.replayed) == (hold, True)
    account = await one(shared, "users", _id=user)
    assert account["creditExtras"]["holds"][0]["id"] == ObjectId(hold.hold_id)
    check_types(account)
    part = await books.capture_hold(hold.hold_id, variables={"token": 5000}, final=False)
    assert (part.cost, part.captured, part.balance_after) == (15, 15, 85)
    assert (await books.get_user(user)).available == 60
    # The same total again changes nothing, and a smaller one is refused.
    same = await books.capture_hold(hold.hold_id, amount=15, final=False)
    assert (same.transaction_id, same.cost, same.captured) == (None, 0, 15)
    with pytest.raises(InvalidRequestError, match="a total"):
        await books.capture_hold(hold.hold_id, amount=14)
    final = await books.capture_hold(hold.hold_id, amount=20)
    assert (final.cost, final.captured, final.balance_after) == (5, 20, 80)
    assert (await books.get_user(user)).available == 80
    assert (await books.get_hold(hold.hold_id)).status == "captured"
    assert (await books.get_history(user))[0].hold_id == hold.hold_id
    # A settlement that is repeated is not paid twice, and another one is refused.
    assert (await books.capture_hold(hold.hold_id, amount=20)).cost == 0
    for closed in (
        books.capture_hold(hold.hold_id, amount=21),
        books.release_hold(hold.hold_id),
        books.extend_hold(hold.hold_id, ttl=60),
    ):
        with pytest.raises(HoldClosedError) as refused:
            await closed
        assert refused.value.status == "captured"
    document = await one(shared, "holds", _id=ObjectId(hold.hold_id))
    assert (document["status"], document["captured"]) == ("captured", 20)
    assert "creditExtras" not in await one(shared, "users", _id=user)


async def test_a_capture_is_refunded_like_a_charge(books: CreditLedger, user: str) -> None:
    """To the lots that the hold had pinned."""
    await books.create_user(user, credits=5)
    await books.grant(user, 10, action="promo", source="promo")
    hold = await books.place_hold(user, "post", amount=12)
    capture = await books.capture_hold(hold.hold_id)
    assert capture.transaction_id is not None
    await books.refund(user, 9, action="sorry", transaction_id=capture.transaction_id)
    found = await books.get_user(user)
    assert (found.credits, [lot.amount for lot in found.lots]) == (12, [10])


async def test_a_released_hold_takes_nothing(books: CreditLedger, user: str) -> None:
    """Releasing it again changes nothing."""
    await books.create_user(user, credits=100)
    hold = await books.place_hold(user, "post", amount=60)
    released = await books.release_hold(hold.hold_id)
    assert (released.status, (await books.get_user(user)).available) == ("released", 100)
    assert await books.release_hold(hold.hold_id) == released
    with pytest.raises(HoldClosedError):
        await books.capture_hold(hold.hold_id)
    assert await books.get_balance(user) == 100


async def test_a_hold_ends_by_itself_and_late_captures_pay_the_rest(
    books: CreditLedger, shared: Database, user: str, clock: Clock
) -> None:
    """What was last reported is charged, dated at the hold's end."""
    await books.create_user(user, credits=100)
    hold = await books.place_hold(user, "post", amount=80, ttl=60)
    other = await books.place_hold(user, "post", amount=10, ttl=60, on_timeout="release")
    await books.extend_hold(hold.hold_id, used=35)
    clock.now = START + timedelta(seconds=60)
    found = await books.get_user(user)
    assert (found.credits, found.available, found.held) == (65, 65, 0)
    seen = {each.hold_id: each for each in await books.get_holds(user)}
    assert (seen[hold.hold_id].status, seen[hold.hold_id].captured) == ("expired", 35)
    assert (seen[other.hold_id].status, seen[other.hold_id].captured) == ("expired", 0)
    assert await books.get_holds(user, status="active") == ()
    assert (await one(shared, "holds", _id=ObjectId(hold.hold_id)))["status"] == "active"
    clock.now = START + timedelta(seconds=61)
    late = await books.capture_hold(hold.hold_id, amount=50)
    assert (late.late, late.cost, late.captured, late.balance_after) == (True, 15, 50, 50)
    assert (await books.capture_hold(hold.hold_id, amount=50)).cost == 0
    assert (await one(shared, "holds", _id=ObjectId(other.hold_id)))["status"] == "expired"
    row = (await books.get_history(user))[1]
    assert (row.operation, row.amount, row.hold_id) == ("capture", -35, hold.hold_id)
    assert row.created_at == START + timedelta(seconds=60)
    clock.now = START + timedelta(days=1, seconds=61)
    with pytest.raises(HoldClosedError) as refused:
        await books.capture_hold(hold.hold_id, amount=60)
    assert refused.value.status == "expired"


async def test_a_heartbeat_never_moves_the_end_back(
    books: CreditLedger, user: str, clock: Clock
) -> None:
    """A larger amount needs to be available; a smaller one is free again."""
    await books.create_user(user, credits=100)
    hold = await books.place_hold(user, "post", amount=50, ttl=600)
    assert (await books.extend_hold(hold.hold_id, ttl=60)).expires_at == hold.expires_at
    with pytest.raises(InsufficientCreditsError) as refused:
        await books.extend_hold(hold.hold_id, amount=101)
    assert (refused.value.required, refused.value.available) == (51, 50)
    await books.extend_hold(hold.hold_id, amount=90)
    assert (await books.get_user(user)).available == 10
    await books.extend_hold(hold.hold_id, amount=20, used=5)
    assert (await books.get_user(user)).available == 80
    with pytest.raises(InvalidRequestError, match="5 reported before"):
        await books.extend_hold(hold.hold_id, used=4)
    clock.now = START + timedelta(seconds=600)
    with pytest.raises(HoldClosedError):
        await books.extend_hold(hold.hold_id, ttl=60)
    assert await books.get_balance(user) == 95


@pytest.mark.parametrize(
    ("overage", "overdraft", "taken"),
    [("available", 30, 50), ("debt", 15, 65), ("debt", 30, 70)],
)
async def test_an_overrun_is_charged_as_far_as_its_policy_goes(
    books: CreditLedger, user: str, overage: Any, overdraft: int, taken: int
) -> None:
    """What could not be taken stands in the result and in the row."""
    await books.create_user(user, credits=50)
    await books.set_overdraft(user, overdraft)
    hold = await books.place_hold(user, "post", amount=40, overage=overage)
    capture = await books.capture_hold(hold.hold_id, amount=70)
    assert (capture.cost, capture.uncollected) == (taken, 70 - taken)
    row = (await books.get_history(user))[0]
    assert (row.amount, row.uncollected) == (-taken, 70 - taken)


async def test_an_overrun_can_be_rejected_and_leaves_the_hold(
    books: CreditLedger, user: str
) -> None:
    """Then the caller decides."""
    await books.create_user(user, credits=100)
    hold = await books.place_hold(user, "post", amount=40, overage="reject")
    with pytest.raises(HoldExceededError) as refused:
        await books.capture_hold(hold.hold_id, amount=41)
    assert (refused.value.held, refused.value.requested) == (40, 41)
    assert (await books.get_hold(hold.hold_id)).status == "active"
    assert (await books.capture_hold(hold.hold_id, amount=40)).cost == 40


async def test_holds_of_others_and_of_nobody_are_not_found(books: CreditLedger, user: str) -> None:
    """Whatever the call."""
    await books.create_user(user, credits=1)
    for call in (
        books.get_hold,
        books.release_hold,
        books.capture_hold,
        books.extend_hold,
    ):
        for hold_id in (str(ObjectId()), "nothing"):
            with pytest.raises(HoldNotFoundError):
                await call(hold_id)
    assert await books.get_holds(user) == ()


async def test_more_ends_than_a_commit_writes_are_written_by_several(
    books: CreditLedger, shared: Database, user: str, clock: Clock
) -> None:
    """The charge waits until all of them are written, and no other user waits with it."""
    await books.create_user(user, credits=1000)
    await asyncio.gather(*(books.place_hold(user, "post", amount=1) for _ in range(256)))
    with pytest.raises(AccountLimitError):
        await books.place_hold(user, "post", amount=1)
    holds = await books.get_holds(user, limit=300)
    await asyncio.gather(*(books.extend_hold(hold.hold_id, used=1) for hold in holds))
    clock.now = START + HOUR
    charge, balance = await asyncio.gather(
        books.charge(user, "post", amount=1), books.get_balance(user)
    )
    assert (charge.balance_before, balance) in {(744, 744), (744, 743)}
    written = await rows(shared, "transactions", userId=user, operation="capture")
    assert len(written) == 256
    assert await rows(shared, "holds", userId=user, status="active") == []


async def test_holds_work_without_an_audit_log(shared: Database, user: str, clock: Clock) -> None:
    """Nothing of a hold depends on the rows of the log."""
    config = prices(audit=AuditConfig(enabled=False))
    async with CreditLedger(shared, config, clock=clock) as books:
        await books.create_user(user, credits=10)
        hold = await books.place_hold(user, "post", amount=5)
        await books.extend_hold(hold.hold_id, used=3)
        await books.release_hold(hold.hold_id)
        assert (await books.get_user(user)).available == 10


async def test_attempts_on_holds_are_audited(books: CreditLedger, user: str) -> None:
    """Placing and releasing as successes, refusals as failures; plain heartbeats are too many."""
    await books.create_user(user, credits=10)
    hold = await books.place_hold(user, "post", amount=5)
    await books.extend_hold(hold.hold_id, used=3)
    await books.extend_hold(hold.hold_id, amount=6)
    await books.extend_hold(hold.hold_id, ttl=60, metadata={"step": 2})
    await books.release_hold(hold.hold_id)
    with pytest.raises(HoldClosedError):
        await books.extend_hold(hold.hold_id, used=4)
    log = [(row.operation, row.status) for row in await books.get_audit_log(user)]
    assert log == [
        ("extend_hold", "failed"),
        ("release_hold", "success"),
        ("extend_hold", "success"),
        ("extend_hold", "success"),
        ("place_hold", "success"),
        ("create_user", "success"),
    ]


@pytest.mark.drivers("pymongo", "motor")
async def test_an_aborted_transaction_leaves_the_hold_as_it_was(
    books: CreditLedger, client: Client, user: str
) -> None:
    """A capture in the application's transaction commits or aborts with it."""
    await books.create_user(user, credits=10)
    hold = await books.place_hold(user, "post", amount=5)
    for commits in (False, True):
        async with client.start_session() as session:
            await session.start_transaction()
            await books.capture_hold(hold.hold_id, amount=4, session=session)
            assert (await books.get_hold(hold.hold_id, session=session)).status == "captured"
            await (session.commit_transaction() if commits else session.abort_transaction())
        found = await books.get_user(user)
        assert (found.credits, found.held) == ((6, 0) if commits else (10, 5))


async def test_a_key_of_a_hold_is_remembered_for_its_time(
    books: CreditLedger, user: str, clock: Clock
) -> None:
    """Then the same call is a new hold."""
    await books.create_user(user, credits=10)
    first = await books.place_hold(user, "post", amount=1, ttl=3600, idempotency_key=user)
    clock.now = START + KEY_LIFETIME * 3
    second = await books.place_hold(user, "post", amount=1, ttl=3600, idempotency_key=user)
    assert second.hold_id != first.hold_id


BAD_EXTRAS: list[Any] = [
    7,
    {"lots": 7},
    {"lots": [7], "overdraft": 0},
    {"lots": [{"id": None, "amount": 1}], "overdraft": 0},
    {"lots": [{"id": ObjectId(), "amount": -1, "priority": 50}], "overdraft": 0},
    {"lots": [{"id": ObjectId(), "amount": 1.5, "priority": 50}], "overdraft": 0},
    {"lots": [], "holds": [{"id": ObjectId()}], "overdraft": 0},
    {"lots": [], "overdraft": "much"},
    {"lots": []},
]


@pytest.mark.parametrize("number", range(len(BAD_EXTRAS)))
async def test_extras_that_the_ledger_did_not_write_are_refused_and_left_alone(
    books: CreditLedger, shared: Database, user: str, number: int
) -> None:
    """The error names the field; nothing is written over it."""
    await books.create_user(user, credits=10)
    await shared.command(
        {
            "update": "users",
            "updates": [{"q": {"_id": user}, "u": {"$set": {"creditExtras": BAD_EXTRAS[number]}}}],
            "bypassDocumentValidation": True,
        }
    )
    before = await one(shared, "users", _id=user)
    for call in (books.get_user(user), books.charge(user, "post", amount=1)):
        with pytest.raises(AccountDataError) as refused:
            await call
        assert refused.value.field == "creditExtras"
    assert await one(shared, "users", _id=user) == before


async def test_a_hold_keeps_metadata_that_looks_like_a_reference(
    books: CreditLedger, user: str
) -> None:
    """Drivers read such a mapping as a reference to a document. The ledger gives it back as is."""
    metadata = {"$ref": "jobs", "$id": 7}
    await books.create_user(user, credits=10)
    hold = await books.place_hold(user, "post", amount=5, metadata=metadata)
    extended = await books.extend_hold(hold.hold_id, amount=6)
    assert extended.metadata == (await books.get_hold(hold.hold_id)).metadata == metadata
    assert (await books.release_hold(hold.hold_id)).metadata == metadata


async def test_a_hold_whose_document_is_gone_stops_no_charge(
    books: CreditLedger, shared: Database, user: str, clock: Clock
) -> None:
    """It ends by what the account knows of it."""
    await books.create_user(user, credits=30)
    hold = await books.place_hold(user, "post", amount=20, ttl=60)
    await books.extend_hold(hold.hold_id, used=15)
    await shared["holds"].delete_one({"_id": ObjectId(hold.hold_id)})
    clock.now = START + HOUR
    assert (await books.charge(user, "post", amount=15)).balance_before == 15
    assert (await books.get_user(user)).held == 0


async def test_a_new_account_begins_without_extras_of_before(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """Somebody has removed the account's credits from a document by hand, but not its lots."""
    lot = {"id": ObjectId(), "amount": 50, "expiresAt": None, "priority": 10}
    await shared.command(
        {
            "insert": "users",
            "documents": [
                {"_id": user, "creditExtras": {"lots": [lot], "holds": [], "overdraft": 0}}
            ],
            "bypassDocumentValidation": True,
        }
    )
    await books.create_user(user, credits=10)
    found = await books.get_user(user)
    assert (found.credits, found.available, found.lots) == (10, 10, ())
    assert (await books.charge(user, "post", amount=10)).balance_after == 0


async def test_a_replayed_capture_equals_the_first(
    books: CreditLedger, user: str, clock: Clock
) -> None:
    """Also in its types, and also for a capture after the hold's end."""
    await books.create_user(user, credits=30)
    hold = await books.place_hold(user, "post", amount=20, ttl=60)
    clock.now = START + HOUR
    first = await books.capture_hold(hold.hold_id, amount=7, idempotency_key=user)
    again = await books.capture_hold(hold.hold_id, amount=7, idempotency_key=user)
    assert (again, again.replayed) == (first, True)
    assert first.late is again.late is True


@pytest.mark.parametrize("is_posted", [True, False])
async def test_a_revocation_does_not_take_again_what_has_expired(
    books: CreditLedger, user: str, clock: Clock, is_posted: bool
) -> None:
    """Whether the row of the end was written before, or is written with the revocation."""
    await books.create_user(user, credits=50)
    grant = await books.grant(user, 100, action="promo", expires_at=START + HOUR)
    await books.charge(user, "post", amount=30)
    clock.now = START + HOUR * 2
    if is_posted:
        await books.grant(user, 1, action="bonus")
    revoked = await books.revoke(grant.transaction_id, action="chargeback")
    assert (revoked.amount, revoked.uncollected) == (30, 70)
    assert revoked.balance_after == 20 + is_posted

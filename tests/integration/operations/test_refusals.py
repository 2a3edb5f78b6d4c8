"""What each operation refuses, and what that leaves behind."""

from __future__ import annotations

import pytest
from bson import ObjectId

from credit_mongo import (
    CreditLedger,
    InsufficientCreditsError,
    InvalidTierChangeError,
    UserNotFoundError,
)
from tests.integration.operations.accounts import LATER, METADATA, NOW, START, Clock, one
from tests.integration.operations.refusals import REFUSALS, USER, Refused
from tests.integration.promises import Database, count

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
async def test_a_refusal_is_audited_and_changes_nothing(
    case: Refused, books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The error has its code and attributes.

    Only an audit row is written, and the key stays free.
    """
    await books.create_user(user, credits=50, membership_tier="premium")
    before = await one(shared, "users", _id=user)
    clock.now = NOW
    key = f"key-{user}"

    with pytest.raises(case.error) as caught:
        await case.call(books, user, {"idempotency_key": key, "metadata": METADATA})

    error = caught.value
    assert type(error) is case.error
    assert error.code == case.code
    for name, fact in case.facts.items():
        assert getattr(error, name) == (user if fact is USER else fact), name
    assert await one(shared, "users", _id=user) == before
    assert await count(shared, "transactions", userId=user) == 1
    failed = await one(shared, "audit_logs", userId=user, status="failed")
    assert isinstance(failed.pop("_id"), ObjectId)
    assert failed == {
        "userId": user,
        "operation": case.operation,
        "action": case.action,
        "status": "failed",
        "details": {"code": case.code},
        "metadata": METADATA,
        "errorMessage": str(error),
        "createdAt": NOW,
    }
    assert await count(shared, "idempotency_records", userId=user) == 0
    assert (await books.charge(user, "post", idempotency_key=key)).replayed is False


async def test_every_operation_on_an_unknown_user_is_refused_and_audited(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """An unknown user has an audit log but no history."""
    for work in (
        books.charge(user, "post"),
        books.refund(user, 1, action="post"),
        books.grant(user, 1, action="gift"),
        books.upgrade_tier(user, "premium"),
        books.downgrade_tier(user, "free"),
        books.renew_tier(user, membership_expires_at=None),
        books.get_user(user),
        books.get_balance(user),
        books.get_history(user),
        books.quote(user, "post"),
        books.validate_access(user, "post"),
    ):
        with pytest.raises(UserNotFoundError) as caught:
            await work
        assert caught.value.user_id == user
        assert caught.value.code == "USER_NOT_FOUND"
    assert await count(shared, "users", _id=user) == 0
    attempts = await books.get_audit_log(user)
    assert [attempt.operation for attempt in attempts][::-1] == [
        *("charge", "refund", "grant", "upgrade_tier", "downgrade_tier", "renew_tier")
    ]
    assert {attempt.status for attempt in attempts} == {"failed"}


async def test_a_user_without_a_tier_cannot_downgrade_or_renew(
    books: CreditLedger, user: str
) -> None:
    """Both errors say that the user has no tier."""
    await books.create_user(user, credits=50)
    for work, target in (
        (books.downgrade_tier(user, "free"), "free"),
        (books.renew_tier(user, membership_expires_at=None), None),
    ):
        with pytest.raises(InvalidTierChangeError) as caught:
            await work
        assert (caught.value.current_tier, caught.value.target_tier) == (None, target)


async def test_time_never_goes_back_for_a_user(
    books: CreditLedger, clock: Clock, user: str
) -> None:
    """Newest first is the order of events, even for refusals and when a clock is behind."""
    clock.now = LATER
    await books.create_user(user, credits=15)
    clock.now = START
    charge = await books.charge(user, "post")
    assert charge.created_at == LATER
    with pytest.raises(InsufficientCreditsError):
        await books.charge(user, "post")
    assert [row.seq for row in await books.get_history(user)] == [2, 1]
    attempts = await books.get_audit_log(user)
    assert [(row.operation, row.status) for row in attempts] == [
        ("charge", "failed"),
        ("charge", "success"),
        ("create_user", "success"),
    ]

"""What each operation answers and stores when it is done."""

from __future__ import annotations

import pytest
from bson import Int64, ObjectId

from credit_mongo import (
    CreditLedger,
    RefundExceedsChargeError,
    User,
)
from tests.integration.operations.accounts import (
    KEY_LIFETIME,
    LATER,
    METADATA,
    NOW,
    SECOND,
    START,
    Clock,
    check_types,
    insert_unchecked,
    one,
)
from tests.integration.operations.successes import PAST, SUCCESSES, Success
from tests.integration.promises import Database, count

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")

# Fields that the application keeps in the account's document.
UNKNOWN = {
    "email": "ann@example.org",
    "credits_note": None,
    "profile": {"credits": 7, "$set": 1, "a.b": [1, 2.5]},
    "big": Int64(5),
    "small": 5,
    "half": 0.5,
}


@pytest.mark.parametrize("case", SUCCESSES, ids=lambda case: case.name)
async def test_a_success_stores_exactly_what_is_documented(
    case: Success, books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The result, the account and every row match the documentation, to the last field.

    The application's own fields in the account stay as they are. A repeat with the key returns the
    same result.
    """
    account = {
        "_id": user,
        "credits": 50,
        "membershipTier": case.tier,
        "membershipExpiresAt": case.expires_at,
        "seq": Int64(4),
        "createdAt": PAST,
        "updatedAt": START,
        **UNKNOWN,
    }
    await insert_unchecked(shared, "users", account)
    clock.now = NOW
    key = f"key-{user}"
    options = {"idempotency_key": key, "metadata": METADATA}

    result = await case.call(books, user, options)

    written = await one(shared, "transactions", userId=user)
    transaction_id = written["_id"]
    assert isinstance(transaction_id, ObjectId)
    assert result == case.result(user, str(transaction_id))
    assert result.replayed is False
    after = 50 + case.amount
    numbers = {"amount": case.amount, "balanceBefore": 50, "balanceAfter": after}
    assert written == {
        "_id": transaction_id,
        "userId": user,
        "seq": 5,
        "operation": case.operation,
        "action": case.action,
        **numbers,
        "metadata": METADATA,
        "idempotencyKey": key,
        "keyExpiresAt": NOW + KEY_LIFETIME,
        "createdAt": NOW,
    }
    audit_log = await one(shared, "audit_logs", userId=user)
    assert audit_log == {
        "_id": transaction_id,
        "userId": user,
        "operation": case.operation,
        "action": case.action,
        "status": "success",
        "details": {**numbers, **case.details},
        "metadata": METADATA,
        "errorMessage": None,
        "createdAt": NOW,
    }
    record = await one(shared, "idempotency_records", userId=user)
    assert record.pop("fingerprint")
    assert record.pop("result")
    assert record == {
        "_id": key,
        "operation": case.operation,
        "userId": user,
        "createdAt": NOW,
        "expiresAt": NOW + KEY_LIFETIME,
    }
    stored = await one(shared, "users", _id=user)
    changed = {"credits": after, "seq": 5, "updatedAt": NOW, **case.changes}
    assert stored == {**account, **changed}
    assert list(stored) == list(account)
    for document in (written, {**audit_log, "metadata": None}):
        check_types({**document, "metadata": None})
    check_types({name: stored[name] for name in ("credits", "seq", "big")})
    assert type(stored["small"]) is int

    clock.now = NOW + SECOND
    again = await case.call(books, user, {**options, "metadata": None})
    assert again == result
    assert again.replayed is True
    assert await books.get_balance(user) == after
    assert await count(shared, "audit_logs", userId=user) == 1


@pytest.mark.parametrize("opening", [0, 40])
async def test_a_new_user_starts_with_a_transaction(
    books: CreditLedger, shared: Database, user: str, opening: int
) -> None:
    """This holds with no credits, too. The caller gets the account, which has all fields."""
    result = await books.create_user(
        user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        metadata=METADATA,
        idempotency_key=user,
    )
    expected = User(
        user_id=user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        seq=1,
        created_at=START,
        updated_at=START,
    )
    assert result == await books.get_user(user) == expected
    stored = await one(shared, "users", _id=user)
    assert stored == {
        "_id": user,
        "credits": opening,
        "membershipTier": "premium",
        "membershipExpiresAt": LATER,
        "seq": 1,
        "createdAt": START,
        "updatedAt": START,
    }
    check_types(stored)
    [transaction] = await books.get_history(user)
    assert (transaction.seq, transaction.amount, transaction.balance_before) == (1, opening, 0)
    assert (transaction.operation, transaction.action) == ("create_user", "create_user")
    assert transaction.metadata == METADATA
    await books.charge(user, "rebate", variables={"n": 0})
    again = await books.create_user(
        user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        idempotency_key=user,
    )
    assert again == expected
    assert again.replayed


async def test_linked_refunds_name_their_charge_and_stop_at_what_it_took(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """``refundOf`` holds the charge's id. Refunds count exactly against what the charge took."""
    await books.create_user(user, credits=50)
    charge = await books.charge(user, "post")
    for amount in (4, 6):
        refund = await books.refund(
            user, amount, action="post", transaction_id=charge.transaction_id.upper()
        )
        stored = await one(shared, "transactions", _id=ObjectId(refund.transaction_id))
        assert stored["refundOf"] == ObjectId(charge.transaction_id)
    with pytest.raises(RefundExceedsChargeError) as caught:
        await books.refund(user, 1, action="post", transaction_id=charge.transaction_id)
    assert (caught.value.refundable, caught.value.requested) == (0, 1)
    newest = (await books.get_history(user, limit=1))[0]
    assert newest.refund_of == charge.transaction_id
    assert await books.get_balance(user) == 50

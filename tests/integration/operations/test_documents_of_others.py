"""Accounts and rows that an application or the Credit SDK wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from bson import ObjectId

from credit_mongo import (
    AccountDataError,
    CreditLedger,
    IdempotencyConflictError,
    RefundExceedsChargeError,
)
from tests.integration.operations.accounts import LATER, SECOND, START, Clock, insert_unchecked, one
from tests.integration.promises import Database, Row

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")


BAD_FIELDS: list[Row] = [
    {"credits": 50.0},
    {"credits": 0.5},
    {"credits": -1},
    {"credits": "50"},
    {"credits": None},
    {"credits": True},
    {"membershipTier": 1},
    {"membershipExpiresAt": "2031-01-01"},
    {"membershipExpiresAt": 1_900_000_000},
    {"seq": 1.0},
    {"seq": -1},
]


async def test_an_account_that_cannot_be_read_is_refused_and_left_alone(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """Others in the batch are charged. The refusals name the broken field and are audited."""
    bad = [{"_id": f"{user}-{n}", "credits": 50, **f} for n, f in enumerate(BAD_FIELDS)]
    bad.append({"_id": f"{user}-{len(bad)}", "membershipTier": "premium"})
    fields = [*[next(iter(fields)) for fields in BAD_FIELDS], "credits"]
    good = [f"{user}-good-{n}" for n in range(8)]
    await insert_unchecked(shared, "users", *bad)
    await asyncio.gather(*[books.create_user(name, credits=10) for name in good])

    names = [document["_id"] for document in bad]
    outcomes: list[Any] = await asyncio.gather(
        *[books.charge(name, "post") for name in (*names, *good)], return_exceptions=True
    )

    for name, wrong, outcome in zip(names, fields, outcomes, strict=False):
        assert isinstance(outcome, AccountDataError), repr(outcome)
        assert (outcome.user_id, outcome.field) == (name, wrong)
        failed = await one(shared, "audit_logs", userId=name)
        assert failed["details"] == {"code": "ACCOUNT_DATA"}
    assert [outcome.balance_after for outcome in outcomes[len(bad) :]] == [0] * len(good)
    for document in bad:
        assert await one(shared, "users", _id=document["_id"]) == document
        for work in (
            books.get_balance(document["_id"]),
            books.grant(document["_id"], 1, action="gift"),
            books.upgrade_tier(document["_id"], "enterprise"),
            books.quote(document["_id"], "post"),
        ):
            with pytest.raises(AccountDataError):
                await work


async def test_an_account_that_an_application_created_is_charged_as_it_is(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """An account without ``seq``, tier and dates starts at 1, and no field is made up."""
    await insert_unchecked(shared, "users", {"_id": user, "credits": 30, "name": "Ann"})
    assert await books.get_balance(user) == 30
    result = await books.charge(user, "post")
    assert (result.balance_before, result.balance_after) == (30, 20)
    assert await one(shared, "users", _id=user) == {
        "_id": user,
        "credits": 20,
        "name": "Ann",
        "seq": 1,
        "updatedAt": START,
    }
    assert (await books.get_history(user))[0].seq == 1


def sdk_rows(user: str, moment: datetime, ids: list[Any]) -> tuple[list[Row], list[Row]]:
    """Transactions and audit logs as the Credit SDK writes them."""
    base = {"userId": user, "action": "post", "metadata": {}, "createdAt": moment}
    transactions = [
        {"_id": i, **base, "amount": -10, "balanceBefore": 50, "balanceAfter": 40} for i in ids
    ]
    return transactions, [{"_id": i, **base, "status": "success"} for i in ids]


async def all_pages(
    read: Callable[..., Awaitable[Any]], user: str, limit: int, offset: int = 0
) -> list[Any]:
    """Return all rows after the offset, page by page, through cursors."""
    found: list[Any] = []
    page = await read(user, limit=limit, offset=offset)
    while True:
        assert len(page) <= limit
        found += page
        if page.next_cursor is None:
            return found
        page = await read(user, limit=limit, cursor=page.next_cursor)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_rows_of_the_credit_sdk_are_read_beside_those_of_the_library(
    books: CreditLedger, shared: Database, user: str, limit: int
) -> None:
    """Pages of any size show each row once, though many share one millisecond and have no seq.

    Some of this library's rows share that millisecond, too.
    """
    await books.create_user(user, credits=50)
    await books.charge(user, "post")
    ids = [ObjectId() for _ in range(5)]
    for moment in (START, START - SECOND):
        transactions, audit_logs = sdk_rows(user, moment, ids)
        await insert_unchecked(shared, "transactions", *transactions)
        await insert_unchecked(shared, "audit_logs", *audit_logs)
        ids = [ObjectId() for _ in range(5)]

    history = await all_pages(books.get_history, user, limit)
    audit = await all_pages(books.get_audit_log, user, limit)

    for offset in (1, 4, 8):
        assert await all_pages(books.get_history, user, limit, offset) == history[offset:]
        assert await all_pages(books.get_audit_log, user, limit, offset) == audit[offset:]
    assert len({row.transaction_id for row in history}) == len(history) == 12
    assert len({row.audit_id for row in audit}) == len(audit) == 12
    assert [row.created_at for row in history] == [START] * 7 + [START - SECOND] * 5
    assert sorted(row.seq for row in history) == [0] * 10 + [1, 2]
    assert [row.operation for row in history].count("") == 10


async def test_rows_of_the_credit_sdk_with_other_ids_are_read_page_by_page(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """The SDK's ids can be strings, which at one millisecond stand beside ObjectIds."""
    await books.create_user(user, credits=50)
    ids = ["ckabc1", "ckabc2", "f" * 24, ObjectId(), ObjectId()]
    transactions, audit_logs = sdk_rows(user, START, ids)
    await insert_unchecked(shared, "transactions", *transactions)
    await insert_unchecked(shared, "audit_logs", *audit_logs)

    audit = await all_pages(books.get_audit_log, user, 2)
    history = await all_pages(books.get_history, user, 2)

    assert len({row.audit_id for row in audit}) == len(audit) == 6
    assert len({row.transaction_id for row in history}) == len(history) == 6


async def test_a_charge_of_the_credit_sdk_can_be_refunded_and_no_more_than_it_took(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """The SDK's row names no operation. The library recognises a charge by its amount."""
    await insert_unchecked(shared, "users", {"_id": user, "credits": 40, "membershipTier": None})
    transactions, _ = sdk_rows(user, START, [ObjectId(), f"ck{user}"])
    await insert_unchecked(shared, "transactions", *transactions)
    for row in transactions:
        charge_id = str(row["_id"])
        await books.refund(user, 7, action="post", transaction_id=charge_id)
        with pytest.raises(RefundExceedsChargeError) as caught:
            await books.refund(user, 4, action="post", transaction_id=charge_id)
        assert caught.value.refundable == 3
    assert await books.get_balance(user) == 54


async def test_a_key_that_only_the_credit_sdk_knows_is_refused_until_it_expires(
    books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The SDK's record does not say what the key was for, so the request cannot match it."""
    await books.create_user(user, credits=50)
    record = {"_id": user, "result": {"success": True}, "createdAt": START, "expiresAt": LATER}
    await insert_unchecked(shared, "idempotency_records", record)
    with pytest.raises(IdempotencyConflictError):
        await books.charge(user, "post", idempotency_key=user)
    assert await one(shared, "idempotency_records", _id=user) == record
    clock.now = LATER
    assert (await books.charge(user, "post", idempotency_key=user)).replayed is False
    assert (await one(shared, "idempotency_records", _id=user))["userId"] == user

"""Users with many lots on a real server, of whom most charges read and write a part."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import Int64

from credit_mongo import AccountDataError, CreditLedger
from credit_mongo.core.extras import MAX_LOTS
from tests.integration.operations.accounts import START, Clock, one
from tests.integration.promises import Database, rows

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")

DAY = timedelta(days=1)


async def fill(books: CreditLedger, user: str) -> None:
    """Give the user 64 lots of 10 units. They end day by day, the first of them tomorrow."""
    await books.create_user(user, credits=5)
    for number in range(MAX_LOTS):
        await books.grant(user, 10, action="promo", expires_at=START + DAY * (number + 1))


async def stored_amounts(shared: Database, user: str) -> list[int]:
    """What the user's document has in each lot."""
    document = await one(shared, "users", _id=user)
    return [lot["amount"] for lot in document["creditExtras"]["lots"]]


async def test_each_charge_takes_from_the_first_lots_and_leaves_the_others(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """One by one and together: what is stored, read and told is the same as with a few lots."""
    await fill(books, user)
    left = [10] * MAX_LOTS
    total = sum(left) + 5
    # The 23 are more than two lots, the 100 more than are read at first.
    for amounts in ([3], [4, 5], [23], [1] * 30, [100], [7, 100, 7], [10]):
        charges = await asyncio.gather(
            *(books.charge(user, "post", amount=amount) for amount in amounts)
        )
        total -= sum(amounts)
        assert min(charge.balance_after for charge in charges) == total
        taken = sum(amounts)
        while taken:
            part = min(taken, left[0])
            taken, left[0] = taken - part, left[0] - part
            left = left if left[0] else left[1:]
        assert await stored_amounts(shared, user) == left
    found = await books.get_user(user)
    assert (found.credits, [lot.amount for lot in found.lots]) == (total, left)
    charged = [row for row in await rows(shared, "transactions", userId=user) if row["amount"] < 0]
    for row in charged:
        assert sum(leg["amount"] for leg in row["legs"]) == row["amount"]


async def test_lots_that_were_not_read_end_at_their_moment(
    books: CreditLedger, shared: Database, user: str, clock: Clock
) -> None:
    """Also if a lot that ends sooner than the first ones is the last to be used."""
    await fill(books, user)
    await books.charge(user, "post", amount=10)
    last = await books.grant(
        user, 4, action="x", priority=90, expires_at=START + timedelta(hours=1)
    )
    await books.charge(user, "post", amount=1)
    clock.now = START + timedelta(hours=1)
    await books.charge(user, "post", amount=1)
    [ended] = await rows(shared, "transactions", userId=user, operation="expire")
    assert (str(ended["legs"][0]["lot"]), ended["amount"]) == (last.lot_id, -4)
    assert await stored_amounts(shared, user) == [8] + [10] * (MAX_LOTS - 2)


async def test_charges_of_a_batch_with_other_operations_see_all_lots(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """Whether a user's own request or another user's is among them."""
    await fill(books, user)
    await books.charge(user, "post", amount=1)
    await asyncio.gather(
        books.charge(user, "post", amount=1),
        books.grant(user, 6, action="promo", expires_at=START + DAY * 64),
        books.charge(user, "post", amount=1),
        books.create_user(f"{user}-2", credits=9),
        books.charge(user, "post", amount=20),
    )
    assert await stored_amounts(shared, user) == [7] + [10] * 60 + [16]


async def test_a_repeated_charge_leaves_the_lots_to_the_next(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """Only when the key is looked up does the next one turn out to be payable, by all lots."""
    await fill(books, user)
    first = await books.charge(user, "post", amount=5, idempotency_key=f"{user}-1")
    again, rest = await asyncio.gather(
        books.charge(user, "post", amount=5, idempotency_key=f"{user}-1"),
        books.charge(user, "post", amount=640),
    )
    assert again == first
    assert (again.replayed, rest.balance_after) == (True, 0)
    assert "creditExtras" not in await one(shared, "users", _id=user)


@pytest.mark.drivers("pymongo")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lots.1.amount", 2.5),
        ("lots.30.expiresAt", "soon"),
        ("lots.0", "all"),
        ("lots", "all"),
        ("overdraft", None),
        ("holds", "none"),
    ],
)
async def test_a_part_that_is_wrong_is_told_by_name(
    books: CreditLedger, shared: Database, user: str, path: str, value: Any
) -> None:
    """Nothing is taken from an account that the ledger can't read, and others are not disturbed."""
    await fill(books, user)
    await books.create_user(f"{user}-2", credits=9)
    await books.charge(user, "post", amount=1)
    await set_unchecked(shared, user, path, value)
    before = await one(shared, "users", _id=user)
    refused, charged = await asyncio.gather(
        books.charge(user, "post", amount=1),
        books.charge(f"{user}-2", "post", amount=1),
        return_exceptions=True,
    )
    assert isinstance(refused, AccountDataError)
    assert path in refused.reason
    assert not isinstance(charged, BaseException)
    assert await one(shared, "users", _id=user) == before


@pytest.mark.drivers("pymongo")
@pytest.mark.parametrize("value", [2.5, Int64(-3), "all"])
async def test_a_wrong_lot_stops_the_charges_that_need_it(
    books: CreditLedger, shared: Database, user: str, value: Any
) -> None:
    """Those that the first lots pay go on, and take from nothing else."""
    await fill(books, user)
    await books.charge(user, "post", amount=1)
    await set_unchecked(shared, user, "lots.30.amount", value)
    await books.charge(user, "post", amount=1)
    before = await one(shared, "users", _id=user)
    with pytest.raises(AccountDataError) as refused:
        await books.charge(user, "post", amount=100)
    assert "lots.30.amount" in refused.value.reason
    assert await one(shared, "users", _id=user) == before
    assert await stored_amounts(shared, user) == [8] + [10] * 29 + [value] + [10] * 33


async def set_unchecked(shared: Database, user: str, path: str, value: Any) -> None:
    """Change the user's document as somebody could without the validator."""
    change = {"$set": {f"creditExtras.{path}": value}}
    await shared.command(
        {
            "update": "users",
            "updates": [{"q": {"_id": user}, "u": change}],
            "bypassDocumentValidation": True,
        }
    )

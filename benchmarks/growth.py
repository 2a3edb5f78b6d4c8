"""Books with a past: rows as years of charges would have left them, inserted directly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import charge_rows
from benchmarks.load import COST
from benchmarks.mongo_books import LOWEST_ID, Account, Base

__all__ = ["fill", "read_base"]

_ROWS_AT_ONCE: Final = 5_000
# The rows are of the last hours: the TTL sweep leaves their idempotency records alone.
_PAST: Final = timedelta(hours=12)


async def fill(
    database: AsyncDatabase[dict[str, Any]],
    users: Sequence[str],
    opening_credits: int,
    transactions: int,
    tell: Callable[[int], None],
) -> None:
    """Add so many charges, with all their rows, to books that these users have just opened.

    The users take turns, so that the charges of each are spread over all of the time, and over all
    of the collections. ``tell`` hears how many there are.
    """
    begun = datetime.now(timezone.utc) - _PAST
    step = _PAST / max(transactions, 1)
    bits = random.Random().getrandbits
    names = ("transactions", "audit_logs", "idempotency_records")
    for first in range(0, transactions, _ROWS_AT_ONCE):
        rows = []
        for number in range(first, min(first + _ROWS_AT_ONCE, transactions)):
            earlier, user = divmod(number, len(users))
            charge = charge_rows(
                users[user],
                earlier + 2,  # the first transaction is that of the opening credits
                opening_credits - COST * earlier,
                cost=COST,
                key=f"{bits(128):032x}",
                now=begun + step * number,
            )
            charge[2]["fingerprint"] = f"{bits(256):064x}"
            rows.append(charge)
        by_collection = zip(names, zip(*rows, strict=True), strict=True)
        await asyncio.gather(
            *(_insert(database, name, documents) for name, documents in by_collection)
        )
        tell(first + len(rows))
    await _bring_users_up_to_date(database, users, opening_credits, transactions)
    await database.client.admin.command("fsync")


async def read_base(database: AsyncDatabase[dict[str, Any]]) -> Base:
    """What there is now, to tell it from what a run adds."""
    last = await database["transactions"].find_one({}, {"_id": 1}, sort={"_id": -1})
    users = database["users"].find({}, {"credits": 1, "seq": 1})
    return Base(
        last_id=last["_id"] if last else LOWEST_ID,
        accounts={
            user["_id"]: Account(int(user["credits"]), int(user["seq"])) async for user in users
        },
        transactions=await database["transactions"].estimated_document_count(),
        idempotency_records=await database["idempotency_records"].estimated_document_count(),
    )


async def _insert(
    database: AsyncDatabase[dict[str, Any]], collection: str, documents: Sequence[dict[str, Any]]
) -> None:
    reply = await database.command(
        {
            "insert": collection,
            "documents": list(documents),
            "ordered": False,
            "writeConcern": {"w": 1},
        }
    )
    assert reply["n"] == len(documents)


async def _bring_users_up_to_date(
    database: AsyncDatabase[dict[str, Any]],
    users: Sequence[str],
    opening_credits: int,
    transactions: int,
) -> None:
    each, more = divmod(transactions, len(users))
    updates = []
    for number, user_id in enumerate(users):
        charges = each + (number < more)
        values = {"credits": opening_credits - COST * charges, "seq": 1 + charges}
        updates.append({"q": {"_id": user_id}, "u": {"$set": values}})
    reply = await database.command({"update": "users", "updates": updates})
    assert reply["n"] == len(users)

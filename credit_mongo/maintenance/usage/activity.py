"""What happens in the ledger right now, for a view that is read again every few seconds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from credit_mongo.core.results import Transaction
from credit_mongo.errors import AccountDataError
from credit_mongo.maintenance.usage.expressions import exact_sum, with_integers
from credit_mongo.maintenance.usage.reading import BY_TIME
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until, is_erased
from credit_mongo.storage.holds import ACTIVE
from credit_mongo.storage.rows import transaction_from

__all__ = ["Activity", "activity_of"]

_WINDOW: Final = timedelta(seconds=10)
_MOST_COUNTED: Final = 50_000
_MOST_HOLDS: Final = 5_000
_LATEST: Final = 8
_BY_USER_AND_END: Final = {"userId": 1, "expiresAt": 1}


@dataclass(frozen=True, slots=True)
class Activity:
    """The ledger at a moment. Amounts are in smallest units."""

    at: datetime
    transactions_a_second: float
    """Over the last ten seconds."""
    is_more: bool
    """Whether there were too many transactions to count them all."""
    active_holds: int
    held: int
    holds_are_more: bool
    """Whether there are more active holds than were summed up."""
    latest: tuple[Transaction, ...]
    """The newest first."""


async def activity_of(database: LedgerDatabase, now: datetime) -> Activity:
    """Read what happens right now, through indexes alone. It costs the server milliseconds."""
    transactions = database[database.names.transactions]
    count = await transactions.count_documents(
        {"createdAt": {"$gte": now - _WINDOW, "$lte": now}}, limit=_MOST_COUNTED, hint=BY_TIME
    )
    active, held = await _held(database)
    return Activity(
        at=now,
        transactions_a_second=count / _WINDOW.total_seconds(),
        is_more=count >= _MOST_COUNTED,
        active_holds=active,
        held=held,
        holds_are_more=active >= _MOST_HOLDS,
        latest=await _latest(database),
    )


async def _held(database: LedgerDatabase) -> tuple[int, int]:
    """How many holds are active, and what they keep."""
    held = exact_sum({"$subtract": ["$amount", "$captured"]})
    found = await database[database.names.holds].aggregate(
        [
            {"$match": ACTIVE},
            {"$limit": _MOST_HOLDS},
            {"$group": {"_id": None, "count": {"$sum": 1}, "held": held}},
        ],
        hint=_BY_USER_AND_END,
    )
    rows = [with_integers(row) for row in await found.to_list()]
    return (rows[0]["count"], rows[0]["held"]) if rows else (0, 0)


async def _latest(database: LedgerDatabase) -> tuple[Transaction, ...]:
    rows = (
        await database[database.names.transactions]
        .find({"createdAt": {"$type": "date"}}, sort=[("createdAt", -1)], limit=_LATEST)
        .to_list()
    )
    owners = {str(row.get("userId")) for row in rows}
    until = await erased_until(database, owners)
    latest = []
    for row in rows:
        owner = str(row.get("userId"))
        # A row of other software, which can't be read, is for verify to name.
        with contextlib.suppress(AccountDataError):
            if not is_erased(row, until.get(owner)):
                latest.append(transaction_from(row, owner))
    return tuple(latest)

"""How many attempts were refused over time. Their index has an entry for refused attempts alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from credit_mongo.maintenance.usage.expressions import part_of
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.documents import FAILED_BY_TIME

__all__ = ["refusals_over_time"]

_HINT: Final = FAILED_BY_TIME.document["key"]


async def refusals_over_time(
    database: LedgerDatabase, starts: Sequence[datetime], end: datetime
) -> list[int]:
    """Count the refused attempts in each part of a period. Parts begin at ``starts``."""
    found = await database[database.names.audit_logs].aggregate(
        [
            {"$match": {"status": "failed", "createdAt": {"$gte": starts[0], "$lt": end}}},
            {"$group": {"_id": part_of(starts), "count": {"$sum": 1}}},
        ],
        hint=_HINT,
    )
    counts = {int(row["_id"]): int(row["count"]) for row in await found.to_list()}
    return [counts.get(part, 0) for part in range(len(starts))]

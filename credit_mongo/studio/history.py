"""A user's transactions, searched by what has no index: the operation, and metadata.

The ledger's own pages are read one after another until enough rows pass the filter. A search that
finds little ends after so many rows, and says where it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from credit_mongo.core.results import Transaction
from credit_mongo.errors import InvalidRequestError
from credit_mongo.ledger import CreditLedger

__all__ = ["Found", "Wanted", "search"]

_LIMIT: Final = 50
_ROWS_AT_ONCE: Final = 250
_MOST_ROWS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which transactions to show."""

    action: str | None = None
    operation: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    metadata: str | None = None
    """``name=value``; ``order.id=7`` looks into the mapping ``order``."""

    @property
    def is_by_index(self) -> bool:
        """Whether the ledger itself finds these rows."""
        return self.operation is None and self.metadata is None

    def passes(self, row: Transaction) -> bool:
        """Whether a row of the ledger's is one of these."""
        if self.operation is not None and row.operation != self.operation:
            return False
        return self.metadata is None or _has(row.metadata, self.metadata)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows, newest first, and where the search goes on."""

    rows: tuple[Transaction, ...]
    next_cursor: str | None
    examined: int
    back_to: datetime | None
    """The time of the last row that was looked at."""


async def search(ledger: CreditLedger, user_id: str, wanted: Wanted, cursor: str | None) -> Found:
    """Read a page of a user's transactions. Raises InvalidRequestError and UserNotFoundError."""
    if wanted.metadata is not None and "=" not in wanted.metadata:
        raise InvalidRequestError("metadata", "must be written as name=value")
    limit = _LIMIT if wanted.is_by_index else _ROWS_AT_ONCE
    rows: list[Transaction] = []
    examined, back_to = 0, None
    while True:
        page = await ledger.get_history(
            user_id,
            limit=limit,
            cursor=cursor,
            start_date=wanted.since,
            end_date=wanted.until,
            action=wanted.action,
            include_archived=True,
        )
        rows += [row for row in page if wanted.passes(row)]
        examined += len(page)
        back_to = page[-1].created_at if page else back_to
        cursor = page.next_cursor
        if cursor is None or len(rows) >= _LIMIT or examined >= _MOST_ROWS:
            return Found(tuple(rows), cursor, examined, back_to)


def _has(metadata: Mapping[str, Any] | None, condition: str) -> bool:
    """Whether a value is there, written as it is or as JSON."""
    path, _, wanted = condition.partition("=")
    value: Any = metadata
    for name in path.strip().split("."):
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return bool(text == wanted.strip())

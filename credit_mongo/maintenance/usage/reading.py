"""How a usage report finds the rows of its period: through an index, or by a scan.

A short period is read through the index on ``createdAt``, so that the report of a day takes no
longer when the ledger has years of rows. A long period is read by scanning the collection: through
an index, the server fetches rows one by one, which takes several times as long a row.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.other_types import DATE, of_other_types
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import BAD_HINT

__all__ = [
    "BY_TIME",
    "NO_ARRAY",
    "UNDATED",
    "Period",
    "Reach",
    "without_index",
]

BY_TIME: Final[Raw] = {"createdAt": 1}
# A query also matches an array that holds a matching value. A sum can't use arrays.
NO_ARRAY: Final[Raw] = {"$not": {"$type": "array"}}
UNDATED: Final[Raw] = of_other_types("createdAt", DATE)
"""The query for rows without a date, which are in no period."""
_FEW: Final = 0.1
"""The share of a collection's rows up to which the index is quicker than a scan."""


class Period(NamedTuple):
    """A period, and the start of the one before it."""

    before: datetime
    start: datetime
    end: datetime
    zone: tzinfo

    def moments(self, *, also_before: bool = False) -> Raw:
        """The query for rows dated in the period. An array matches by the dates that it holds."""
        start = self.before if also_before else self.start
        return {"createdAt": {"$gte": start, "$lt": self.end}}

    def rows_in(self, *, also_before: bool = False) -> Raw:
        """The query for rows in the period, without arrays."""
        moments: Raw = self.moments(also_before=also_before)
        return {"createdAt": {**moments["createdAt"], **NO_ARRAY}}


class Reach(NamedTuple):
    """How to find the rows of a period."""

    through_index: frozenset[str]
    """The collections of transactions that have few of their rows in the period."""
    is_short: bool
    """Whether only few of all transactions, archived ones included, are in the period."""

    @classmethod
    async def of(cls, ledger: LedgerDatabase, period: Period, session: AsyncClientSession) -> Reach:
        """Count the transactions in the period, as far as this matters."""
        names = (ledger.names.transactions, ledger.names.transactions_archive)
        few = {name: int(await ledger[name].estimated_document_count() * _FEW) for name in names}
        most = sum(few.values())
        counts: dict[str, int] = {}
        for name in names:
            try:
                # This reads keys of the index only, and stops when there are too many.
                counts[name] = await ledger[name].count_documents(
                    period.moments(also_before=True), limit=most + 1, hint=BY_TIME, session=session
                )
            except OperationFailure as error:
                if error.code != BAD_HINT:
                    raise
                # Run ensure_indexes to create the index. Until then, scans do.
                counts[name] = most + 1
        return cls(
            frozenset(name for name in names if counts[name] <= few[name]),
            sum(counts.values()) <= most,
        )


def without_index(query: Raw) -> Raw:
    """Return a query with the same result, for which the server scans the collection.

    A hint does not reach into a union. The server uses no index for what is denied twice.
    """
    return {"$nor": [{"$nor": [query]}]}

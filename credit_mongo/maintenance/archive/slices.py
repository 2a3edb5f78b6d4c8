"""Slices: what is old goes oldest first, so that what a server works on lies near together.

Rows lie on disk in the order in which they came, those of all users mixed. User by user through
years of rows, a batch would touch pages everywhere, and the server would write each page again and
again. Slice by slice of the time, and user by user within a slice, it is done with a page at once.
"""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from typing import Final, NamedTuple

from pymongo.errors import PyMongoError

from credit_mongo.storage.database import Collection
from credit_mongo.storage.rows import Raw

__all__ = ["Slice", "slices_of"]

_FIRST_MOMENT: Final = datetime.min.replace(tzinfo=timezone.utc)
# So that slices differ by a third.
_SAMPLES_OF_A_SLICE: Final = 10
# The server goes to a place by chance for each sample, while those are few; 10,000 take seconds.
_MOST_SLICES: Final = 1000
_SAMPLE_MILLISECONDS: Final = 60_000


class Slice(NamedTuple):
    """The rows from ``begin`` on that are older than ``end``, by ``createdAt``."""

    begin: datetime | None
    """None: from the first row on, of whatever is left."""
    end: datetime

    @property
    def moments(self) -> Raw:
        """The query of ``createdAt``."""
        begin = {} if self.begin is None else {"$gte": self.begin}
        return {**begin, "$lt": self.end}


async def slices_of(collection: Collection, cut_off: datetime, rows_of_a_slice: int) -> list[Slice]:
    """The slices of what is older than ``cut_off``, the oldest first, of about so many rows each.

    The last one is of all that is left then. A sample of the rows tells where they end, so it is
    a matter of speed alone.
    """
    whole = Slice(None, cut_off)
    try:
        rows = await collection.estimated_document_count()
        slices = min(rows // rows_of_a_slice, _MOST_SLICES)
        if slices < 2:  # noqa: PLR2004 - one is the whole
            return [whole]
        samples = min(slices * _SAMPLES_OF_A_SLICE, rows)
        found = await collection.aggregate(
            [
                {"$sample": {"size": samples}},
                # Of dates alone, which Python has a form for.
                {"$match": {"createdAt": {"$gte": _FIRST_MOMENT, "$lt": cut_off}}},
                {"$project": {"_id": 0, "createdAt": 1}},
            ],
            maxTimeMS=_SAMPLE_MILLISECONDS,
        )
        moments = sorted(row["createdAt"] for row in await found.to_list())
    except PyMongoError:
        return [whole]
    every = samples // slices
    borders = sorted({_FIRST_MOMENT, *moments[every::every]})
    return [*(Slice(begin, end) for begin, end in pairwise(borders)), whole]

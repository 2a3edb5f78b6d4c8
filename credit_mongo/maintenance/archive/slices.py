"""Slices: move the oldest rows first, so that the server works on neighbouring pages.

Rows lie on disk in the order of their insertion, with all users mixed. Going user by user through
years of rows, each batch would touch pages everywhere, and the server would rewrite each page many
times. Going through slices of time, and user by user within a slice, the server finishes each page
at once.
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
# Enough that slice sizes differ by no more than about a third.
_SAMPLES_OF_A_SLICE: Final = 10
# While samples are few, each is a random read on the server. 10,000 take seconds.
_MOST_SLICES: Final = 1000
_SAMPLE_MILLISECONDS: Final = 60_000


class Slice(NamedTuple):
    """Rows whose ``createdAt`` is at or after ``begin`` and before ``end``."""

    begin: datetime | None
    """None: no lower limit."""
    end: datetime

    @property
    def moments(self) -> Raw:
        """The query condition for ``createdAt``."""
        begin = {} if self.begin is None else {"$gte": self.begin}
        return {**begin, "$lt": self.end}


async def slices_of(collection: Collection, cut_off: datetime, rows_of_a_slice: int) -> list[Slice]:
    """Divide the rows older than ``cut_off`` into slices of about equal size, oldest first.

    The last slice covers everything that the others left. The boundaries come from a sample of the
    rows. They affect only the speed.
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
                # Keep only dates that Python can represent.
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

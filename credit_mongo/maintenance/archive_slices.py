"""Slices: what is old goes oldest first, so that what a server works on lies near together.

Rows lie on disk in the order in which they came, those of all users mixed. User by user through
years of rows, a batch would touch pages everywhere, and the server would write each page again and
again. Slice by slice of the time, and user by user within a slice, it is done with a page at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timezone
from functools import partial
from typing import Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.maintenance.steps import Steps
from credit_mongo.rows import Raw

__all__ = ["Slice", "Slices"]

_FIRST_MOMENT: Final = datetime.min.replace(tzinfo=timezone.utc)


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


class Slices:
    """The slices of a collection, the oldest first; the last one is of all that is left then.

    Ids that do not grow with the time make fewer and larger slices, and nothing worse.
    """

    def __init__(
        self, database: AsyncDatabase[Raw], collection: str, whole: Slice, rows: int
    ) -> None:
        self._collection = database[collection]
        self._whole = whole
        self._rows = rows

    async def one(self) -> AsyncGenerator[Slice, None]:
        """All at once."""
        yield self._whole

    async def all(self, steps: Steps) -> AsyncGenerator[Slice, None]:
        """Each is looked for when the one before is done. Raises StorageError."""
        last, begin = None, _FIRST_MOMENT
        while (last := await steps.take(partial(self._next_after, last))) is not None:
            moment = last.get("createdAt")
            if not isinstance(moment, datetime) or moment >= self._whole.end:
                break
            if moment > begin:
                yield Slice(begin, moment)
                begin = moment
        yield self._whole

    async def _next_after(self, last: Raw | None, session: AsyncClientSession) -> Raw | None:
        """The row that is as many rows on as a slice has."""
        rest: Raw = {} if last is None else {"_id": {"$gt": last["_id"]}}
        # The index alone is enough to pass over them.
        found = self._collection.find(rest, {"_id": 1}, session=session)
        ids = await found.sort("_id", 1).skip(self._rows).limit(1).hint("_id_").to_list(None)
        if not ids:
            return None
        return await self._collection.find_one(ids[0], {"createdAt": 1}, session=session)

"""Spans: find the users with old rows in an index, and group them by number of rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from operator import itemgetter
from typing import Final, NamedTuple

from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.maintenance.archive.slices import Slice
from credit_mongo.maintenance.verification.reading import BATCH, Rows, check_index
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import is_gone

__all__ = ["Index", "Span", "Spans"]

_MOST_TRIES: Final = 20
_PAUSE_SECONDS: Final = 0.5


class Index(NamedTuple):
    """An index that sorts each user's rows newest first, with a tie-breaker at the end."""

    tie_breaker: str

    @property
    def keys(self) -> dict[str, int]:
        return {"userId": 1, "createdAt": -1, self.tie_breaker: -1}

    @property
    def oldest_first(self) -> dict[str, int]:
        """The reverse order: the last user first, each user's oldest row first."""
        return {field: -order for field, order in self.keys.items()}


class Span(NamedTuple):
    """All users from ``first`` to ``last``, with about ``rows`` old rows together."""

    first: str
    last: str
    rows: int


class Spans:
    """The spans of a slice, the last user first. Users with few rows share a span."""

    def __init__(
        self,
        database: LedgerDatabase,
        collection: str,
        index: Index,
        old: Slice,
        most_rows: int,
    ) -> None:
        self._collection = database[collection]
        self._index = index
        self._old = old
        self._most = most_rows
        self._users: dict[str, None] = {}
        self._rows = 0
        self._end: str | None = None

    def query(self) -> Raw:
        """The query for old rows. It skips user ids that aren't strings: ``verify`` finds them."""
        upper: Raw = {} if self._end is None else {"$lt": self._end}
        return {"userId": {"$gte": "", **upper}, "createdAt": self._old.moments}

    async def count(self) -> int:
        """Count the old rows."""
        try:
            return await self._collection.count_documents(self.query(), hint=self._index.keys)
        except OperationFailure as error:
            check_index(error)
            raise

    async def all(self) -> AsyncGenerator[Span, None]:
        """Yield each span. Replace the cursor if it is lost."""
        tries = 0
        while True:
            place = self._end
            try:
                async for span in self._found():
                    yield span
            except (ConnectionFailure, OperationFailure) as error:
                tries = 1 if self._end != place else tries + 1
                if not is_gone(error) or tries == _MOST_TRIES:
                    raise
                self._users, self._rows = {}, 0
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    async def _found(self) -> AsyncGenerator[Span, None]:
        found = self._collection.find(
            self.query(),
            {"_id": 0, "userId": 1},
            sort=list(self._index.oldest_first.items()),
            hint=list(self._index.keys.items()),
            batch_size=BATCH,
        )
        rows = Rows(found)
        user_of = itemgetter("userId")
        try:
            while batch := await rows.next():
                for user_id, count in Counter(map(user_of, batch)).items():
                    is_full = self._users and self._rows + count > self._most
                    if is_full and user_id not in self._users:
                        yield self._take()
                    self._users[user_id] = None
                    self._rows += count
            if self._users:
                yield self._take()
        finally:
            await rows.close()

    def _take(self) -> Span:
        users, rows = list(self._users), self._rows
        self._users, self._rows = {}, 0
        self._end = users[-1]
        return Span(users[-1], users[0], rows)

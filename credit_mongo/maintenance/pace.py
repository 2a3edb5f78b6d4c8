"""The pace: full speed while nobody is being charged, slow while somebody is.

On a slow server, batches get smaller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from bson import ObjectId

from credit_mongo.storage.database import Collection
from credit_mongo.storage.rows import Raw

__all__ = ["Pace"]

_LOOK_EVERY_SECONDS: Final = 0.25
# After a charge, stay slow for this long: more charges may follow.
_QUIET_AFTER_SECONDS: Final = 2.0
_FULL_ROWS: Final = 1000
_GENTLE_ROWS: Final = 100
_LEAST_ROWS: Final = 10
# A batch must stay well below the minute after which the server aborts a transaction.
_SLOW_SECONDS: Final = 5.0
_QUICK_SECONDS: Final = 1.0
# While somebody is being charged: the share of time that one lane works, and that all lanes do.
_SHARE_OF_A_LANE: Final = 0.25
_SHARE_OF_ALL: Final = 0.5


class Pace:
    """Watches for new transactions. Each look reads only the newest id.

    ``own`` are queries for the transactions that the job itself writes, if it writes any. Then each
    look passes over those that are new.
    """

    def __init__(
        self,
        transactions: Collection,
        *,
        lanes: int,
        full_speed: bool,
        full_rows: int = _FULL_ROWS,
        own: Sequence[Raw] = (),
    ) -> None:
        self._transactions = transactions
        self._lanes = lanes
        self._full_speed = full_speed
        self._full_rows = full_rows
        self._own = list(own)
        self._newest: Any = None
        self._looked_at: float | None = None
        self._busy_until = 0.0
        self._most_rows = full_rows

    @property
    def rows(self) -> int:
        """How many rows a batch may have now."""
        return min(_GENTLE_ROWS if self._is_gentle() else self._full_rows, self._most_rows)

    def slow_down(self) -> None:
        """Halve the batch size, because a batch took too long."""
        self._most_rows = max(self._most_rows // 2, _LEAST_ROWS)

    def _is_gentle(self) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._full_speed and now < self._busy_until

    async def rest(self, seconds_of_work: float) -> None:
        """Pause after a batch if somebody is being charged."""
        if seconds_of_work > _SLOW_SECONDS:
            self.slow_down()
        elif seconds_of_work < _QUICK_SECONDS:
            self._most_rows = min(self._most_rows * 2, self._full_rows)
        loop = asyncio.get_running_loop()
        if self._full_speed:
            return
        if self._looked_at is None or loop.time() - self._looked_at >= _LOOK_EVERY_SECONDS:
            await self._look()
        if self._is_gentle():
            await asyncio.sleep(_rest_after(seconds_of_work, self._lanes))

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        is_first = self._looked_at is None
        self._looked_at = loop.time()
        newest = await self._find_newest({})
        if not is_first and await self._is_foreign(newest):
            self._busy_until = loop.time() + _QUIET_AFTER_SECONDS
        self._newest = newest

    async def _is_foreign(self, newest: Any) -> bool:
        """Whether somebody else has written since the look before. ``newest`` is the newest id."""
        if not self._own or not _is_after(newest, self._newest):
            return _is_after(newest, self._newest)
        since: Raw = {} if self._newest is None else {"_id": {"$gt": self._newest}}
        return await self._find_newest({**since, "$nor": self._own}) is not None

    async def _find_newest(self, query: Raw) -> Any:
        newest = await self._transactions.find_one(query, {"_id": 1}, sort=[("_id", -1)])
        return None if newest is None else newest["_id"]


def _rest_after(seconds_of_work: float, lanes: int) -> float:
    share = min(_SHARE_OF_A_LANE, _SHARE_OF_ALL / lanes)
    return seconds_of_work * (1 / share - 1)


def _is_after(newest: Any, before: Any) -> bool:
    # An older id can become the newest when the archive moves the newest row.
    if isinstance(newest, ObjectId) and isinstance(before, ObjectId):
        return newest > before
    return newest is not None and newest != before

"""The ledger's clock, compared with the server's.

Time decides: which membership has expired, which key may be forgotten, in which order the rows of a
user stand. One process whose clock is wrong would decide it for all. So each transaction compares
its time with the operation time that the server's replies carry anyway. That lags behind the
server's clock while nobody writes, so what looks wrong is looked at once more: the primary is asked
for its clock before anything is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import ClockSkewError
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["CheckedClock", "Clock"]

Clock: TypeAlias = Callable[[], datetime]

# How long the primary's own answer holds, where the operation time alone would raise suspicion.
_ANSWER_HOLDS_SECONDS: Final = 10.0


class CheckedClock:
    """A clock, and how far it may be from the server's (None: as far as it likes)."""

    def __init__(self, database: LedgerDatabase, read: Clock, allowed: timedelta | None) -> None:
        self._database = database
        self._read = read
        self._allowed = allowed
        self._holds_until = 0.0

    def __call__(self) -> datetime:
        """The time by this clock."""
        return self._read()

    async def check(self, now: datetime, session: AsyncClientSession) -> None:
        """Raise ClockSkewError if ``now``, or this clock, is too far from the server's.

        ``session`` has had a reply of the server just now. ``now`` is a reading of this clock that
        may be a while old.
        """
        operation_time = session.operation_time
        if self._allowed is None or operation_time is None:
            return
        latest = max(now, self._read()).timestamp()
        if abs(latest - operation_time.time) <= self._allowed.total_seconds():
            return
        loop_time = asyncio.get_running_loop().time
        if loop_time() >= self._holds_until:
            await self._ask_the_primary(self._allowed)
            self._holds_until = loop_time() + _ANSWER_HOLDS_SECONDS

    async def _ask_the_primary(self, allowed: timedelta) -> None:
        before = self._read()
        hello = await self._database.command({"hello": 1})
        after, server = self._read(), hello["localTime"]
        # The server looked at its clock in between.
        ahead, behind = before - server, server - after
        for skew, direction in ((ahead, 1), (behind, -1)):
            if skew > allowed:
                seconds = direction * skew.total_seconds()
                raise ClockSkewError(seconds, allowed.total_seconds())

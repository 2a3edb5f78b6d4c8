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
from typing import Final, NamedTuple, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import ClockSkewError
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["CheckedClock", "Clock"]

Clock: TypeAlias = Callable[[], datetime]

# How long the primary's own answer holds, where the operation time alone would raise suspicion.
_ANSWER_HOLDS_SECONDS: Final = 10.0


class _Answer(NamedTuple):
    """What the primary's clock said, and the event loop's before it was asked and afterwards."""

    server: float
    asked: float
    answered: float

    def skew_of(self, moment: float, loop_time: float) -> float:
        """How far a moment is ahead of the server's clock at ``loop_time``; negative if behind.

        The server looked at its clock between question and answer, so 0 stands for that span.
        """
        ahead = moment - (self.server + loop_time - self.asked)
        behind = self.server + loop_time - self.answered - moment
        return max(ahead, 0.0) - max(behind, 0.0)


class CheckedClock:
    """A clock, and how far it may be from the server's (None: as far as it likes)."""

    def __init__(self, database: LedgerDatabase, read: Clock, allowed: timedelta | None) -> None:
        self._database = database
        self._read = read
        self._allowed = allowed
        self._answer: _Answer | None = None

    def __call__(self) -> datetime:
        """The time by this clock."""
        return self._read()

    async def check(
        self, now: datetime, session: AsyncClientSession, *, read_at: float | None = None
    ) -> None:
        """Raise ClockSkewError if ``now``, or this clock, is too far from the server's.

        ``session`` has had a reply of the server just now. ``now`` is what this clock said at
        ``read_at`` of the event loop's time (None: just now). Somebody may have set the clock
        since, or suspended the machine. So that reading has to be right, and so has the clock.
        """
        operation_time = session.operation_time
        if self._allowed is None or operation_time is None:
            return
        loop_time = asyncio.get_running_loop().time
        # What this clock would say at the loop's time 0, by that reading.
        start = now.timestamp() - (loop_time() if read_at is None else read_at)
        allowed, server = self._allowed.total_seconds(), operation_time.time
        if all(abs(each - server) <= allowed for each in self._moments(start, loop_time())):
            return
        known = self._answer
        is_recent = known is not None and loop_time() - known.answered <= _ANSWER_HOLDS_SECONDS
        # A known answer may show that the clock is right. That it is wrong, only a new one shows.
        if known and is_recent and abs(self._skew(known, start, loop_time())) <= allowed:
            return
        self._answer = answer = await self._ask_the_primary()
        skew = self._skew(answer, start, loop_time())
        if abs(skew) > allowed:
            raise ClockSkewError(skew, allowed)

    def _moments(self, start: float, loop_time: float) -> tuple[float, float]:
        """The present by an earlier reading, and by the clock as it is."""
        return start + loop_time, self._read().timestamp()

    def _skew(self, answer: _Answer, start: float, loop_time: float) -> float:
        """The larger skew of the two."""
        moments = self._moments(start, loop_time)
        return max((answer.skew_of(each, loop_time) for each in moments), key=abs)

    async def _ask_the_primary(self) -> _Answer:
        loop_time = asyncio.get_running_loop().time
        asked = loop_time()
        hello = await self._database.ask({"hello": 1})
        return _Answer(hello["localTime"].timestamp(), asked, loop_time())

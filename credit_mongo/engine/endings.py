"""Endings: no transaction stays open on the server, whatever became of its connection.

The driver sends an abort once, swallows its failure, and then believes that nothing is open. An
open transaction blocks its users for everybody until the server drops it, after a minute. So where
an end was not seen, it is asked for here until the server has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo.engine.deadlines import Deadlines, Late

__all__ = ["Endings"]

_ANSWER_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1
# MongoDB's default transactionLifetimeLimitSeconds.
_TRANSACTION_LIFETIME_SECONDS: Final = 60


class Endings:
    """The sessions that are being ended in the background; their callers have their answers."""

    def __init__(self, client: AsyncMongoClient[Any], deadlines: Deadlines) -> None:
        self._client = client
        self._deadlines = deadlines
        self._tasks: set[asyncio.Future[None]] = set()

    async def abort(self, session: AsyncClientSession, seconds: float) -> AsyncClientSession:
        """Abort the session's transaction; a session for the next one.

        It is another if the server does not answer: that one is then ended in the background.
        """
        if not session.in_transaction:
            return session
        left: list[Late] = []
        try:
            with contextlib.suppress(PyMongoError):
                longest = min(seconds, _ANSWER_SECONDS)
                await self._deadlines.keep(session.abort_transaction(), longest, left)
        except asyncio.TimeoutError:
            self.begin(session, left)
            return self._client.start_session()
        return session

    def begin(self, session: AsyncClientSession, left: list[Late]) -> None:
        """End a session that may have a transaction open, and work that was left alone on it."""
        task = asyncio.ensure_future(self._end(session, left))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float) -> None:
        """Wait for them, but not longer: after a minute, the server does it by itself."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _end(self, session: AsyncClientSession, left: list[Late]) -> None:
        try:
            # What is under way fails at once, and lets go of its users.
            await self._kill(session)
            if left:
                # It may just have begun something: the session is killed once more.
                await asyncio.wait(left)
                await self._kill(session)
        finally:
            await session.end_session()

    async def _kill(self, session: AsyncClientSession) -> None:
        loop = asyncio.get_running_loop()
        server_drops_it_at = loop.time() + _TRANSACTION_LIFETIME_SECONDS
        while loop.time() < server_drops_it_at:
            # Every user may end his own sessions; no privilege is needed.
            kill = self._client.admin.command({"killSessions": [session.session_id]})
            try:
                await self._deadlines.keep(kill, _ANSWER_SECONDS)
            except (asyncio.TimeoutError, PyMongoError):
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

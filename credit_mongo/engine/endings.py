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

__all__ = ["Endings", "abort"]

_ANSWER_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1
# MongoDB's default transactionLifetimeLimitSeconds.
_TRANSACTION_LIFETIME_SECONDS: Final = 60


async def abort(session: AsyncClientSession, seconds: float) -> None:
    """Tell the server, if it listens; the session's next transaction ends this one in any case."""
    if session.in_transaction:
        with contextlib.suppress(asyncio.TimeoutError, PyMongoError):
            await asyncio.wait_for(session.abort_transaction(), min(seconds, _ANSWER_SECONDS))


class Endings:
    """The sessions that are being ended in the background; their callers have their answers."""

    def __init__(self, client: AsyncMongoClient[Any]) -> None:
        self._client = client
        self._tasks: set[asyncio.Future[None]] = set()

    def begin(self, session: AsyncClientSession) -> None:
        """End a session that may have a transaction open on the server."""
        task = asyncio.ensure_future(self._end(session))
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

    async def _end(self, session: AsyncClientSession) -> None:
        loop = asyncio.get_running_loop()
        server_drops_it_at = loop.time() + _TRANSACTION_LIFETIME_SECONDS
        try:
            await abort(session, _ANSWER_SECONDS)
            while loop.time() < server_drops_it_at:
                # Every user may end his own sessions; no privilege is needed.
                kill = self._client.admin.command({"killSessions": [session.session_id]})
                try:
                    await asyncio.wait_for(kill, _ANSWER_SECONDS)
                except (asyncio.TimeoutError, PyMongoError):
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    return
        finally:
            await session.end_session()

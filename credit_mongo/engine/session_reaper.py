"""The session reaper: no transaction stays open on the server, whatever became of its connection.

The driver sends an abort once, ignores its failure, and then believes that nothing is open. An open
transaction blocks its users for everybody until the server drops it, after a minute. So where the
end of a transaction was not seen, the reaper asks for it until the server has answered.

It never has two calls out for one session: a server that is too busy to answer one call is not
helped by more of them. The driver ends each call in time, with its connection, before the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pymongo
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError

from credit_mongo.engine import tasks
from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.engine.observer import SessionReaped, Tell
from credit_mongo.storage.server_transactions import ServerTransaction

__all__ = ["SessionReaper"]

_ANSWER_SECONDS: Final = 1.0
# Each call gets twice as long as the one before. The first is not short either: an abort waits on
# the server for what the transaction is still doing there.
_FIRST_CALL_SECONDS: Final = 5.0
# The driver ends a call by itself. Only if it doesn't, the reaper waits for its end.
_SPARE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1
# MongoDB's default transactionLifetimeLimitSeconds.
_TRANSACTION_LIFETIME_SECONDS: Final = 60
_NOT_IN_THE_STABLE_API: Final = 323


class SessionReaper:
    """The sessions that are being ended in the background; their callers have their answers."""

    def __init__(
        self, client: AsyncMongoClient[Any], deadlines: Deadlines, tell: Tell | None = None
    ) -> None:
        self._client = client
        self._deadlines = deadlines
        self._tell = tell
        self._tasks: set[asyncio.Future[None]] = set()

    async def next_session(self, session: AsyncClientSession, seconds: float) -> AsyncClientSession:
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
            self.end(session, left)
            return self._client.start_session()
        return session

    def end(self, session: AsyncClientSession, left: list[Late]) -> None:
        """End a session that may have a transaction open, and work that was left alone on it."""
        self._start(self._end(session, left))

    def abort(self, transaction: ServerTransaction) -> None:
        """Abort a transaction of the application's. The application ends its session itself."""
        self._start(self._abort(transaction))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = tasks.start(work if self._tell is None else _told(self._tell, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float) -> None:
        """Wait for them, but not longer: after a minute, the server does it by itself."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await tasks.stop(*self._tasks)

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
        # Every user may end his own sessions; no privilege is needed.
        command = {"killSessions": [session.session_id]}
        try:
            await self._until_answered(lambda: self._client.admin.command(command))
        except OperationFailure:
            # A client that is strict about the stable API may abort its transactions, no more.
            transaction = ServerTransaction.latest_of(session)
            if transaction is not None:
                await self._abort(transaction)

    async def _abort(self, transaction: ServerTransaction) -> None:
        await self._until_answered(lambda: transaction.abort(self._client))

    async def _until_answered(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        clock = asyncio.get_running_loop().time
        server_drops_it_at = clock() + _TRANSACTION_LIFETIME_SECONDS
        seconds = _FIRST_CALL_SECONDS
        while (seconds_left := server_drops_it_at - clock()) > 0:
            longest, left = min(seconds, seconds_left), list[Late]()
            try:
                await self._deadlines.keep(
                    _ended_by_the_driver(ask, longest), longest + _SPARE_SECONDS, left
                )
            except InvalidOperation:
                return  # the application has closed its client
            except (asyncio.TimeoutError, PyMongoError) as error:
                if isinstance(error, OperationFailure) and error.code == _NOT_IN_THE_STABLE_API:
                    raise
                if left:
                    await asyncio.wait(left)
                await asyncio.sleep(_PAUSE_SECONDS)
                seconds *= 2
            else:
                return


async def _ended_by_the_driver(ask: Callable[[], Coroutine[Any, Any, Any]], seconds: float) -> None:
    with pymongo.timeout(seconds):
        await ask()


async def _told(tell: Tell, work: Coroutine[Any, Any, None]) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    await work
    tell(SessionReaped(clock() - began))

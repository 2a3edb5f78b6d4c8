"""Transactions of the package's own: the only code that begins, repeats and ends them.

Commits of batches and the steps of jobs both run here. They differ in what they do in the
transaction, and in what they make of a failure. Everything else is the same: one session, one
deadline, attempts one after the other, and no transaction left open on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from credit_mongo.engine.attempt import Attempt
from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.storage.database import JOURNALED_MAJORITY
from credit_mongo.storage.redaction import Unlogged

__all__ = ["AfterFailure", "Transactions", "Work", "begin"]

_T = TypeVar("_T")
Work: TypeAlias = Callable[[Attempt, AsyncClientSession], Coroutine[Any, Any, _T]]
"""One attempt: it begins the transaction, and commits it."""
AfterFailure: TypeAlias = Callable[[Attempt, Exception], float]
"""How many seconds to wait before the next attempt; raises if there is to be none."""


async def begin(session: AsyncClientSession) -> None:
    """Begin a transaction that reads one snapshot and is durable once it is committed."""
    await session.start_transaction(
        read_concern=ReadConcern("snapshot"),
        write_concern=JOURNALED_MAJORITY,
        read_preference=ReadPreference.PRIMARY,
    )


class Transactions:
    """Runs transactions on one client."""

    def __init__(
        self, client: AsyncMongoClient[Any], deadlines: Deadlines, reaper: SessionReaper
    ) -> None:
        self._client = client
        self._deadlines = deadlines
        self._reaper = reaper

    async def run(
        self,
        work: Work[_T],
        *,
        seconds_left: Callable[[], float],
        after_failure: AfterFailure,
    ) -> _T:
        """What the work comes to, in as many attempts as ``after_failure`` allows.

        An attempt that is not done when no seconds are left has failed by asyncio.TimeoutError. The
        deadline may move meanwhile.
        """
        session = self._client.start_session()
        attempt = Attempt()
        left: list[Late] = []
        is_done = False
        try:
            while True:
                try:
                    with Unlogged():
                        done = await self._deadlines.keep_while(
                            work(attempt, session), seconds_left, left
                        )
                except Exception as error:
                    seconds = after_failure(attempt, error)
                    session = await self._reaper.next_session(session, seconds_left())
                    await asyncio.sleep(seconds)
                    attempt = attempt.next()
                else:
                    is_done = True
                    return done
        finally:
            if is_done:
                await session.end_session()
            else:
                attempt.abandon()
                self._reaper.end(session, left)

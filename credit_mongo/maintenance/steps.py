"""Steps: the transactions of a job that comes to its end by many of them, each by a deadline.

A step can be taken again without harm: it looks at what is there, and goes on from that. So every
error of the commit, after which nobody knows whether it was applied, is another try, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import ConnectionFailure, DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.engine.failures import as_storage_error, caused_by, may_pass
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.errors import CreditError, JobTimeoutError, StorageError
from credit_mongo.storage.database import JOURNALED_MAJORITY
from credit_mongo.storage.redaction import Unlogged

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Step", "Steps"]

_T = TypeVar("_T")
Step: TypeAlias = Callable[[AsyncClientSession], Awaitable[_T]]

# Whoever holds a user lets go of it within milliseconds; an election takes seconds.
_SHORTEST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0


class Steps:
    """Takes steps. When it is left, no transaction stays open on a server that answers."""

    def __init__(self, client: AsyncMongoClient[Any], step_seconds: float) -> None:
        self._client = client
        self._seconds = step_seconds
        self._deadlines = Deadlines(client)
        self._reaper = SessionReaper(client, self._deadlines)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._reaper.close(_LAST_SECONDS)

    async def take(self, step: Step[_T]) -> _T:
        """One step, in a transaction that is committed.

        Raises what the step does, JobTimeoutError if it is not done in time or nobody knows whether
        it is, and StorageError.
        """
        clock = asyncio.get_running_loop().time
        deadline, tries, may_be_written = clock() + self._seconds, 0, False
        while True:
            attempt = _Attempt(self._client.start_session())
            try:
                with Unlogged():
                    return await self._make(attempt, step, deadline - clock())
            except (PyMongoError, asyncio.TimeoutError) as error:
                tries += 1
                pause = _pause(tries)
                may_be_written = may_be_written or attempt.is_sent
                if not attempt.can_be_repeated_after(error):
                    raise as_storage_error(error)  # noqa: B904 - with its cause
                if clock() + pause >= deadline:
                    raise _not_in_time(error, may_be_written)  # noqa: B904 - with its cause
                await asyncio.sleep(pause)

    async def _make(self, attempt: _Attempt, step: Step[_T], seconds: float) -> _T:
        left: list[Late] = []
        is_done = False
        try:
            done = await self._deadlines.keep(attempt.make(step), seconds, left)
            is_done = True
        finally:
            if not is_done:
                attempt.is_given_up = True
                self._reaper.end(attempt.session, left)
        await attempt.session.end_session()
        return done


class _Attempt:
    """One try of a step, in a session of its own."""

    def __init__(self, session: AsyncClientSession) -> None:
        self.session = session
        self.is_given_up = False
        self.is_sent = False

    async def make(self, step: Step[_T]) -> _T:
        await self.session.start_transaction(
            read_concern=ReadConcern("snapshot"),
            write_concern=JOURNALED_MAJORITY,
            read_preference=ReadPreference.PRIMARY,
        )
        done = await step(self.session)
        if self.is_given_up:
            # Nobody waits for it; another try may be at the same.
            raise asyncio.CancelledError
        self.is_sent = True
        await self.session.commit_transaction()
        return done

    def can_be_repeated_after(self, error: Exception) -> bool:
        return (
            self.is_sent
            or isinstance(error, asyncio.TimeoutError | DuplicateKeyError)
            or may_pass(error)
        )


def _pause(tries: int) -> float:
    longest = min(_SHORTEST_PAUSE_SECONDS * 2 ** min(tries, 16), _LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311 - so that two do not meet again


def _not_in_time(error: Exception, may_be_written: bool) -> CreditError:
    if isinstance(error, asyncio.TimeoutError):
        text = "the database did not answer in time"
        return caused_by(error, JobTimeoutError(f"{text}: call it again to complete it"))
    is_down = isinstance(error, ConnectionFailure) and not may_be_written
    kind = StorageError if is_down else JobTimeoutError
    return caused_by(error, kind(f"{as_storage_error(error)}; it was tried until time ran out"))

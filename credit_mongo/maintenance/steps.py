"""Steps: the transactions of a job that needs many of them, each with a deadline.

A step can be taken again without harm: it looks at what is there, and goes on from that. So an
error of the commit, whose outcome is unknown, leads to another attempt like any other.
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

from credit_mongo.engine.attempt import Attempt, Stage
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error, caused_by, is_conflict, may_pass
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.transactions import Transactions, begin
from credit_mongo.errors import CreditError, JobTimeoutError, StorageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Step", "Steps"]

_T = TypeVar("_T")
Step: TypeAlias = Callable[[AsyncClientSession], Awaitable[_T]]

_PASSING: Final = (asyncio.TimeoutError, DuplicateKeyError)
# Whoever holds a user lets go of it within milliseconds; an election takes seconds.
_SHORTEST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0
_HELD: Final = (
    "another transaction has held the same documents all the time. If its process was killed, the "
    "server ends it within a minute: call it again after that to complete it"
)


class Steps:
    """Takes steps. When it is left, no transaction stays open on a server that answers."""

    def __init__(self, client: AsyncMongoClient[Any], step_seconds: float) -> None:
        self._seconds = step_seconds
        deadlines = Deadlines(client)
        self._reaper = SessionReaper(client, deadlines)
        self._transactions = Transactions(client, deadlines, self._reaper)

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
        deadline = clock() + self._seconds
        may_be_written = False

        async def make(attempt: Attempt, session: AsyncClientSession) -> _T:
            await begin(session)
            attempt.enter(Stage.WRITING)
            done = await step(session)
            attempt.enter(Stage.COMMITTING)
            await session.commit_transaction()
            return done

        def after_failure(attempt: Attempt, error: Exception) -> float:
            nonlocal may_be_written
            is_sent = attempt.stage is Stage.COMMITTING
            may_be_written = may_be_written or is_sent
            if not isinstance(error, PyMongoError | asyncio.TimeoutError):
                raise error
            if not (is_sent or isinstance(error, _PASSING) or may_pass(error)):
                raise as_storage_error(error)
            pause = _pause(attempt.number)
            if clock() + pause >= deadline:
                raise _not_in_time(error, may_be_written)
            return pause

        return await self._transactions.run(
            make, seconds_left=lambda: deadline - clock(), after_failure=after_failure
        )


def _pause(tries: int) -> float:
    longest = min(_SHORTEST_PAUSE_SECONDS * 2 ** min(tries, 16), _LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)  # noqa: S311 - so that two do not meet again


def _not_in_time(error: Exception, may_be_written: bool) -> CreditError:
    if isinstance(error, asyncio.TimeoutError):
        text = "the database did not answer in time"
        return caused_by(error, JobTimeoutError(f"{text}: call it again to complete it"))
    if is_conflict(error):
        return caused_by(error, JobTimeoutError(_HELD))
    is_down = isinstance(error, ConnectionFailure) and not may_be_written
    kind = StorageError if is_down else JobTimeoutError
    return caused_by(error, kind(f"{as_storage_error(error)}; it was tried until time ran out"))

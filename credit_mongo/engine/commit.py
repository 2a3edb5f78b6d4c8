"""The commit: the only code that starts a database transaction.

    load → decide → write → commit

A failure before the commit was sent means that nothing happened. From the moment it is sent, every
error, timeout and cancellation leaves the outcome unknown, whatever its label says: some commits
are applied and then raise. An unknown outcome is settled by the next try. It looks for a row of the
commit before; if the row is there, so is the whole batch, with the outcomes decided then. If not,
it writes the same rows under the same ids. When the server has taken those writes, the commit
before can no longer happen: were it still open, they would have conflicted with it, and had it
ended since this try's snapshot, likewise.

That needs both tries to write the same rows. They do: a batch is decided as of one moment, and as
long as the commit before is open, nobody else can change what it read and wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from credit_mongo.config import RetryConfig
from credit_mongo.core.books import Books, Outcome
from credit_mongo.core.requests import Request
from credit_mongo.core.results import Result
from credit_mongo.core.rules import Rules
from credit_mongo.engine.store import JOURNALED_MAJORITY, Store, Witness
from credit_mongo.engine.turns import Turns, seconds_to_wait
from credit_mongo.errors import (
    CommitOutcomeUnknownError,
    CreditError,
    ReplicaSetRequiredError,
    StorageError,
)

__all__ = ["Clock", "Committer", "as_storage_error"]

Clock: TypeAlias = Callable[[], datetime]

_TRANSIENT: Final = "TransientTransactionError"
_WRITE_CONFLICT: Final = 112
_ILLEGAL_OPERATION: Final = 20
# A key or an id that another process commits between our reads and our writes shows itself as a
# duplicate once. One that stays is a unique index of the application's.
_MOST_DUPLICATES: Final = 3
_ABORT_SECONDS: Final = 1.0
# MongoDB's default transactionLifetimeLimitSeconds.
_TRANSACTION_LIFETIME_SECONDS: Final = 60


@dataclass(slots=True)
class _Sent:
    """A commit that was sent: its outcomes hold if the witness is found."""

    witness: Witness
    outcomes: list[Outcome]


class _Batch:
    """Requests on their way to one commit, and what is known of the way so far."""

    def __init__(self, requests: Sequence[Request], now: datetime, deadline: float) -> None:
        self.requests = requests
        self.now = now
        self.deadline = deadline
        self.unknown: _Sent | None = None
        self.failures = 0
        self.conflicts = 0
        self.duplicates = 0

    def seconds_left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    def not_done(self, error: BaseException | None) -> StorageError:
        """What to tell the callers when there will be no further try."""
        if self.unknown is not None:
            return CommitOutcomeUnknownError()
        if isinstance(error, PyMongoError):
            return as_storage_error(error)
        return StorageError("the database did not answer in time; nothing was written")


class Committer:
    """Commits batches: each request gets its own outcome."""

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        store: Store,
        rules: Rules,
        *,
        retry: RetryConfig,
        turns: Turns,
        clock: Clock,
    ) -> None:
        self._client = client
        self._store = store
        self._rules = rules
        self._retry = retry
        self._turns = turns
        self._clock = clock
        self._left_behind: set[asyncio.Future[None]] = set()

    async def commit(self, requests: Sequence[Request], deadline: float) -> list[Outcome]:
        """Outcomes in the order of the requests, by ``deadline`` (of the loop's clock).

        A failure of the database is an outcome too. If the server refuses to write the batch, it is
        cut in halves until the request that is at fault fails alone.
        """
        batch = _Batch(requests, self._clock(), deadline)
        try:
            return await self._commit_together(batch)
        except _RefusedByServerError as refused:
            if len(requests) > 1 and batch.unknown is None:
                half = len(requests) // 2
                first = await self.commit(requests[:half], deadline)
                return first + await self.commit(requests[half:], deadline)
            error = batch.not_done(refused.__cause__)
            error.__cause__ = refused.__cause__
        except StorageError as failed:
            error = failed
        # One for each: an error that is raised takes up the traceback of its raising.
        return [_copy(error) for _ in requests]

    async def commit_in(self, request: Request, session: AsyncClientSession) -> Result:
        """The same in a transaction of the application's, which commits or aborts it.

        Never repeated here. A refusal is audited outside the transaction and raised.
        """
        try:
            now = self._clock()
            loaded = await self._store.load([request], now, session)
            books = Books.open(self._rules, now, loaded)
            [outcome] = books.decide_all([request])
            if not isinstance(outcome, CreditError):
                await self._store.write(books, loaded, session)
                return outcome
            for refusal in books.refusals:
                await self._store.write_refusal(refusal)
        except PyMongoError as error:
            raise as_storage_error(error) from error
        raise outcome

    async def close(self) -> None:
        """Wait for the transactions that a deadline left behind to be ended on the server."""
        while self._left_behind:
            await asyncio.wait(self._left_behind)

    async def _commit_together(self, batch: _Batch) -> list[Outcome]:
        session = self._client.start_session()
        try:
            while True:
                error: BaseException
                try:
                    return await asyncio.wait_for(
                        self._try(batch, session), max(batch.seconds_left(), 0)
                    )
                except (asyncio.TimeoutError, PyMongoError) as failure:
                    error = failure
                await self._before_next_try(batch, session, error)
        finally:
            if session.in_transaction:
                self._end_in_background(session)
            else:
                await session.end_session()

    async def _try(self, batch: _Batch, session: AsyncClientSession) -> list[Outcome]:
        await session.start_transaction(
            read_concern=ReadConcern("snapshot"),
            write_concern=JOURNALED_MAJORITY,
            read_preference=ReadPreference.PRIMARY,
        )
        if self._turns.are_needed():
            await self._store.take_turn(session)
        sent = batch.unknown
        if sent is not None and await self._store.contains(sent.witness, session):
            # What this snapshot shows is durable once a majority has acknowledged the commit.
            await session.commit_transaction()
            return sent.outcomes
        loaded = await self._store.load_keys_beside(batch.requests, batch.now, session)
        books = Books.open(self._rules, batch.now, loaded)
        outcomes = books.decide_all(batch.requests)
        witness = await self._store.write(books, loaded, session)
        if witness is not None:
            batch.unknown = _Sent(witness, outcomes)
            await session.commit_transaction()
        return outcomes

    async def _before_next_try(
        self, batch: _Batch, session: AsyncClientSession, error: BaseException
    ) -> None:
        """Wait as long as the failure asks for; raise if there is to be no next try."""
        if isinstance(error, asyncio.TimeoutError):
            raise batch.not_done(error) from error
        if isinstance(error, DuplicateKeyError) and batch.duplicates < _MOST_DUPLICATES:
            batch.duplicates += 1
            seconds = 0.0
        elif isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT:
            batch.conflicts += 1
            self._turns.met_conflict(batch.conflicts)
            seconds = seconds_to_wait()
        elif batch.unknown is None and not _may_pass(error):
            raise _RefusedByServerError from error
        else:
            batch.failures += 1
            gives_up = not self._retry.enabled or batch.failures >= self._retry.max_attempts
            if gives_up and batch.unknown is None:
                raise batch.not_done(error) from error
            seconds = self._retry.delay_seconds(batch.failures)
        if seconds >= batch.seconds_left():
            raise batch.not_done(error) from error
        await _abort(session, batch.seconds_left())
        await asyncio.sleep(seconds)

    def _end_in_background(self, session: AsyncClientSession) -> None:
        """End a transaction whose callers have their answers already."""
        ending = asyncio.ensure_future(self._end(session))
        self._left_behind.add(ending)
        ending.add_done_callback(self._left_behind.discard)

    async def _end(self, session: AsyncClientSession) -> None:
        # The driver's abort is sent once and its failure swallowed. This is sent until the server
        # has answered, or has dropped the transaction by itself.
        loop = asyncio.get_running_loop()
        server_drops_it_at = loop.time() + _TRANSACTION_LIFETIME_SECONDS
        try:
            await _abort(session, _ABORT_SECONDS)
            while loop.time() < server_drops_it_at:
                try:
                    await asyncio.wait_for(
                        self._client.admin.command({"killSessions": [session.session_id]}),
                        _ABORT_SECONDS,
                    )
                except (asyncio.TimeoutError, PyMongoError):
                    await asyncio.sleep(_ABORT_SECONDS)
                else:
                    return
        finally:
            await session.end_session()


class _RefusedByServerError(Exception):
    """Another try would fail the same way; the cause is the driver's error."""


def _copy(error: StorageError) -> StorageError:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _may_pass(error: BaseException) -> bool:
    """Whether another try can go better: a lost connection, an election, a conflict."""
    return isinstance(error, PyMongoError) and (
        error.has_error_label(_TRANSIENT)
        or error.has_error_label("RetryableWriteError")
        or isinstance(error, ConnectionFailure)
    )


async def _abort(session: AsyncClientSession, seconds: float) -> None:
    """Tell the server, if it listens; the session's next transaction ends this one in any case."""
    if session.in_transaction:
        with contextlib.suppress(asyncio.TimeoutError, PyMongoError):
            await asyncio.wait_for(session.abort_transaction(), min(seconds, _ABORT_SECONDS))


def as_storage_error(error: PyMongoError) -> StorageError:
    """A driver's error as one of ours, with the labels that ``with_transaction`` looks at."""
    if isinstance(error, StorageError):
        return error
    labels = [
        label
        for label in (_TRANSIENT, "UnknownTransactionCommitResult", "RetryableWriteError")
        if error.has_error_label(label)
    ]
    if isinstance(error, DuplicateKeyError):
        # In an application's transaction: tried again as a whole, it meets the key as known.
        return StorageError(
            "another process wrote the same key at the same time", error_labels=[_TRANSIENT]
        )
    if isinstance(error, OperationFailure):
        if error.code == _ILLEGAL_OPERATION:
            return ReplicaSetRequiredError()
        # The server's text can quote documents; its code cannot.
        name = (error.details or {}).get("codeName") or type(error).__name__
        return StorageError(
            f"the server refused the operation: {name} (code {error.code})", error_labels=labels
        )
    return StorageError(f"{type(error).__name__}: {error}", error_labels=labels)

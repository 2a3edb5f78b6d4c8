"""Sessions of the application: which calls they take, and which transactions may commit.

A call in the application's transaction can end after some of its writes and before the others: it
is cancelled, its deadline passes, the server fails. The application may catch that and commit, and
half an operation would be there for good. So every session that the ledger works in has a guard in
front of its ``commit_transaction``, which refuses from the moment a call begins until it has a
result or a refusal. No await lies between the two, so nothing can come in between: neither a second
cancellation, nor a commit that does not wait for the call, nor the end of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar
from weakref import WeakSet

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.engine.contention import PART_TO_WAIT, ContendedUsers
from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.engine.failures import is_conflict
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.errors import InvalidRequestError, StorageError, TransactionAbortedError
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.redaction import Unlogged
from credit_mongo.storage.server_transactions import ServerTransaction, has_begun

__all__ = ["ApplicationSessions"]

_R = TypeVar("_R")
_TRANSIENT: Final = "TransientTransactionError"
_GUARD: Final = "_credit_mongo_guard"


class ApplicationSessions:
    """The application's sessions, as one ledger uses them."""

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        *,
        deadlines: Deadlines,
        reaper: SessionReaper,
        latest_write: LatestWrite,
        contended: ContendedUsers,
        timeout_seconds: float,
    ) -> None:
        self._client = client
        self._deadlines = deadlines
        self._reaper = reaper
        self._latest_write = latest_write
        self._contended = contended
        self._timeout_seconds = timeout_seconds

    async def read(
        self, session: AsyncClientSession, work: Callable[[], Coroutine[Any, Any, _R]]
    ) -> _R:
        """Read in a session, in a transaction or not. However it ends, nothing is half done."""
        guard = self._begin(session)
        left: list[Late] = []
        try:
            return await self._in_time(work(), left)
        finally:
            guard.end(left, session)

    async def write(
        self,
        session: AsyncClientSession,
        user_id: str,
        work: Callable[[], Coroutine[Any, Any, _R]],
    ) -> _R:
        """Write a user in the session's transaction, which can no longer commit if this raises.

        Raises InvalidRequestError and TransactionAbortedError before anything is begun; these leave
        the transaction as it was.
        """
        guard = self._begin(session)
        left: list[Late] = []
        try:
            if not session.in_transaction:
                raise InvalidRequestError("session", "has no transaction in progress: start one")
            transaction = ServerTransaction.latest_of(session)
            try:
                return await self._in_time(self._in_turn(guard, session, user_id, work), left)
            except BaseException as error:
                guard.abort(error)
                if is_conflict(error) or is_conflict(error.__cause__):
                    self._contended.met(user_id)
                if transaction is not None and not _has_ended_on_the_server(error):
                    self._reaper.abort(transaction)
                raise
        finally:
            guard.end(left, session)

    async def _in_turn(
        self,
        guard: _Guard,
        session: AsyncClientSession,
        user_id: str,
        work: Callable[[], Coroutine[Any, Any, _R]],
    ) -> _R:
        """Work when it is the transaction's turn. It waits only before its first command."""
        users = guard.add(user_id, self._contended)
        if has_begun(session):
            self._contended.take(user_id, guard)
        else:
            within = PART_TO_WAIT * self._timeout_seconds
            await self._contended.join(users, guard, within=within)
        return await work()

    def _begin(self, session: AsyncClientSession) -> _Guard:
        if session.client is not self._client:
            raise InvalidRequestError(
                "session", "belongs to another client than the ledger's: start one on that client"
            )
        if session.has_ended:
            raise InvalidRequestError("session", "has ended")
        guard = _Guard.of(session)
        guard.begin(self._latest_write)
        return guard

    async def _in_time(self, work: Coroutine[Any, Any, _R], left: list[Late]) -> _R:
        try:
            with Unlogged():
                return await self._deadlines.keep_or_cancel(work, self._timeout_seconds, left)
        except asyncio.TimeoutError as error:
            raise StorageError("the database did not answer in time") from error


def _has_ended_on_the_server(error: BaseException) -> bool:
    """Whether the server said itself that the transaction is over (a conflict, an election, …)."""
    cause = error.__cause__
    return isinstance(cause, OperationFailure) and cause.has_error_label(_TRANSIENT)


class _Guard:
    """Stands in front of a session's ``commit_…``, ``abort_…`` and ``start_transaction``.

    These are attributes of the application's own object, whichever driver's it is, so that its
    ``with_transaction`` and ``async with`` go through them as well.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._commit = session.commit_transaction
        self._start = session.start_transaction
        self._abort = session.abort_transaction
        self._contended: ContendedUsers | None = None
        # Whom the transaction writes, and whom the one before wrote: this may be its repetition.
        self._user_ids: set[str] = set()
        self._earlier_user_ids: set[str] = set()
        self._is_in_use = False
        # What the driver is still doing for calls that have ended: Motor's threads go on.
        self._late: set[Late] = set()
        self._aborted_by: BaseException | None = None
        self._latest_writes: WeakSet[LatestWrite] = WeakSet()

    @classmethod
    def of(cls, session: Any) -> _Guard:
        """The session's guard, which is put there if it has none."""
        given = getattr(session, "application_session", None) or session
        guard: _Guard | None = getattr(given, _GUARD, None)
        if guard is None:
            guard = cls(given)
            given.commit_transaction = guard.commit_transaction
            given.start_transaction = guard.start_transaction
            given.abort_transaction = guard.abort_transaction
            setattr(given, _GUARD, guard)
        return guard

    def begin(self, latest_write: LatestWrite) -> None:
        """A call begins: nothing commits until it has ended."""
        if self._aborted_by is not None and self._session.in_transaction:
            raise self._aborted()
        if self._is_in_use or self._late:
            # The driver would mix up their commands (asyncio.gather on one session).
            raise InvalidRequestError("session", "is in use by another operation: await that first")
        self._is_in_use = True
        self._latest_writes.add(latest_write)

    def add(self, user_id: str, contended: ContendedUsers) -> set[str]:
        """Note whom the transaction writes. Return whom it will write, as far as is known."""
        self._contended = contended
        self._user_ids.add(user_id)
        return self._user_ids | self._earlier_user_ids

    def _leave(self) -> None:
        """End the transaction's turns. Leaving twice does no harm."""
        if self._contended is not None:
            self._contended.leave(self._user_ids | self._earlier_user_ids, self)

    def abort(self, error: BaseException) -> None:
        """The call in progress has no outcome: its transaction never commits."""
        self._aborted_by = error

    def end(self, left: list[Late], session: AsyncClientSession) -> None:
        """The call has ended. What its driver still does is waited for by whatever comes next."""
        self._is_in_use = False
        for work in (*left, *getattr(session, "in_flight", ())):
            self._late.add(work)
            work.add_done_callback(self._late.discard)

    async def commit_transaction(self) -> None:
        """Commit, unless a call of the ledger's is under way or ended without an outcome.

        Raises InvalidRequestError, TransactionAbortedError, and what the driver raises.
        """
        if self._is_in_use:
            raise InvalidRequestError(
                "session", "is in use by an operation of the ledger: await that before the commit"
            )
        if self._aborted_by is not None:
            # So that with_transaction can begin another transaction in this session.
            if self._session.in_transaction:
                await self._session.abort_transaction()
            raise self._aborted()
        self._is_in_use = True
        try:
            await self._commit()
        finally:
            self._is_in_use = False
            self._leave()
        for latest_write in self._latest_writes:
            latest_write.was(self._session)

    async def abort_transaction(self) -> None:
        """Abort, and let the next transaction go."""
        try:
            await self._abort()
        finally:
            self._leave()

    def start_transaction(self, *arguments: Any, **options: Any) -> Awaitable[Any]:
        """Begin another transaction, which has no part in what happened to the one before."""
        if not self._session.in_transaction:
            if self._is_in_use or self._late:
                raise InvalidRequestError(
                    "session",
                    "an operation of the ledger is still under way in it: use another session",
                )
            self._aborted_by = None
            self._leave()
            self._earlier_user_ids, self._user_ids = self._user_ids, set()
        started: Awaitable[Any] = self._start(*arguments, **options)
        return started

    def _aborted(self) -> TransactionAbortedError:
        error, labels = self._aborted_by, []
        if isinstance(error, PyMongoError) and error.has_error_label(_TRANSIENT):
            labels = [_TRANSIENT]
        aborted = TransactionAbortedError(error_labels=labels)
        aborted.__cause__ = error
        return aborted

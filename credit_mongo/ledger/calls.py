"""What all methods of the ledger share: it opens and closes, and takes requests to the engine."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bson import ObjectId
from bson.errors import BSONError
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from credit_mongo.config import LONGEST_TTL_SECONDS, CreditConfig, PoolProfile
from credit_mongo.core.decision import Request
from credit_mongo.core.operations.hold_results import Hold
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.values import (
    check_identifier,
    check_optional,
    check_seconds,
)
from credit_mongo.drivers import AnyDatabase, AnySession
from credit_mongo.engine.contention import ContendedUsers
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.engine.lanes import Lanes
from credit_mongo.engine.observer import (
    LedgerClosed,
    LedgerCreated,
    Load,
    Observer,
    observed,
    tell_by,
)
from credit_mongo.engine.open_holds import OpenHolds
from credit_mongo.engine.opening import Opening
from credit_mongo.engine.sessions import ApplicationSessions
from credit_mongo.engine.writing import Writing
from credit_mongo.errors import (
    ConfigurationError,
    CreditError,
    InvalidRequestError,
    LedgerBusyError,
    StorageError,
)
from credit_mongo.storage.clocks import Clock
from credit_mongo.storage.connection import EventListener, check_replica_set, connect
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.reads import History
from credit_mongo.storage.round_trip import shortest_round_trip
from credit_mongo.storage.rows import copy_metadata
from credit_mongo.storage.settings import LedgerSettings
from credit_mongo.storage.unreachable import not_in_time

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["LedgerCalls", "check_transaction_id"]

# How long a ledger that could not open waits for its client to close.
_QUICK_CLOSE_SECONDS = 0.2
# How long a closed ledger waits for driver calls that outlived their deadline. The driver checks
# twice a second whether its client was closed.
_LATE_CALLS_SECONDS = 1.0
# The users of so many holds are remembered, so that most calls need not look them up.
_MOST_OWNERS = 10_000
_R = TypeVar("_R")
_P = ParamSpec("_P")


def _load_of(lanes: Lanes, open_holds: OpenHolds) -> Callable[[], Load | None]:
    """How to read what a ledger has to do, without keeping one in memory that nobody closed."""
    its_lanes, its_holds = weakref.ref(lanes), weakref.ref(open_holds)

    def load() -> Load | None:
        lanes, open_holds = its_lanes(), its_holds()
        if lanes is None or open_holds is None:
            return None
        return Load(*lanes.load(), len(open_holds.open))

    return load


def _check_config(config: object) -> None:
    if not isinstance(config, CreditConfig):
        kind = type(config).__name__
        raise ConfigurationError("", f"config must be a CreditConfig, not {kind}")


def check_transaction_id(field: str, value: object) -> str:
    """Check an id. Return it as it is stored: callers may write its digits in capitals."""
    return str(to_object_id(check_identifier(field, value)))


class LedgerCalls:
    """Opens and closes a ledger, and makes the calls of its methods."""

    def __init__(
        self,
        database: AnyDatabase,
        config: CreditConfig,
        *,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Create a ledger on a database of the application's client.

        The client is PyMongo's AsyncMongoClient or Motor's AsyncIOMotorClient. The ledger never
        closes it.

        The ledger takes the time from this machine's clock. If that differs from the server's
        clock by more than the configuration's ``max_clock_skew_seconds``, operations raise
        ClockSkewError.

        ``clock`` is for tests: a function that returns the time, with a time zone. It may differ
        from the server's clock by months, because the ledger doesn't compare the two. If a user's
        last transaction is dated after ``clock``, the user's next operation takes that later date.

        ``observer`` is a function that the ledger calls with events, for metrics: see
        `credit_mongo.engine.observer`.

        Raises ConfigurationError if ``config`` is not a CreditConfig or ``observer`` no function.
        """
        _check_config(config)
        self._tell = tell_by(observer)
        self._config = config
        self._database = own = LedgerDatabase.of(database, config.collections, config.users)
        writing = Writing.of(own, config, clock=clock, tell=self._tell)
        self._key_gap = writing.key_gap
        self._policy = writing.policy
        self._owners_of_holds: OrderedDict[str, str] = OrderedDict()
        self._clock = writing.clock
        self._owns_client = False
        self._users = own.users
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines = writing.deadlines
        self._committer = writing.committer
        contended = ContendedUsers()
        self._lanes = Lanes(
            self._committer.commit,
            self._committer.commit_patiently,
            writing.turns,
            contended,
            timeout_seconds=config.operation_timeout_seconds,
            round_trip_seconds=lambda: shortest_round_trip(own.client),
            tell=self._tell,
        )
        waits = config.on_busy == "wait"
        self._enqueue = self._lanes.submit_when_there_is_room if waits else self._lanes.submit
        self._history = History(own, self._policy, writing.latest_write, self._clock)
        self._sessions = ApplicationSessions(
            own.client,
            deadlines=self._deadlines,
            reaper=writing.reaper,
            latest_write=writing.latest_write,
            contended=contended,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._opening = Opening(
            own,
            LedgerSettings.of(config),
            self._deadlines,
            timeout_seconds=config.operation_timeout_seconds,
        )
        self._open_holds = OpenHolds(
            self._policy,
            place=self._place,
            submit=self._submit_of_open_hold,
            find=lambda hold_id: self._read(None, self._history.hold, hold_id, None),
            timeout_seconds=config.operation_timeout_seconds,
            gives_keys=config.idempotency.enabled,
        )
        self._load = _load_of(self._lanes, self._open_holds)
        if self._tell is not None:
            self._tell(LedgerCreated(self._load))

    @classmethod
    def connect(
        cls,
        uri: str,
        *,
        database: str,
        config: CreditConfig,
        pool_profile: PoolProfile | None = None,
        min_pool_size: int | None = None,
        max_pool_size: int | None = None,
        event_listeners: Iterable[EventListener] = (),
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> Self:
        """Create a ledger with a client of its own. Closing the ledger closes the client.

        ``uri`` is a MongoDB connection string, ``database`` the name of the database. ``clock``
        (for tests) and ``observer`` are those of the constructor.

        ``min_pool_size`` (0 to 10,000) is how many connections to each server stay open,
        ``max_pool_size`` (1 to 10,000) how many there are at most. ``pool_profile`` gives the
        sizes that you don't: ``"development"`` 5 and 10, ``"production"`` 10 and 20,
        ``"high-traffic"`` 20 and 50. Default: those of the URI, or the driver's, 0 and 100. A
        ledger writes through few connections, because callers share commits; its reads need one
        each. If calls wait for a connection, the logger ``credit_mongo`` warns at most once a
        minute.

        ``event_listeners`` are listeners of ``pymongo.monitoring`` for the client, such as
        ``credit_mongo.observability.CommandLog``.

        Raises ConfigurationError as the constructor does, for a size that is out of range or is
        also in the URI, and if the URI is invalid or contains an option that MongoDB's driver would
        ignore.
        """
        _check_config(config)
        tell_by(observer)  # before there is a client
        own = connect(
            uri,
            database,
            config.operation_timeout_seconds,
            pool_profile=pool_profile,
            min_pool_size=min_pool_size,
            max_pool_size=max_pool_size,
            event_listeners=event_listeners,
        )
        ledger = cls(own, config, clock=clock, observer=observer)
        ledger._owns_client = True
        return ledger

    def __repr__(self) -> str:
        """Show where the credits are and whether the ledger is open, but nothing of the URI."""
        names = self._config.collections
        return (
            f"<CreditLedger database={self._database.name!r} users={names.users!r} "
            f"transactions={names.transactions!r} decimal_places={self._config.decimal_places} "
            f"{'closed' if self._is_closed else 'open'}>"
        )

    async def __aenter__(self) -> Self:
        """Check that the server is a replica set, and compare the settings with the database's.

        Raises ReplicaSetRequiredError; ConfigurationError if the ledger in the database was set up
        with other settings; and StorageError if no server answers in time. A ledger used without
        ``async with`` compares the settings before its first operation.
        """
        try:
            await self._run_in_time(None, self._open)
        except BaseException:
            # No operation has begun, and the deadline may have passed: don't wait for the client.
            await self._close_client(_QUICK_CLOSE_SECONDS)
            raise
        return self

    async def _open(self) -> None:
        await check_replica_set(self._database)
        await self._opening.check()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop accepting operations, finish the accepted ones, and close the ledger's own client.

        Holds whose ``async with`` block still runs are settled as if it had been interrupted.
        Finishes within three times ``operation_timeout_seconds``. A client that the application
        passed in stays open. Later calls raise LedgerBusyError.
        """
        was_open, self._is_closed = not self._is_closed, True
        seconds = self._config.operation_timeout_seconds
        await self._open_holds.close(seconds)
        await self._lanes.close()
        await self._committer.close(seconds)
        await self._close_client(seconds)
        await self._deadlines.close(min(seconds, _LATE_CALLS_SECONDS))
        if was_open and self._tell is not None:
            self._tell(LedgerClosed(self._load))

    async def _close_client(self, seconds: float) -> None:
        if self._owns_client:
            # The driver would wait half a minute for a frozen server to end its sessions. On the
            # second call it has no sessions left, and just closes its connections.
            for _ in range(2):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._database.client.close(), seconds / 2)
                    break

    def _check_open(self) -> None:
        """Raise LedgerBusyError if closed, ConfigurationError on another event loop."""
        if self._is_closed:
            raise LedgerBusyError("the ledger is closed: create a new one")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError(
                    "",
                    "the ledger belongs to the event loop that first used it: create a new ledger "
                    "for this loop, with a client of its own",
                )
            self._loop = loop

    def _common(
        self, user_id: object, key: object, key_ttl: object, metadata: object
    ) -> dict[str, Any]:
        shared = self._without_user(key, key_ttl, metadata)
        return {"user_id": self._users.check_id("user_id", user_id), **shared}

    def _without_user(self, key: object, key_ttl: object, metadata: object) -> dict[str, Any]:
        """Return the same for a call whose user must be looked up: bad input is refused before."""
        key = check_optional(check_identifier, "idempotency_key", key)
        return {
            "transaction_id": str(ObjectId()),
            "key": key if self._config.idempotency.enabled else None,
            "key_lifetime": None if key_ttl is None else self._lifetime(key, key_ttl),
            "metadata": copy_metadata(metadata),
        }

    def _lifetime(self, key: object, seconds: object) -> timedelta:
        """Return how long the ledger remembers a key whose call says so itself."""
        ttl = check_seconds("idempotency_ttl", seconds, least=1, most=LONGEST_TTL_SECONDS)
        if key is None:
            reason = "cannot be given without an idempotency_key"
            raise InvalidRequestError("idempotency_ttl", reason)
        return ttl + self._key_gap

    def _submit(self, request: Request[_R], session: AnySession | None) -> Awaitable[_R]:
        if self._tell is None:
            return self._submit_unobserved(request, session)
        return observed(self._tell, request.operation, self._submit_unobserved, request, session)

    def _submit_unobserved(self, request: Request[_R], session: AnySession | None) -> Awaitable[_R]:
        self._check_open()
        own = self._database.session(session)
        if own is not None:
            return self._submit_in_session(request, own)
        return self._enqueue(request) if self._opening.is_done else self._submit_first(request)

    async def _submit_first(self, request: Request[_R]) -> _R:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._read(None, self._opening.check)
        return await self._enqueue(request, spent_seconds=loop.time() - began)

    async def _submit_in_session(self, request: Request[_R], session: AsyncClientSession) -> _R:
        try:
            outcome = await self._sessions.write(
                session,
                request.user_id,
                lambda: self._after_opening(self._committer.commit_in, request, session),
            )
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
        if isinstance(outcome, CreditError):
            raise outcome
        return outcome

    def _after_opening(
        self,
        work: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> Coroutine[Any, Any, _R]:
        """Return the work, preceded by the check of the settings if that hasn't happened yet."""
        if self._opening.is_done:
            return work(*arguments, **options)

        async def open_and_work() -> _R:
            await self._opening.check()
            return await work(*arguments, **options)

        return open_and_work()

    async def _read(
        self,
        session: AsyncClientSession | None,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        return await self._run_in_time(session, self._after_opening, read, *arguments, **options)

    async def _run_in_time(
        self,
        session: AsyncClientSession | None,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        self._check_open()
        try:
            if session is not None:
                return await self._sessions.read(session, lambda: read(*arguments, **options))
            work = read(*arguments, **options)
            return await self._deadlines.keep(work, self._config.operation_timeout_seconds)
        except asyncio.TimeoutError as error:
            raise StorageError(not_in_time(self._database.client)) from error
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    # For holds

    async def _place(self, request: PlaceHoldRequest, session: AnySession | None = None) -> Hold:
        hold = await self._submit(request, session)
        self._remember_owner(hold.hold_id, hold.user_id)
        return hold

    def _submit_of_open_hold(
        self, request: Request[_R], *, spent_seconds: float = 0.0
    ) -> Awaitable[_R]:
        """Submit a heartbeat or a settlement, also while the ledger closes."""
        if self._tell is None:
            return self._enqueue(request, spent_seconds=spent_seconds)
        return observed(
            self._tell, request.operation, self._enqueue, request, spent_seconds=spent_seconds
        )

    def _remember_owner(self, hold_id: str, user_id: str) -> None:
        self._owners_of_holds[hold_id] = user_id
        if len(self._owners_of_holds) > _MOST_OWNERS:
            self._owners_of_holds.popitem(last=False)

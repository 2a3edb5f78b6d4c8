"""PyMongo's async API in front of a synchronous driver: as much of it as the ledger uses.

Motor is such a driver with threads before it, and mongomock is one that waits for nothing. Who runs
a call, and where, is told by a ``Run``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from bson.codec_options import CodecOptions

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AdaptedClient",
    "AdaptedCollection",
    "AdaptedCursor",
    "AdaptedDatabase",
    "AdaptedSession",
    "Run",
]

Run: TypeAlias = Callable[..., Awaitable[Any]]
"""Calls its first argument with the others."""

# Several documents come with one reply; a call for each would cost a change of threads.
_READ_AHEAD: Final = 1000


class _Adapted:
    """An object of the synchronous driver, whose calls are awaited."""

    _awaited: ClassVar[frozenset[str]] = frozenset()
    _give_cursors: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, delegate: Any, run: Run) -> None:
        self.delegate = delegate
        self._run = run

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name in self._awaited:
            return partial(self._call, name)
        if name in self._give_cursors:
            return partial(self._call_for_cursor, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    async def _call(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        function = getattr(self.delegate, name)
        work = self._run(_outcome_of, function, *arguments, **_unwrapped(options))
        session = options.get("session")
        if isinstance(work, asyncio.Future) and isinstance(session, AdaptedSession):
            outcome = await session.result_of(work)
        else:
            outcome = await work
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def _call_for_cursor(
        self, name: str, /, *arguments: Any, **options: Any
    ) -> AdaptedCursor:
        return AdaptedCursor(await self._call(name, *arguments, **options), self._run)


class _Outcome:
    """What a call came to: asyncio's debug mode shows the results and errors of futures."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any, error: Exception | None) -> None:
        self.result = result
        self.error = error


def _outcome_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> _Outcome:
    try:
        return _Outcome(function(*arguments, **options), None)
    except Exception as error:
        return _Outcome(None, error)


def _unwrapped(options: Mapping[str, Any]) -> dict[str, Any]:
    if "session" not in options:
        return dict(options)
    session = options["session"]
    return {**options, "session": getattr(session, "delegate", session)}


class AdaptedClient(_Adapted):
    """As an ``AsyncMongoClient``."""

    @property
    def options(self) -> Any:
        """Its ``ClientOptions``."""
        return self.delegate.options

    @property
    def topology_description(self) -> Any:
        """The servers, and how far they are; None in memory."""
        return getattr(self.delegate, "topology_description", None)

    @property
    def admin(self) -> AdaptedDatabase:
        """The server's own database."""
        return self["admin"]

    def __getitem__(self, name: str) -> AdaptedDatabase:
        return AdaptedDatabase(self.delegate[name], self._run, self)

    def start_session(self, **options: Any) -> AdaptedSession:
        """A session; nothing is sent for that."""
        return self.adopt_session(self.delegate.start_session(**options))

    def adopt_session(self, delegate: Any) -> AdaptedSession:
        """A session of the synchronous driver: of this client, or of one of its own."""
        is_ours = delegate.client is self.delegate
        client = self if is_ours else AdaptedClient(delegate.client, self._run)
        return AdaptedSession(delegate, self._run, client)


class AdaptedDatabase(_Adapted):
    """As an ``AsyncDatabase``."""

    _awaited = frozenset({"command", "list_collection_names"})
    _give_cursors = frozenset({"list_collections"})

    def __init__(self, delegate: Any, run: Run, client: AdaptedClient) -> None:
        super().__init__(delegate, run)
        self.client = client

    @property
    def name(self) -> str:
        """The database's name."""
        name: str = self.delegate.name
        return name

    @property
    def codec_options(self) -> CodecOptions[Any]:
        """How its documents are read."""
        options: CodecOptions[Any] = self.delegate.codec_options
        return options

    def with_options(self, **options: Any) -> AdaptedDatabase:
        """The same database, read and written otherwise."""
        return AdaptedDatabase(self.delegate.with_options(**options), self._run, self.client)

    def __getitem__(self, name: str) -> AdaptedCollection:
        return AdaptedCollection(self.delegate[name], self._run)


class AdaptedCollection(_Adapted):
    """As an ``AsyncCollection``."""

    _awaited = frozenset(
        {
            "count_documents",
            "delete_many",
            "delete_one",
            "estimated_document_count",
            "find_one",
            "find_one_and_delete",
            "find_one_and_update",
            "insert_many",
            "insert_one",
            "update_many",
            "update_one",
        }
    )
    _give_cursors = frozenset({"aggregate", "list_indexes"})

    def find(self, *arguments: Any, **options: Any) -> AdaptedCursor:
        """A cursor; nothing is sent for that."""
        return AdaptedCursor(self.delegate.find(*arguments, **_unwrapped(options)), self._run)

    def find_raw_batches(self, *arguments: Any, **options: Any) -> AdaptedCursor:
        """The same; each of its rows is a batch of BSON as the server sent it."""
        found = self.delegate.find_raw_batches(*arguments, **_unwrapped(options))
        return AdaptedCursor(found, self._run)


class AdaptedCursor(_Adapted):
    """As an ``AsyncCursor``: iterated, or read as lists."""

    _awaited = frozenset({"close", "to_list"})

    def __init__(self, delegate: Any, run: Run) -> None:
        super().__init__(delegate, run)
        self._ahead: list[Any] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._ahead:
            self._ahead = (await self._call("to_list", _READ_AHEAD))[::-1]
        if not self._ahead:
            raise StopAsyncIteration
        return self._ahead.pop()


class AdaptedSession(_Adapted):
    """As an ``AsyncClientSession``. Two of one delegate are the same session."""

    _awaited = frozenset({"abort_transaction", "commit_transaction", "end_session"})

    def __init__(self, delegate: Any, run: Run, client: AdaptedClient) -> None:
        super().__init__(delegate, run)
        self.client = client
        # The application's own object, if this is one of its sessions.
        self.application_session: Any = None
        # Calls of the application's session that a thread is busy with: it cannot be stopped.
        self.in_flight: set[asyncio.Future[Any]] = set()

    async def result_of(self, work: asyncio.Future[Any]) -> Any:
        """What a thread comes to. Who is cancelled does not wait for it, but it goes on."""
        if self.application_session is None:
            return await work
        self.in_flight.add(work)
        work.add_done_callback(self._landed)
        return await asyncio.shield(work)

    def _landed(self, work: asyncio.Future[Any]) -> None:
        self.in_flight.discard(work)
        if not work.cancelled():
            work.exception()  # seen, if nobody waits for it any more

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdaptedSession) and other.delegate is self.delegate

    def __hash__(self) -> int:
        return hash(self.delegate)

    @property
    def session_id(self) -> Any:
        """As the server knows it."""
        return self.delegate.session_id

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is in progress."""
        return bool(self.delegate.in_transaction)

    @property
    def has_ended(self) -> bool:
        """Whether it can no longer be used."""
        return bool(self.delegate.has_ended)

    @property
    def operation_time(self) -> Any:
        """The server's time of the latest operation."""
        return self.delegate.operation_time

    @property
    def cluster_time(self) -> Any:
        """The servers' common time."""
        return self.delegate.cluster_time

    def advance_cluster_time(self, cluster_time: Mapping[str, Any]) -> None:
        """Know of a later time."""
        self.delegate.advance_cluster_time(cluster_time)

    def advance_operation_time(self, operation_time: Any) -> None:
        """Read nothing older than this."""
        self.delegate.advance_operation_time(operation_time)

    async def start_transaction(self, **options: Any) -> _Transaction:
        """Begin a transaction; nothing is sent for that."""
        self.delegate.start_transaction(**options)
        return _Transaction(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._call("end_session")


class _Transaction:
    """Committed when it is left, or aborted if it is left with an error."""

    def __init__(self, session: AdaptedSession) -> None:
        self._session = session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session.in_transaction:
            end = "commit_transaction" if error is None else "abort_transaction"
            await getattr(self._session, end)()

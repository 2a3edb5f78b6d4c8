"""Hooks: what the engine tells an observer of the application's, for metrics and alerts.

An observer is a function that takes an event. It is called on the event loop, in the middle of the
work: it should count, and return at once. What it raises disturbs nothing, and is logged once.

Events hold numbers and names of this library's, and `LedgerCreated` a function that returns
numbers. They never hold user ids, idempotency keys, amounts or metadata. Later versions may tell
further events, so an observer passes over those that it does not know.

    def observer(event: Event) -> None:
        if isinstance(event, OperationEnded):
            DURATIONS.labels(event.operation, event.code).observe(event.seconds)

Without an observer, hooks cost one comparison each.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from pymongo.errors import OperationFailure

from credit_mongo.errors import ConfigurationError, CreditError

__all__ = [
    "AttemptRetried",
    "BatchEnded",
    "Event",
    "LedgerClosed",
    "LedgerCreated",
    "Load",
    "Observer",
    "OperationEnded",
    "OutcomeUnknown",
    "SessionReaped",
    "Tell",
    "TurnStuck",
    "TurnTaken",
    "error_name",
    "observed",
    "tell_by",
]

_LOG: Final = logging.getLogger("credit_mongo")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Load(NamedTuple):
    """What a ledger has to do at this moment."""

    lanes: int
    """How many lanes have a batch under way."""
    queued: int
    """How many requests wait for a batch. Those in the batches don't count."""
    open_holds: int
    """How many blocks ``async with ledger.hold(…)`` run in this process."""


class LedgerCreated(NamedTuple):
    """A ledger has been created with this observer. It is the ledger's first event."""

    load: Callable[[], Load | None]
    """What the ledger has to do. It can be called at any time, from any thread. None if the ledger
    is gone."""


class LedgerClosed(NamedTuple):
    """A ledger has been closed, and its operations have ended. Later calls are refused."""

    load: Callable[[], Load | None]
    """The function of its `LedgerCreated`."""


class OperationEnded(NamedTuple):
    """A call that writes has ended, in the application's transaction or not."""

    operation: str
    """As in the stored rows: "charge", "refund", "grant", …"""
    code: str
    """ "OK", the ``code`` of the CreditError that was raised, "CANCELLED", or "ERROR"."""
    replayed: bool
    """Whether the result is that of an earlier call with the same key."""
    seconds: float
    """From the call to its end."""


class BatchEnded(NamedTuple):
    """A batch has left its lane: each of its requests has an outcome, or waits elsewhere."""

    requests: int
    """How many shared it."""
    queued: int
    """How many requests waited in the lane when the batch ended."""
    seconds: float
    """How long the lane was busy with it."""


class AttemptRetried(NamedTuple):
    """An attempt to commit a batch has failed, and there will be another."""

    reason: Literal["conflict", "turn", "duplicate", "failure"]
    """Another transaction holds a user, or has the turn; a key or an id was there; anything else
    (a lost connection, an election, …)."""
    error: str
    """The server's name for it, or the class of the driver's error."""
    attempt: int
    """The number of the attempt that failed, from 1."""
    requests: int
    """How many are in the batch."""
    delay_seconds: float
    """How long the batch waits before the next attempt."""


class TurnTaken(NamedTuple):
    """Several processes write the same users, and this one has taken its turn."""

    waited_seconds: float
    """How long the attempt that took it has waited."""


class TurnStuck(NamedTuple):
    """Another process keeps the turn for too long. This one goes on without turns for a while."""


class OutcomeUnknown(NamedTuple):
    """A commit was sent and not answered, or answered by an error.

    The next attempt settles it. If there is none, the operations end by COMMIT_OUTCOME_UNKNOWN.
    """

    error: str
    """As in `AttemptRetried`."""
    requests: int
    """How many are in the batch."""


class SessionReaped(NamedTuple):
    """A transaction whose end was not seen has been ended on the server, in the background."""

    seconds: float
    """How long that took."""


Event: TypeAlias = (
    LedgerCreated
    | LedgerClosed
    | OperationEnded
    | BatchEnded
    | AttemptRetried
    | TurnTaken
    | TurnStuck
    | OutcomeUnknown
    | SessionReaped
)
"""What an observer is told."""


class Observer(Protocol):
    """A function that is told what happens; no coroutine."""

    def __call__(self, event: Event, /) -> object:
        """Take note of it, at once. What is returned plays no part."""


Tell: TypeAlias = Callable[[Event], None]
"""Tells an observer, and never raises."""


def tell_by(observer: Observer | None) -> Tell | None:
    """How to tell an observer; None without one.

    Raises ConfigurationError for what is no function, or is a coroutine function.
    """
    if observer is None:
        return None
    if not callable(observer):
        kind = type(observer).__name__
        raise ConfigurationError("observer", f"must be a function that takes an event, not {kind}")
    if inspect.iscoroutinefunction(observer) or inspect.iscoroutinefunction(
        getattr(observer, "__call__", None)  # noqa: B004 - an object's own
    ):
        raise ConfigurationError("observer", "must be a plain function, not a coroutine function")
    has_failed = False

    # Called for each operation. A function costs half of what an object with __call__ does.
    def tell(event: Event) -> None:
        try:
            observer(event)
        except (Exception, asyncio.CancelledError) as error:
            nonlocal has_failed
            if has_failed:
                return
            has_failed = True
            # What the library was handling at that moment may quote keys.
            error.__context__ = None
            _LOG.warning(
                "the observer raised on %s; later failures of it are not logged",
                type(event).__name__,
                exc_info=error,
            )

    return tell


async def observed(
    tell: Tell,
    operation: str,
    work: Callable[_P, Awaitable[_R]],
    *arguments: _P.args,
    **options: _P.kwargs,
) -> _R:
    """Return what the work comes to. The observer is told how it ended."""
    began, code, replayed = monotonic(), "ERROR", False
    try:
        result = await work(*arguments, **options)
        code, replayed = "OK", bool(getattr(result, "replayed", False))
    except CreditError as error:
        code = error.code
        raise
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    else:
        return result
    finally:
        tell(OperationEnded(operation, code, replayed, monotonic() - began))


def error_name(error: BaseException) -> str:
    """The server's name for an error, or the error's class: nothing that quotes a document."""
    details: Any = error.details if isinstance(error, OperationFailure) else None
    return str((details or {}).get("codeName") or type(error).__name__)

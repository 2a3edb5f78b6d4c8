"""A warning when calls wait for a connection because all of a client's are in use."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutFailedReason,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)

if TYPE_CHECKING:
    _Address: TypeAlias = tuple[str, int | None]

__all__ = ["ConnectionWaits"]

_LOG: Final = logging.getLogger("credit_mongo")
_DEFAULT_MOST: Final = 100
# A shorter wait is over before anybody would notice it.
_LEAST_SECONDS: Final = 0.01
_BETWEEN_WARNINGS_SECONDS: Final = 60.0
_MAY_BE_FREE, _ALL_IN_USE, _OPENS_ITS_OWN = range(3)
# What a call has met. Its task or thread hears of all that happens until it has its connection.
_asked: Final = contextvars.ContextVar("credit_mongo_asked_for_connection", default=_MAY_BE_FREE)


class ConnectionWaits(ConnectionPoolListener):
    """Warns, at most once a minute, that calls wait for a connection. A listener for one client.

    The warning goes to the logger ``credit_mongo`` and says how many calls have waited 10 ms or
    more since the warning before, how long at most, and for which server. The wait for a connection
    that is being opened does not count.

    The client of ``CreditLedger.connect`` has one. Give your own client one by
    ``AsyncMongoClient(uri, event_listeners=[ConnectionWaits()])``, or Motor's in the same way.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a listener. ``clock`` is for tests: it returns seconds."""
        self._clock = clock
        # Motor's events come from several threads.
        self._lock = threading.Lock()
        self._most: dict[_Address, int] = {}
        self._in_use: Counter[_Address] = Counter()
        self._waited = 0
        self._longest = 0.0
        self._quiet_until = float("-inf")

    @property
    def in_use(self) -> int:
        """How many connections are in use now, to all servers."""
        return sum(self._in_use.values())

    def pool_created(self, event: PoolCreatedEvent) -> None:
        """A server has been found: how many connections may it have?"""
        options: dict[str, Any] = event.options
        self._most[event.address] = options.get("maxPoolSize", _DEFAULT_MOST)

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        """A call asks for a connection."""
        _asked.set(_ALL_IN_USE if self._is_full(event.address) else _MAY_BE_FREE)

    def connection_created(self, event: ConnectionCreatedEvent) -> None:  # noqa: ARG002
        """A connection is opened, for this call alone."""
        _asked.set(_OPENS_ITS_OWN)

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        """A call has got its connection."""
        with self._lock:
            self._in_use[event.address] += 1
        asked, seconds = _asked.get(), event.duration or 0.0
        # Calls that ask at the same moment find connections free that the others get.
        has_waited = asked == _ALL_IN_USE or self._is_full(event.address)
        if has_waited and asked != _OPENS_ITS_OWN and seconds >= _LEAST_SECONDS:
            self._note(event.address, seconds)

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        """A call has given its connection back."""
        with self._lock:
            self._in_use[event.address] -= 1

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        """A call has got none in time."""
        if event.reason == ConnectionCheckOutFailedReason.TIMEOUT:
            self._note(event.address, event.duration or 0.0)

    def _is_full(self, address: _Address) -> bool:
        # 0 means that there is no limit.
        return 0 < self._most.get(address, 0) <= self._in_use[address]

    def _note(self, address: _Address, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            self._waited += 1
            self._longest = max(self._longest, seconds)
            if now < self._quiet_until:
                return
            waited, longest = self._waited, self._longest
            self._waited, self._longest = 0, 0.0
            self._quiet_until = now + _BETWEEN_WARNINGS_SECONDS
        _LOG.warning(
            "%d %s waited for a connection to %s:%s, up to %.0f ms: all %d are in use. Raise "
            "max_pool_size if the server has room for more work",
            *(waited, "call" if waited == 1 else "calls", *address),
            *(1000 * longest, self._most.get(address, 0)),
        )

    # Of no concern here

    def pool_ready(self, event: PoolReadyEvent) -> None:
        """Connections can be opened."""

    def pool_cleared(self, event: PoolClearedEvent) -> None:
        """The server was lost: its connections are closed as they come back."""

    def pool_closed(self, event: PoolClosedEvent) -> None:
        """The client is closed, or the server has left the replica set."""

    def connection_ready(self, event: ConnectionReadyEvent) -> None:
        """A connection is open."""

    def connection_closed(self, event: ConnectionClosedEvent) -> None:
        """A connection is closed."""

"""A look at the ledger and its servers, once a second.

Nothing is scanned: what was charged and refused comes by change streams, holds and expired keys by
their indexes, and the rest is asked of the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.engine import tasks
from credit_mongo.maintenance.status import Member, members_of, ttl_lag_of
from credit_mongo.maintenance.watching.changes import Follower
from credit_mongo.maintenance.watching.servers import (
    Latencies,
    LatencyMeter,
    OpenTransaction,
    open_transactions,
)
from credit_mongo.maintenance.watching.window import Window
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.holds import ACTIVE
from credit_mongo.storage.server_errors import UNAUTHORIZED

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Look", "Watcher"]

BUSIEST: Final = 10
_RATE_SECONDS: Final = 5
_BETWEEN_LOOKS_SECONDS: Final = 1.0
# What changes slowly, or costs the server something.
_SLOW_SECONDS: Final = 5.0
_MOST_MILLISECONDS: Final = 2000
_LATE_SECONDS: Final = 3.0
_CLUSTER_MONITOR: Final = "needs the built-in role clusterMonitor"
_READER: Final = "needs the role creditReader: credit-mongo roles --create"
_T = TypeVar("_T")


@dataclass(slots=True)
class Look:
    """What was seen. None is what could not be seen: ``unseen`` says why."""

    at: datetime
    charges_per_second: float | None = None
    """Of the last five seconds, as the two below."""
    operations_per_second: dict[str, float] | None = None
    """By their names, charges included."""
    refusals_per_second: dict[str, float] | None = None
    """By their codes."""
    refusals: dict[str, int] | None = None
    """Of the last minute, by their codes."""
    charges_by_second: list[int] = field(default_factory=list)
    """Of the last minute, the oldest first."""
    busiest_users: list[tuple[str, int]] = field(default_factory=list)
    """The ten with the most operations and refusals in the last minute."""
    busiest_actions: list[tuple[str, int]] = field(default_factory=list)
    latencies: Latencies | None = None
    members: tuple[Member, ...] | None = None
    open_transactions: tuple[OpenTransaction, ...] | None = None
    """Those that are open for a second or longer."""
    active_holds: int | None = None
    ttl_lag_seconds: float | None = None
    unseen: dict[str, str] = field(default_factory=dict)
    """Why a part is missing."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON. User ids are among them."""
        facts = asdict(self)
        del facts["charges_by_second"]
        parts: dict[str, Any] = {
            "latencies": None if self.latencies is None else self.latencies._asdict(),
            "open_transactions": None
            if self.open_transactions is None
            else [each._asdict() for each in self.open_transactions],
            "busiest_users": dict(self.busiest_users),
            "busiest_actions": dict(self.busiest_actions),
        }
        return {**facts, "at": moment_to_milliseconds(self.at), **parts}


class Watcher:
    """Follows a ledger: ``async with Watcher(database) as watcher: async for look in …``."""

    def __init__(self, database: LedgerDatabase) -> None:
        names = database.names
        self._database = database
        self._window = Window(time.monotonic())
        self._done = Follower(database, names.transactions, {})
        self._refused = Follower(database, names.audit_logs, {"status": "failed"})
        self._following: list[asyncio.Task[None]] = []
        self._latencies = LatencyMeter()
        self._slow_at = float("-inf")
        self._slow: dict[str, Any] = {}
        self._slow_unseen: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._following = [
            tasks.start(follower.run(self._count)) for follower in (self._done, self._refused)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await tasks.stop(*self._following)

    async def looks(self) -> AsyncIterator[Look]:
        """A look a second, until the caller stops. Elections don't end it."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            yield await self.look()
            for task in self._following:
                if task.done() and not task.cancelled():
                    task.result()  # a bug, or the end of one that may not follow
            await asyncio.sleep(max(0.0, began + _BETWEEN_LOOKS_SECONDS - clock()))

    async def look(self) -> Look:
        """Look once."""
        look = Look(datetime.now(timezone.utc))
        await self._look_at_servers(look)
        self._look_at_rows(look)
        return look

    def _count(self, operation: str, action: str, user: str, code: str | None) -> None:
        self._window.add(time.monotonic(), operation, action, user, code)

    def _look_at_rows(self, look: Look) -> None:
        now, window = time.monotonic(), self._window
        if self._done.is_allowed:
            rates = window.done_a_second(now, _RATE_SECONDS)
            look.operations_per_second = rates
            look.charges_per_second = rates.get("charge", 0.0)
            look.charges_by_second = window.history(now, "charge")
        else:
            look.unseen["operations"] = _READER
        if self._refused.is_allowed:
            look.refusals_per_second = window.refused_a_second(now, _RATE_SECONDS)
            look.refusals = dict(window.refusals(now).most_common())
        else:
            look.unseen["refusals"] = _READER
        look.busiest_users = window.busiest_users(now, BUSIEST)
        look.busiest_actions = window.busiest_actions(now, BUSIEST)

    async def _look_at_servers(self, look: Look) -> None:
        database, unseen = self._database, look.unseen
        try:
            hello = await asyncio.wait_for(database.ask({"hello": 1}), _LATE_SECONDS)
        except (PyMongoError, asyncio.TimeoutError):
            unseen["servers"] = "no primary answers. Waiting for one"
            return
        look.latencies = await _seen(
            self._latencies.read(database), unseen, "latencies", _CLUSTER_MONITOR
        )
        look.open_transactions = await _seen(
            open_transactions(database), unseen, "open transactions", _CLUSTER_MONITOR
        )
        look.members = await _seen(members_of(database, hello), unseen, "members", _CLUSTER_MONITOR)
        if time.monotonic() - self._slow_at >= _SLOW_SECONDS:
            await self._look_slowly(hello["localTime"])
        look.active_holds = self._slow.get("holds")
        look.ttl_lag_seconds = self._slow.get("TTL lag")
        unseen.update(self._slow_unseen)

    async def _look_slowly(self, now: datetime) -> None:
        self._slow_unseen = {}
        self._slow = {
            name: await _seen(work, self._slow_unseen, name, _READER)
            for name, work in (
                ("holds", self._active_holds()),
                ("TTL lag", ttl_lag_of(self._database, now)),
            )
        }
        self._slow_at = time.monotonic()

    async def _active_holds(self) -> int:
        # The index has only active holds.
        holds = self._database[self._database.names.holds]
        return await holds.count_documents(
            ACTIVE, hint=[("userId", 1), ("expiresAt", 1)], maxTimeMS=_MOST_MILLISECONDS
        )


async def _seen(work: Awaitable[_T], unseen: dict[str, str], name: str, needs: str) -> _T | None:
    """What the work finds. None, with the reason in ``unseen``, if it may not or cannot."""
    with contextlib.suppress(asyncio.TimeoutError):
        try:
            return await asyncio.wait_for(work, _LATE_SECONDS)
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                unseen[name] = needs
            else:
                found = (error.details or {}).get("codeName", "error")
                unseen[name] = f"the server refused it: {found} (code {error.code})"
            return None
        except PyMongoError:
            unseen[name] = "the server did not answer"
            return None
    unseen[name] = f"no answer in {_LATE_SECONDS:g} s"
    return None

"""Leases of jobs: one run at a time, whichever process it is in.

A run keeps the lease by renewing it. After a crash, the lease expires by the server's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, PyMongoError

from credit_mongo.engine import tasks
from credit_mongo.errors import CreditError
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import Collection
from credit_mongo.storage.leases import ServerLease
from credit_mongo.storage.rows import Raw

__all__ = ["JobLease"]

_LEASE: Final = "lease"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_BEATS: Final = 4


class JobLease(ABC):
    """The right to do a job. A background task renews it until it is released."""

    def __init__(
        self,
        collection: Collection,
        run: ObjectId,
        seconds: float,
        *,
        holder: Mapping[str, Any] | None = None,
    ) -> None:
        """``holder``: facts about the run, which another one that has to wait can show."""
        self.collection = collection
        self._run = run
        self._seconds = seconds
        self._holder = {} if holder is None else dict(holder)
        self._lease = ServerLease("aliveUntil", seconds)
        self._beating: asyncio.Task[None] | None = None

    @abstractmethod
    def refusal(self, lease: Raw) -> CreditError:
        """Return the error for when another run has the lease."""

    @abstractmethod
    async def take_over(self, session: AsyncClientSession) -> None:
        """Stop what is left of the run before, in the transaction that takes the lease."""

    async def take(self, steps: Steps) -> None:
        """Take the lease. Raises ``refusal`` if another run has it."""
        with contextlib.suppress(DuplicateKeyError):
            await self.collection.insert_one({"_id": _LEASE, "aliveUntil": _EPOCH})
        await steps.take(self._take)
        self._beating = tasks.start(self._beat())

    async def _take(self, session: AsyncClientSession) -> None:
        lease = await self.collection.find_one({"_id": _LEASE}, session=session)
        if lease is not None and lease.get("run") == self._run:
            return
        is_over = {"_id": _LEASE, **self._lease.is_over}
        taken = await self.collection.update_one(is_over, self._renewal(), session=session)
        if not taken.matched_count:
            raise self.refusal({"aliveUntil": _EPOCH} if lease is None else lease)
        await self.take_over(session)

    def _renewal(self) -> list[Raw]:
        holder = {name: {"$literal": value} for name, value in self._holder.items()}
        return [{"$set": {"run": self._run, **holder, **self._lease.renewed}}]

    async def _beat(self) -> None:
        own = {"_id": _LEASE, "run": self._run}
        while True:
            await asyncio.sleep(self._seconds / _BEATS)
            # Ignore a failed renewal: if another run takes over, this one's next write notices.
            with contextlib.suppress(PyMongoError):
                await self.collection.update_one(own, self._renewal())

    async def check(self) -> None:
        """Raise ``refusal`` if another run took over, say because this one was suspended."""
        lease = await self.collection.find_one({"_id": _LEASE}) or {"aliveUntil": _EPOCH}
        if lease.get("run") != self._run:
            raise self.refusal(lease)

    async def release(self) -> None:
        """Let the next run begin. A run that was cancelled while it took the lease may have it."""
        if self._beating is not None:
            await tasks.stop(self._beating)
        # If the release fails, the lease expires by itself.
        with contextlib.suppress(PyMongoError, asyncio.TimeoutError):
            own = {"_id": _LEASE, "run": self._run}
            released = self.collection.update_one(own, {"$set": {"aliveUntil": _EPOCH}})
            await asyncio.wait_for(released, self._seconds)

"""The document of an import: how far it is, and the run whose writes count.

A run keeps the lease by renewing it. Each transaction that imports rows also writes the job's
document, but only if the document still names this run. A run that takes the lease over puts its
own name there first. So a run that was merely slow imports nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import IMPORTS_COLLECTION
from credit_mongo.errors import LedgerImportError
from credit_mongo.maintenance.job_leases import JobLease
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["Job", "place_from", "stored_place"]

_LOST: Final = (
    "another import took over, because this one did not renew its lease in time. What was imported "
    "stays imported"
)


class _Lease(JobLease):
    def __init__(
        self, database: LedgerDatabase, job_id: str, run: ObjectId, seconds: float
    ) -> None:
        super().__init__(database[IMPORTS_COLLECTION], run, seconds)
        self._job_id = job_id

    def refusal(self, lease: Raw) -> LedgerImportError:
        until = lease["aliveUntil"].replace(tzinfo=None).isoformat(timespec="seconds")
        return LedgerImportError(
            f"another import is at work. Its lease lasts until {until}Z, and it renews the lease "
            "while it runs. If that run has crashed, start this one again after that time"
        )

    async def take_over(self, session: AsyncClientSession) -> None:
        """Stop the run before: its transactions need the job's document to name it."""
        change = {"$set": {"run": self._run}}
        await self.collection.update_one(
            {"_id": self._job_id}, change, upsert=True, session=session
        )


class Job:
    """One import into one ledger, over all of its runs."""

    def __init__(self, database: LedgerDatabase, lease_seconds: float) -> None:
        self._job_id = f"credit-sdk:{database.names.transactions}"
        self._run = ObjectId()
        self._collection = database[IMPORTS_COLLECTION]
        self._lease = _Lease(database, self._job_id, self._run, lease_seconds)

    async def read(self) -> Raw:
        """Return the document, empty before the first run."""
        return await self._collection.find_one({"_id": self._job_id}) or {}

    async def take(self, steps: Steps) -> Raw:
        """Take the lease, and return the document. Raises LedgerImportError."""
        await self._lease.take(steps)
        return await self.read()

    async def release(self) -> None:
        """Let the next run begin."""
        await self._lease.release()

    async def note(self, facts: Mapping[str, Any]) -> None:
        """Store facts. Raises LedgerImportError if another run took over."""
        done = await self._collection.update_one(self._own, {"$set": dict(facts)})
        if not done.matched_count:
            raise LedgerImportError(_LOST)

    async def is_done(self, batch: ObjectId, session: AsyncClientSession) -> bool:
        """Whether the session's transaction sees this batch. Raises LedgerImportError."""
        found = await self._collection.find_one(self._own, {"batch": 1}, session=session)
        if found is None:
            raise LedgerImportError(_LOST)
        return found.get("batch") == batch

    async def enter(self, batch: ObjectId, facts: Raw, session: AsyncClientSession) -> None:
        """Store that a batch is done, with facts, in the batch's transaction."""
        change = {"$set": {"batch": batch, **facts}}
        done = await self._collection.update_one(self._own, change, session=session)
        if not done.matched_count:
            raise LedgerImportError(_LOST)

    @property
    def _own(self) -> Raw:
        return {"_id": self._job_id, "run": self._run}


def stored_place(value: Any) -> Any:
    """Return the form in which a deployment's id is stored."""
    return {"uuid": str(value)} if isinstance(value, UUID) else value


def place_from(stored: Any) -> Any:
    """Return the id that was stored."""
    return UUID(stored["uuid"]) if isinstance(stored, dict) else stored


def moment_from(stored: Any) -> datetime | None:
    """Return a moment that was stored. None if there is none."""
    return stored if isinstance(stored, datetime) else None

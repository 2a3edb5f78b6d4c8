"""Runs of the archive: one at a time, each with manifests that record which rows went where.

A run keeps the lease by renewing it. After a crash, the lease expires by the server's clock. Each
transaction that moves rows also writes the manifest of its lane, but only if the manifest still
says "running". A run that takes over the lease first changes this to "interrupted". So a run that
was merely slow can't move rows any more, and manifests count exactly the rows that were moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

from bson import Int64, ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import ArchiveLostError, ArchiveRunningError, StorageError
from credit_mongo.maintenance.job_leases import JobLease
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["Lane", "Lease", "Moved", "Tally"]


class Lease(JobLease):
    """The right to archive."""

    def __init__(
        self, database: LedgerDatabase, manifests: str, run: ObjectId, seconds: float
    ) -> None:
        super().__init__(database[manifests], run, seconds)

    def refusal(self, lease: Raw) -> ArchiveRunningError:
        return ArchiveRunningError(lease["aliveUntil"])

    async def take_over(self, session: AsyncClientSession) -> None:
        """Close the manifests of the run before, so that it moves no more rows."""
        await self.collection.update_many(
            {"state": "running"}, {"$set": {"state": "interrupted"}}, session=session
        )


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows of one kind that a batch moves. ``amount`` is their sum in smallest units."""

    kind: str
    count: int
    amount: int
    rows: Sequence[bytes]


@dataclass(slots=True)
class Tally:
    """The rows of one kind that a lane has moved. ``amount`` is in smallest units."""

    count: int = 0
    amount: int = 0
    sha256: Any = field(default_factory=hashlib.sha256, repr=False)

    def plus(self, moved: Moved) -> Tally:
        """Return the tally after another batch."""
        digest = self.sha256.copy()
        for row in moved.rows:
            digest.update(row)
        return Tally(self.count + moved.count, self.amount + moved.amount, digest)

    def to_row(self) -> Raw:
        """Return the form in which a manifest stores the tally."""
        return {
            "count": Int64(self.count),
            "amount": Int64(self.amount),
            "sha256": self.sha256.hexdigest(),
        }


class Lane:
    """Moves one batch after the other and keeps a manifest. A run has one or more lanes."""

    def __init__(self, database: LedgerDatabase, manifests: str, manifest_id: ObjectId) -> None:
        self._manifests = database[manifests]
        self.manifest_id = manifest_id
        self.tallies: dict[str, Tally] = {
            kind: Tally() for kind in ("transactions", "auditLogs", "holds")
        }
        self._batches = 0

    async def begin(self, facts: Raw) -> None:
        """Write the manifest."""
        tallies = {kind: tally.to_row() for kind, tally in self.tallies.items()}
        await self._manifests.insert_one(
            {
                "_id": self.manifest_id,
                "state": "running",
                **facts,
                "startedAt": datetime.now(timezone.utc),
                "endedAt": None,
                "batches": 0,
                **tallies,
                "files": [],
            }
        )

    async def was_recorded(self, kind: str, tally: Tally, session: AsyncClientSession) -> bool:
        """Whether an earlier attempt has committed the batch that leads to this tally."""
        found = await self._manifests.find_one({"_id": self.manifest_id}, session=session)
        if found is None or found["batches"] != self._batches + 1:
            return False
        if found[kind] != tally.to_row():
            raise StorageError("the rows were changed while they were archived: run it again")
        return True

    async def record(
        self, moved: Moved, files: Sequence[Raw] | None, session: AsyncClientSession
    ) -> Tally:
        """Record the moved rows in the same transaction. Raises ArchiveLostError."""
        tally = self.tallies[moved.kind].plus(moved)
        facts: Raw = {"batches": self._batches + 1, moved.kind: tally.to_row()}
        if files is not None:
            facts["files"] = list(files)
        own = {"_id": self.manifest_id, "state": "running", "batches": self._batches}
        written = await self._manifests.update_one(own, {"$set": facts}, session=session)
        if not written.matched_count:
            raise ArchiveLostError
        return tally

    def confirm(self, kind: str, tally: Tally) -> None:
        """Note that the batch is committed."""
        self._batches += 1
        self.tallies[kind] = tally

    async def end(self, steps: Steps, state: str, facts: Raw) -> None:
        """Close the manifest, unless another run has closed it."""
        await steps.take(partial(self._end, state, facts))

    async def _end(self, state: str, facts: Raw, session: AsyncClientSession) -> None:
        changed = {"state": state, "endedAt": datetime.now(timezone.utc), **facts}
        own = {"_id": self.manifest_id, "state": "running"}
        await self._manifests.update_one(own, {"$set": changed}, session=session)

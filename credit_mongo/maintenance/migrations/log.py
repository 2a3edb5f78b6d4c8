"""The log of a database's migrations: the state of each, and all that was ever done with it.

A migration's document is written in the same transaction as its changes. The log also holds the
lease of the run that is at work, and the run whose writes count: the fence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, TypeAlias

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import MIGRATIONS_COLLECTION
from credit_mongo.errors import MigrationError
from credit_mongo.maintenance.job_leases import JobLease
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["Entry", "Lock", "Log", "Operator", "State"]

State: TypeAlias = Literal["applying", "applied", "rolling back", "rolled back"]

_FENCE: Final = "fence"
_RUNS_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Operator:
    """Who runs migrations, and on which machine."""

    name: str
    host: str


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of a migration in the database."""

    name: str
    state: State
    checksum: str
    by: str
    host: str
    at: datetime
    """When the state was reached, or when the unfinished run began."""
    seconds: float | None
    """How long it took. None if it isn't finished, or was resolved by hand."""

    @property
    def word(self) -> str:
        """The name without the moment."""
        return self.name.partition("_")[2]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Entry:
        """Read a document. Raises MigrationError if the log did not write it."""
        try:
            return cls(
                name=row["_id"],
                state=row["state"],
                checksum=row["checksum"],
                by=row["by"],
                host=row["host"],
                at=row["at"],
                seconds=row["seconds"],
            )
        except KeyError as error:
            reason = f"its document in {MIGRATIONS_COLLECTION} lacks {error.args[0]!r}"
            raise MigrationError(str(row["_id"]), f"{reason}: remove it and resolve it") from None


class Lock(JobLease):
    """The right to run migrations. Runs that lost it can't write to the log."""

    def refusal(self, lease: Raw) -> MigrationError:
        until = lease["aliveUntil"].replace(tzinfo=None).isoformat(timespec="seconds")
        return MigrationError(
            "",
            f"another run of migrations is at work, by {lease.get('by')} on {lease.get('host')}. "
            f"Its lease lasts until {until}Z, and it renews the lease while it runs",
        )

    async def take_over(self, session: AsyncClientSession) -> None:
        """Close the fence for the run before."""
        fence = {"$set": {"run": self._run}}
        await self.collection.update_one({"_id": _FENCE}, fence, upsert=True, session=session)


class Log:
    """Reads the log, and writes it for one run."""

    def __init__(self, database: LedgerDatabase, operator: Operator) -> None:
        self._collection = database[MIGRATIONS_COLLECTION]
        self._operator = operator
        self._run = ObjectId()

    def lock(self, seconds: float) -> Lock:
        """Return the lock of this run. Without it, `record` refuses."""
        holder = {"by": self._operator.name, "host": self._operator.host}
        return Lock(self._collection, self._run, seconds, holder=holder)

    async def entries(self) -> dict[str, Entry]:
        """Return the migrations that the database knows, by name. Raises PyMongoError."""
        rows = self._collection.find({"state": {"$exists": True}}, {"runs": 0}, sort=[("_id", 1)])
        return {row["_id"]: Entry.of(row) for row in await rows.to_list()}

    async def forget_all(self) -> None:
        """Remove all entries, from the database of a development that is made anew."""
        await self._collection.delete_many({"state": {"$exists": True}})

    async def state_of(self, name: str, session: AsyncClientSession) -> State | None:
        """Return a migration's state, None if it was never applied.

        Writes the fence first, so that no other run can begin before this transaction has ended.
        Raises MigrationError if another run has taken over.
        """
        touched = await self._collection.update_one(
            {"_id": _FENCE, "run": self._run}, {"$inc": {"steps": 1}}, session=session
        )
        if not touched.matched_count:
            raise MigrationError(
                name,
                "another run of migrations took over, because this one did not renew its lease in "
                "time. Look at credit-mongo migrate status",
            )
        row = await self._collection.find_one({"_id": name}, {"state": 1}, session=session)
        return None if row is None else row["state"]

    async def record(
        self,
        name: str,
        state: State,
        checksum: str,
        session: AsyncClientSession,
        *,
        began: datetime | None,
        resolved: bool = False,
    ) -> None:
        """Store a migration's new state. ``began``: when a run that is now over began."""
        now = datetime.now(timezone.utc)
        seconds = None if began is None else (now - began).total_seconds()
        facts: Raw = {
            "state": state,
            "checksum": checksum,
            "by": self._operator.name,
            "host": self._operator.host,
            "at": now,
            "seconds": seconds,
        }
        run = {"run": self._run, **facts, **({"resolved": True} if resolved else {})}
        change = {"$set": facts, "$push": {"runs": {"$each": [run], "$slice": -_RUNS_KEPT}}}
        await self._collection.update_one({"_id": name}, change, upsert=True, session=session)

"""The state of the ledger's database: server, collections, indexes, and how far TTL is behind.

Each part is asked for on its own. What the role may not see is None, and the rest is told.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from pymongo.errors import OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.drivers import AnyDatabase
from credit_mongo.maintenance.indexes import IndexReport, ensure_all
from credit_mongo.maintenance.ttl_indexes import find_deleting_indexes
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["CollectionState", "Member", "Status", "status_of"]

_UNAUTHORIZED: Final = 13
_NOT_THERE: Final = 26
_OUT_OF_TIME: Final = 50
# What is asked at a glance does not keep a server busy.
_MOST_MILLISECONDS: Final = 5000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the replica set."""

    host: str
    state: str
    """In the server's words: PRIMARY, SECONDARY, …; "member" if the role may not see it."""
    lag_seconds: float | None
    """How far its data is behind the primary's; None if that is not known."""


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection as the server counts it."""

    name: str
    exists: bool
    documents: int | None
    data_bytes: int | None
    """Of the documents, before compression."""
    stored_bytes: int | None
    """On disk, with the indexes."""


@dataclass(frozen=True, slots=True)
class Status:
    """What was found. Numbers of documents are the server's estimates."""

    server_version: str
    replica_set: str | None
    """None: a sharded cluster."""
    members: tuple[Member, ...]
    collections: tuple[CollectionState, ...]
    indexes: IndexReport | None
    """What ``ensure_indexes`` would do."""
    deleting_indexes: tuple[str, ...] | None
    """TTL indexes where none belongs, as ``collection.index``: the server deletes rows by them."""
    oldest_transaction_at: datetime | None
    """Of those that are not archived, by their date."""
    ttl_lag_seconds: float | None
    """How long the oldest expired idempotency record is overdue; 0 if none is."""

    @property
    def is_ready(self) -> bool:
        """Whether all that the ledger wants is there, as far as could be seen."""
        report = self.indexes
        if self.deleting_indexes:
            return False
        return report is None or not (report.created or report.changed or report.conflicts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = asdict(self)
        oldest = self.oldest_transaction_at
        facts["oldest_transaction_at"] = None if oldest is None else moment_to_milliseconds(oldest)
        facts["indexes"] = None
        if self.indexes is not None:
            found = self.indexes.to_dict()
            names = ("missing", "kept", "different", "in_the_way")
            facts["indexes"] = dict(zip(names, found.values(), strict=True))
        return {"is_ready": self.is_ready, **facts}


async def status_of(
    database: AnyDatabase,
    names: CollectionNames | None = None,
    users: UserMapping | None = None,
    *,
    decimal_places: int | None = None,
) -> Status:
    """Look at everything; write nothing. The arguments are those of ``ensure_indexes``.

    Raises ConfigurationError if the ledger in the database was set up with others, and
    PyMongoError.
    """
    # The statistics of a collection are read with no other concern.
    ledger = LedgerDatabase.of(database, names, users).read_locally()
    hello = await ledger.command({"hello": 1})
    server = await ledger.command({"buildInfo": 1})
    return Status(
        server_version=server["version"],
        replica_set=hello.get("setName"),
        members=await _members(ledger, hello),
        collections=tuple(
            [await _collection(ledger, name) for name in ledger.names.model_dump().values()]
        ),
        indexes=await _if_allowed(ensure_all(ledger, decimal_places=decimal_places, dry_run=True)),
        deleting_indexes=await _if_allowed(_deleting_indexes(ledger)),
        oldest_transaction_at=await _if_allowed(_oldest(ledger)),
        ttl_lag_seconds=await _if_allowed(_ttl_lag(ledger, hello["localTime"])),
    )


async def _if_allowed(asking: Awaitable[_T]) -> _T | None:
    try:
        return await asking
    except OperationFailure as error:
        if error.code not in (_UNAUTHORIZED, _OUT_OF_TIME):
            raise
        return None


async def _members(database: LedgerDatabase, hello: Raw) -> tuple[Member, ...]:
    if "setName" not in hello:
        return ()
    found = await _if_allowed(database.command_to_admin({"replSetGetStatus": 1}))
    if found is None:
        primary = hello.get("primary")
        hosts = (*hello.get("hosts", ()), *hello.get("passives", ()), *hello.get("arbiters", ()))
        return tuple(
            Member(host, "PRIMARY" if host == primary else "member", None) for host in hosts
        )
    times = [each.get("optimeDate") for each in found["members"] if each["state"] == 1]
    return tuple(
        Member(each["name"], each["stateStr"], _lag(times, each)) for each in found["members"]
    )


def _lag(of_primary: list[datetime | None], member: Raw) -> float | None:
    moment = member.get("optimeDate")
    if not of_primary or of_primary[0] is None or moment is None or not member.get("health"):
        return None
    lag: timedelta = of_primary[0] - moment
    return max(0.0, lag.total_seconds())


async def _collection(database: LedgerDatabase, name: str) -> CollectionState:
    try:
        found = await database[name].aggregate([{"$collStats": {"storageStats": {}}}])
        rows = await found.to_list()
    except OperationFailure as error:
        if error.code == _NOT_THERE:
            return CollectionState(name, exists=False, documents=0, data_bytes=0, stored_bytes=0)
        if error.code != _UNAUTHORIZED:
            raise
        # To count, it is enough to be allowed to read.
        count = await _if_allowed(database[name].estimated_document_count())
        return CollectionState(
            name, exists=count != 0, documents=count, data_bytes=None, stored_bytes=None
        )
    # One for each shard.
    stats = [row["storageStats"] for row in rows]
    return CollectionState(
        name,
        exists=True,
        documents=sum(int(each["count"]) for each in stats),
        data_bytes=sum(int(each["size"]) for each in stats),
        stored_bytes=sum(int(each["storageSize"] + each["totalIndexSize"]) for each in stats),
    )


async def _oldest(database: LedgerDatabase) -> datetime | None:
    # No index is in order of time. The one by user and time has all that is asked, so no row is
    # fetched. Ids would not do: of imported rows they tell when those were imported.
    dated: Raw = {"userId": {"$type": "string"}, "createdAt": {"$type": "date"}}
    found = await database[database.names.transactions].aggregate(
        [{"$match": dated}, {"$group": {"_id": None, "oldest": {"$min": "$createdAt"}}}],
        maxTimeMS=_MOST_MILLISECONDS,
    )
    rows = await found.to_list()
    moment = rows[0]["oldest"] if rows else None
    return moment if isinstance(moment, datetime) else None


async def _deleting_indexes(database: LedgerDatabase) -> tuple[str, ...]:
    return tuple(await find_deleting_indexes(database))


async def _ttl_lag(database: LedgerDatabase, now: datetime) -> float | None:
    row = await database[database.names.idempotency_records].find_one(
        {"expiresAt": {"$lt": now}}, {"expiresAt": 1}, sort=[("expiresAt", 1)]
    )
    if row is None:
        return 0.0
    lag: timedelta = now - row["expiresAt"]
    return lag.total_seconds()

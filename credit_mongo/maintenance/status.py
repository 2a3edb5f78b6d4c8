"""The state of the ledger's database: server, collections, indexes, and the delay of TTL.

Each part is a query of its own. Parts that the role may not see are None.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from pymongo.errors import OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.price_checks import check_decimal_places
from credit_mongo.core.values import check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.maintenance.indexes import IndexReport, ensure_all
from credit_mongo.maintenance.ttl_indexes import find_deleting_indexes
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.forms import missing_forms
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import MAX_TIME_EXPIRED, NAMESPACE_NOT_FOUND, UNAUTHORIZED
from credit_mongo.storage.settings import stored_settings

__all__ = [
    "CollectionState",
    "Connections",
    "Member",
    "Status",
    "members_of",
    "status_of",
    "ttl_lag_of",
]

# A status query must not keep a server busy.
_MOST_MILLISECONDS: Final = 5000
# Of serverStatus, those that cost most and that nobody reads here.
_WITHOUT_OTHER_SECTIONS: Final = dict.fromkeys(
    ("metrics", "wiredTiger", "repl", "locks", "tcmalloc", "opLatencies"), 0
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the replica set."""

    host: str
    state: str
    """The server's term, such as PRIMARY or SECONDARY, or "member" if the role may not see it."""
    lag_seconds: float | None
    """How many seconds its data is behind the primary's, or None if unknown."""


@dataclass(frozen=True, slots=True)
class CollectionState:
    """The size of a collection, by the server's statistics. None if the role may not see it."""

    name: str
    exists: bool
    documents: int | None
    data_bytes: int | None
    """The size of the documents before compression, in bytes."""
    stored_bytes: int | None
    """The size on disk with the indexes, in bytes."""


@dataclass(frozen=True, slots=True)
class Connections:
    """The connections of all clients to the primary."""

    open: int
    """How many there are."""
    active: int
    """How many have a command under way."""
    available: int
    """How many more the server accepts."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the database. Numbers of documents are the server's estimates."""

    server_version: str
    replica_set: str | None
    """The name of the replica set, or None for a sharded cluster."""
    members: tuple[Member, ...]
    connections: Connections | None
    """The primary's connections. None if the role may not see them: clusterMonitor may."""
    collections: tuple[CollectionState, ...]
    indexes: IndexReport | None
    """What ``ensure_indexes`` would do."""
    missing_migrations: tuple[str, ...] | None
    """Migrations of the stored form that ``ensure_indexes`` would apply, by name."""
    deleting_indexes: tuple[str, ...] | None
    """TTL indexes that make the server delete rows of the ledger, as ``collection.index``."""
    oldest_transaction_at: datetime | None
    """The date of the oldest transaction that isn't archived."""
    ttl_lag_seconds: float | None
    """How many seconds ago the oldest idempotency record that still exists expired; 0 if none
    has."""

    @property
    def is_ready(self) -> bool:
        """Whether everything that the ledger needs exists, as far as the role can see."""
        report = self.indexes
        if self.deleting_indexes:
            return False
        return report is None or not (report.created or report.changed or report.conflicts)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
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
    """Read the state of the database, without writing. The arguments are as in ``ensure_indexes``.

    Raises InvalidRequestError, ConfigurationError if the ledger in the database was set up with
    other settings, and PyMongoError.
    """
    places = check_optional(check_decimal_places, "decimal_places", decimal_places)
    # $collStats only works with the read concern "local".
    ledger = LedgerDatabase.of(database, names, users, names_are="names").read_locally()
    hello = await ledger.ask({"hello": 1})
    server = await ledger.ask({"buildInfo": 1})
    return Status(
        server_version=server["version"],
        replica_set=hello.get("setName"),
        members=await members_of(ledger, hello),
        connections=await _if_allowed(_connections(ledger)),
        collections=tuple(
            [await _collection(ledger, name) for name in ledger.names.model_dump().values()]
        ),
        indexes=await _if_allowed(ensure_all(ledger, decimal_places=places, dry_run=True)),
        missing_migrations=await _if_allowed(_missing_migrations(ledger)),
        deleting_indexes=await _if_allowed(_deleting_indexes(ledger)),
        oldest_transaction_at=await _if_allowed(_oldest(ledger)),
        ttl_lag_seconds=await _if_allowed(ttl_lag_of(ledger, hello["localTime"])),
    )


async def _if_allowed(asking: Awaitable[_T]) -> _T | None:
    try:
        return await asking
    except OperationFailure as error:
        if error.code not in (UNAUTHORIZED, MAX_TIME_EXPIRED):
            raise
        return None


async def members_of(database: LedgerDatabase, hello: Raw) -> tuple[Member, ...]:
    """The members of the replica set; without lag if the role may not see it."""
    if "setName" not in hello:
        return ()
    found = await _if_allowed(database.ask_admin({"replSetGetStatus": 1}))
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


async def _connections(database: LedgerDatabase) -> Connections:
    # The default sections take the server far longer than this one.
    found = await database.ask_admin({"serverStatus": 1, **_WITHOUT_OTHER_SECTIONS})
    counts = found["connections"]
    return Connections(counts["current"], counts.get("active", 0), counts["available"])


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
        if error.code == NAMESPACE_NOT_FOUND:
            return CollectionState(name, exists=False, documents=0, data_bytes=0, stored_bytes=0)
        if error.code != UNAUTHORIZED:
            raise
        # Counting only needs the permission to read.
        count = await _if_allowed(database[name].estimated_document_count())
        return CollectionState(
            name, exists=count != 0, documents=count, data_bytes=None, stored_bytes=None
        )
    # One row for each shard.
    stats = [row["storageStats"] for row in rows]
    return CollectionState(
        name,
        exists=True,
        documents=sum(int(each["count"]) for each in stats),
        data_bytes=sum(int(each["size"]) for each in stats),
        stored_bytes=sum(int(each["storageSize"] + each["totalIndexSize"]) for each in stats),
    )


async def _oldest(database: LedgerDatabase) -> datetime | None:
    # No index is sorted by time alone. The index by user and time contains all fields of this
    # query, so no row is fetched. Ids of imported rows only tell when those were imported.
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


async def _missing_migrations(database: LedgerDatabase) -> tuple[str, ...]:
    rows = {row["_id"]: row for row in await stored_settings(database)}
    return tuple(form.name for form in missing_forms(rows.get(database.names.transactions)))


async def ttl_lag_of(database: LedgerDatabase, now: datetime) -> float:
    """How many seconds ago the oldest key that still exists has expired. 0 if none has."""
    row = await database[database.names.idempotency_records].find_one(
        {"expiresAt": {"$lt": now}}, {"expiresAt": 1}, sort=[("expiresAt", 1)]
    )
    if row is None:
        return 0.0
    lag: timedelta = now - row["expiresAt"]
    return lag.total_seconds()

"""A deployment in MongoDB: Prisma's collections, read with PyMongo."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from credit_mongo.errors import LedgerImportError
from credit_mongo.maintenance.imports.source import (
    SourceAudit,
    SourceKey,
    SourceTransaction,
    SourceUser,
)
from credit_mongo.maintenance.imports.source_urls import SourceUrl
from credit_mongo.maintenance.imports.tables import Kind, Names, Table, find_tables
from credit_mongo.maintenance.imports.values import ValueRefusedError, number_of
from credit_mongo.storage.codecs import LENIENT, Raw
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.redaction import Unlogged

__all__ = ["MongoSource"]

_TIMEOUT_MS: Final = 10_000
# Documents that show which fields there are. MongoDB's have no columns.
_SAMPLE: Final = 20


class MongoSource:
    """Reads a database. Documents are read as a majority has them."""

    def __init__(self, url: SourceUrl, names: Names) -> None:
        self._names = names
        try:
            self._client: MongoClient[Raw] = MongoClient(
                url.url, serverSelectionTimeoutMS=_TIMEOUT_MS, tz_aware=True, connect=False
            )
        except (PyMongoError, ValueError) as error:
            raise _malformed(error) from None
        try:
            self._database = self._client.get_default_database(
                codec_options=LENIENT, read_concern=ReadConcern("majority")
            )
        except PyMongoError as error:
            self._client.close()
            raise _malformed(error) from None
        self._tables: dict[Kind, Table] = {}

    @property
    def name(self) -> str:
        """Hosts and database."""
        hosts = ",".join(f"{host}:{port}" for host, port in sorted(self._client.nodes)) or "?"
        return f"mongodb://{hosts}/{self._database.name}"

    def shared_with(self, database: LedgerDatabase) -> list[str]:
        """Return the collections that are also the ledger's. Both clients must be connected."""
        if database.name != self._database.name or not database.client.nodes & self._client.nodes:
            return []
        own = set(database.names.model_dump().values())
        return [table.name for table in self._tables.values() if table.name in own]

    def open(self) -> dict[Kind, Table]:
        """Connect, and find the collections."""
        with _explained("connect to", self._database.name):
            there = set(self._database.list_collection_names())
            self._tables = find_tables(
                self._names, there, self._fields_of, id_column="_id", are_made_when_needed=True
            )
        return self._tables

    def _fields_of(self, collection: str) -> list[str]:
        """Return the fields of some documents. An empty collection has all that are asked for."""
        found: dict[str, None] = {}
        for document in self._database[collection].find(limit=_SAMPLE):
            found |= dict.fromkeys(document)
        return list(found) if found else _AnyName()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def begin(self) -> None:
        """Do nothing: a page is read by several queries, and what differs is found at the end."""

    def count(self, kind: Kind) -> int:
        """Return how many documents a collection has."""
        with self._explained():
            return self._database[self._tables[kind].name].count_documents({})

    def latest(self, kind: Kind, field: str) -> Any:
        """Return the largest value of a field."""
        name = self._tables[kind].columns.get(field)
        if name is None:
            return None
        for row in self._aggregate(
            kind, [{"$group": {"_id": None, "value": {"$max": f"${name}"}}}]
        ):
            return row["value"]
        return None

    def users(self, after: Any, limit: int) -> list[SourceUser]:
        """Return the next users in the order of their ids."""
        query = {} if after is None else {self._at("users", "id"): {"$gt": after}}
        return self._find("users", SourceUser, query, limit, ("id",))

    def users_by_ids(self, ids: Sequence[Any]) -> list[SourceUser]:
        """Return these users."""
        return self._find("users", SourceUser, {self._at("users", "id"): {"$in": list(ids)}}, 0)

    def changed_users(self, since: datetime, limit: int) -> list[Any] | None:
        """Return the ids of users with documents since a moment."""
        found: dict[Any, None] = {}
        wanted: tuple[tuple[Kind, str, str], ...] = (
            ("users", "updated_at", "id"),
            ("transactions", "created_at", "user_id"),
            ("audit_logs", "created_at", "user_id"),
        )
        for kind, field, owner in wanted:
            if kind not in self._tables or field not in self._tables[kind].columns:
                continue
            pipeline: list[Raw] = [
                {"$match": {self._at(kind, field): {"$gte": since}}},
                {"$group": {"_id": f"${self._at(kind, owner)}"}},
                {"$limit": limit + 1},
            ]
            found |= dict.fromkeys(row["_id"] for row in self._aggregate(kind, pipeline))
            if len(found) > limit:
                return None
        return list(found)

    def transactions(self, user_ids: Sequence[Any], limit: int) -> list[SourceTransaction]:
        """Return up to ``limit`` transactions of these users."""
        query = {self._at("transactions", "user_id"): {"$in": list(user_ids)}}
        return self._find("transactions", SourceTransaction, query, limit)

    def audit_logs(self, user_ids: Sequence[Any], limit: int) -> list[SourceAudit]:
        """Return up to ``limit`` audit documents of these users."""
        query = {self._at("audit_logs", "user_id"): {"$in": list(user_ids)}}
        return self._find("audit_logs", SourceAudit, query, limit)

    def next_transactions(
        self, user_id: Any, after: SourceTransaction | None, limit: int
    ) -> list[SourceTransaction]:
        """Return one user's next transactions."""
        place = None if after is None else (after.created_at, after.id)
        query = self._after("transactions", user_id, place)
        return self._find("transactions", SourceTransaction, query, limit, ("created_at", "id"))

    def next_audit_logs(
        self, user_id: Any, after: SourceAudit | None, limit: int
    ) -> list[SourceAudit]:
        """Return one user's next audit documents."""
        place = None if after is None else (after.created_at, after.id)
        query = self._after("audit_logs", user_id, place)
        return self._find("audit_logs", SourceAudit, query, limit, ("created_at", "id"))

    def keys(
        self, after: Any, since: datetime | None, now: datetime, limit: int
    ) -> list[SourceKey]:
        """Return the next idempotency records that have not expired."""
        kind: Kind = "idempotency_records"
        query: Raw = {self._at(kind, "expires_at"): {"$gt": now}}
        if since is not None and "created_at" in self._tables[kind].columns:
            query[self._at(kind, "created_at")] = {"$gte": since}
        if after is not None:
            query[self._at(kind, "key")] = {"$gt": after}
        return self._find(kind, SourceKey, query, limit, ("key",))

    def count_keys(self, now: datetime) -> int:
        """Return how many idempotency records have not expired."""
        kind: Kind = "idempotency_records"
        query = {self._at(kind, "expires_at"): {"$gt": now}}
        with self._explained():
            return self._database[self._tables[kind].name].count_documents(query)

    def sum_of_amounts(self) -> Decimal:
        """Return the exact sum of all amounts."""
        name = self._at("transactions", "amount")
        total = Decimal(0)
        # Each amount once, as the server would add floats up inexactly.
        pipeline = [{"$group": {"_id": f"${name}", "count": {"$sum": 1}}}]
        for row in self._aggregate("transactions", pipeline):
            # What is no number was told when its document was read.
            with contextlib.suppress(ValueRefusedError):
                total += number_of("amount", row["_id"]) * row["count"]
        return total

    # Queries

    def _at(self, kind: Kind, field: str) -> str:
        return self._tables[kind].columns[field]

    def _after(self, kind: Kind, user_id: Any, place: tuple[Any, Any] | None) -> Raw:
        query: Raw = {self._at(kind, "user_id"): user_id}
        if place is not None:
            moment, row_id = self._at(kind, "created_at"), self._at(kind, "id")
            at, last = place
            query["$or"] = [{moment: {"$gt": at}}, {moment: at, row_id: {"$gt": last}}]
        return query

    def _find(
        self,
        kind: Kind,
        make: Any,
        query: Mapping[str, Any],
        limit: int,
        order: Iterable[str] = (),
    ) -> list[Any]:
        columns = self._tables[kind].columns
        names = [columns.get(field) for field in make._fields]
        sort = [(columns[field], 1) for field in order]
        with self._explained():
            found = self._database[self._tables[kind].name].find(
                query, dict.fromkeys(columns.values(), 1), limit=limit, sort=sort or None
            )
            return [make(*(None if n is None else row.get(n) for n in names)) for row in found]

    def _aggregate(self, kind: Kind, pipeline: list[Raw]) -> Iterator[Raw]:
        with self._explained():
            yield from self._database[self._tables[kind].name].aggregate(
                pipeline, allowDiskUse=True
            )

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained("read", self._database.name)


class _AnyName(list[str]):
    def __contains__(self, name: object) -> bool:
        return True


def _malformed(error: Exception) -> LedgerImportError:
    # PyMongo's text may quote the address.
    return LedgerImportError(
        f"the address is malformed, or names no database ({type(error).__name__}): "
        "mongodb://USER:PASSWORD@HOST/DATABASE"
    )


@contextlib.contextmanager
def _explained(what: str, name: str) -> Iterator[None]:
    """Turn the driver's errors into one line without user name and password."""
    try:
        with Unlogged():
            yield
    except OperationFailure as error:
        code = (error.details or {}).get("codeName", error.code)
        raise LedgerImportError(f"can't {what} {name}: the server answers {code}") from None
    except PyMongoError as error:
        kind = type(error).__name__
        raise LedgerImportError(f"can't {what} {name}: no usable server ({kind})") from None

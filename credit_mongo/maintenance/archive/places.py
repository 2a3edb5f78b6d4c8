"""Where the archive puts rows: the protocol of all places, and the archive collections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final, Protocol

from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import ArchiveCopyError, StorageError
from credit_mongo.maintenance.archive.borders import Place
from credit_mongo.maintenance.archive.runs import Lane
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.documents import FAILED_OF_USER
from credit_mongo.storage.rows import Raw

__all__ = ["ArchivePlace", "Collections", "in_session"]

_READ_AT_ONCE: Final = 500
# BSON begins with its size in bytes.
_SIZE: Final = Struct("<i")


class ArchivePlace(Protocol):
    """Takes copies of rows. A copy counts once the transaction that deletes the rows commits."""

    kind: Place
    lanes: int
    """How many batches can be copied at the same time."""

    def describe(self) -> Raw:
        """Return the description for manifests."""

    async def open(self) -> None:
        """Get ready, and complete what an interrupted run left unfinished."""

    async def copy(
        self,
        lane: Lane,
        kind: str,
        rows: Sequence[bytes],
        ids: Sequence[Any],
        session: AsyncClientSession,
    ) -> Sequence[Raw] | None:
        """Write rows and read them back. Return the files for the manifest, or None without files.

        ``rows`` are BSON as the server sent it, so copies are identical byte for byte.

        Raises ArchiveCopyError and OSError.
        """

    async def confirm(self) -> None:
        """Note that the last copied batch is committed."""

    async def finish(self, lane: Lane) -> Sequence[Raw] | None:
        """Complete one kind of rows. Return the files for the manifest, or None without files."""

    async def close(self) -> None:
        """Release everything, also after a failure."""


class Collections:
    """The archive collections of the same database. The transaction includes the copy."""

    kind: Place = "collection"
    # With two lanes, two cores are idle for a tenth of the time.
    lanes = 4

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._names = names = database.names
        self._of = {
            "transactions": names.transactions_archive,
            "auditLogs": names.audit_logs_archive,
            "holds": names.holds_archive,
        }

    def describe(self) -> Raw:
        return {"kind": "collection", **self._of}

    async def open(self) -> None:
        """Create the indexes for reads, refunds and usage reports."""
        for collection, indexes in (
            (
                self._names.transactions_archive,
                [
                    IndexModel([("userId", 1), ("createdAt", -1), ("seq", -1)]),
                    IndexModel("refundOf", sparse=True),
                    IndexModel("revokeOf", sparse=True),
                    IndexModel("createdAt"),
                ],
            ),
            (
                self._names.audit_logs_archive,
                [IndexModel([("userId", 1), ("createdAt", -1), ("_id", -1)]), FAILED_OF_USER],
            ),
            (
                self._names.holds_archive,
                [IndexModel([("userId", 1), ("createdAt", -1), ("_id", -1)])],
            ),
        ):
            wanted = [index.document for index in indexes]
            await self._database.ensure({"createIndexes": collection, "indexes": wanted})

    async def copy(
        self,
        lane: Lane,  # noqa: ARG002 - all lanes write to the same collections
        kind: str,
        rows: Sequence[bytes],
        ids: Sequence[Any],
        session: AsyncClientSession,
    ) -> None:
        collection = self._of[kind]
        reply = await self._database.command(
            {"insert": collection, "documents": [RawBSONDocument(row) for row in rows]},
            session=session,
        )
        if errors := reply.get("writeErrors"):
            raise StorageError(f"{collection} refuses a row (code {errors[0]['code']})")
        found = await in_session(
            self._database, collection, {"_id": {"$in": list(ids)}}, session, limit=len(ids) + 1
        )
        if sorted(found) != sorted(rows):
            raise ArchiveCopyError(collection)

    async def confirm(self) -> None:
        pass

    async def finish(self, lane: Lane) -> None:
        pass

    async def close(self) -> None:
        pass


async def in_session(
    database: LedgerDatabase,
    collection: str,
    query: Raw,
    session: AsyncClientSession,
    *,
    limit: int,
    most_bytes: int | None = None,
    order: Sequence[tuple[str, int]] | None = None,
    index: Sequence[tuple[str, int]] | None = None,
) -> list[bytes]:
    """Read rows as BSON, up to ``limit`` rows. Stop once they take ``most_bytes``."""
    rows: list[bytes] = []
    size = 0
    at_once = limit + 1 if most_bytes is None else min(limit + 1, _READ_AT_ONCE)
    found = database[collection].find_raw_batches(
        query, sort=order, hint=index, limit=limit, batch_size=at_once, session=session
    )
    try:
        while batches := await found.to_list(1):
            rows += _rows_of(batches[0])
            size += len(batches[0])
            if len(rows) >= limit or (most_bytes is not None and size >= most_bytes):
                break
    finally:
        await found.close()
    return rows


def _rows_of(batch: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(batch):
        [size] = _SIZE.unpack_from(batch, begin)
        yield batch[begin : begin + size]
        begin += size

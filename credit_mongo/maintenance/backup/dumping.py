"""Reads collections in snapshots of one cluster time, byte by byte.

The server keeps the history that a snapshot needs for a while: five minutes, unless its parameter
``minSnapshotHistoryWindowInSeconds`` says otherwise. A collection is read in the order of its ids.
So when a snapshot is gone, the reading goes on in a later one, after the last id that was read. The
backup then notes which ids were read at which time, and adds the changes since the first time.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from bson import Decimal128, Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.documents import Value, elements_of, order_of_id
from credit_mongo.maintenance.backup.manifest import Balances, Segment, Time, to_timestamp
from credit_mongo.storage.codecs import UNDECODED, Raw
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import is_gone

__all__ = ["Reading", "balances_at", "balances_now", "count_documents"]

_BATCH: Final = 4000
_MOST_TRIES: Final = 10
_PAUSE_SECONDS: Final = 1.0
# SnapshotTooOld; and SnapshotUnavailable, because a collection or an index is too new.
_SNAPSHOT_GONE: Final = frozenset({239, 246})
_LENGTH: Final = struct.Struct("<i")


class Reading:
    """Reads collections at one cluster time as long as that works, then at a later one."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database.read_as(UNDECODED)
        self.times: list[Time] = []
        """The cluster times that were read at, the first one first."""
        self.segments: dict[str, list[Segment]] = {}

    async def begin(self, collection: str) -> None:
        """Fix the cluster time. Raises PyMongoError."""
        find = {"find": collection, "limit": 1, "projection": {"_id": 1}}
        reply = await self._database.ask({**find, "readConcern": {"level": "snapshot"}})
        self._go_on_at(_time_of(reply))

    def _go_on_at(self, time: Time) -> None:
        self.times.append(time)

    async def batches(
        self, collection: str, query: Raw | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a collection's documents in the order of their ids, in batches.

        Raises PyMongoError, and BackupError if the collection can't be read piece by piece.
        """
        last: Value | None = None
        tries = 0
        self._note(collection, None)
        while True:
            before = last
            try:
                async with aclosing(self._in_snapshot(collection, query or {}, last)) as read:
                    async for batch in read:
                        yield batch
                        last = _last_id(batch)
            except (ConnectionFailure, OperationFailure) as error:
                tries = tries + 1 if last == before else 1
                if not is_gone(error) or tries > _MOST_TRIES:
                    raise
                if isinstance(error, OperationFailure) and error.code in _SNAPSHOT_GONE:
                    await self.begin(collection)
                    self._note(collection, last)
                elif tries > 1:
                    await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    def _note(self, collection: str, last: Value | None) -> None:
        if last is not None:
            try:
                order_of_id(last)
            except ValueError as error:
                raise BackupError(
                    "",
                    f"{collection} {error}, and is too large for one snapshot: raise the server's "
                    "parameter minSnapshotHistoryWindowInSeconds",
                ) from None
        segment = Segment(None if last is None else last.hex(), self.times[-1])
        noted = self.segments.setdefault(collection, [])
        if noted and noted[-1].after == segment.after:
            noted.pop()  # nothing was read at its time
        noted.append(segment)

    async def _in_snapshot(
        self, collection: str, query: Raw, last: Value | None
    ) -> AsyncGenerator[bytes, None]:
        database = self._database
        find: Raw = {
            "find": collection,
            "filter": query,
            "sort": {"_id": 1},
            "hint": {"_id": 1},
            "batchSize": _BATCH,
            "readConcern": {"level": "snapshot", "atClusterTime": to_timestamp(self.times[-1])},
        }
        if last is not None:
            # Unlike $gt, it also finds ids of other types.
            find["min"] = RawBSONDocument(_only_id(last))
        # A cursor belongs to the session that has opened it. This one adds no concern of its own.
        async with database.client.start_session(causal_consistency=False) as session:
            reply = await database.command(find, session=session)
            async with aclosing(_batches(database, collection, reply, session)) as batches:
                async for batch in batches:
                    # Not skipped by the server: in a later snapshot, it may be gone.
                    if last is not None and _first_id(batch) == last:
                        batch = _after_first(batch)  # noqa: PLW2901 - the same without one
                    last = None
                    if batch:
                        yield batch


async def _batches(
    database: LedgerDatabase, collection: str, reply: Raw, session: AsyncClientSession
) -> AsyncGenerator[bytes, None]:
    cursor = reply["cursor"]
    documents = cursor["firstBatch"]
    cursor_id = cursor["id"]
    try:
        while True:
            if documents:
                yield b"".join([document.raw for document in documents])
            if not cursor_id:
                return
            more = {"getMore": cursor_id, "collection": collection, "batchSize": _BATCH}
            cursor = (await database.command(more, session=session))["cursor"]
            documents, cursor_id = cursor["nextBatch"], cursor["id"]
    finally:
        if cursor_id:
            await forget(database, collection, cursor_id, session)


async def forget(
    database: LedgerDatabase, collection: str, cursor_id: Any, session: AsyncClientSession
) -> None:
    """Close a cursor. If that fails, the server closes it after a while."""
    try:
        killed = {"killCursors": collection, "cursors": [cursor_id]}
        await database.command(killed, session=session)
    except (ConnectionFailure, OperationFailure):
        return


def count_documents(batch: bytes) -> int:
    """Count the documents of a batch."""
    position = count = 0
    unpack, end = _LENGTH.unpack_from, len(batch)
    while position < end:
        position += unpack(batch, position)[0]
        count += 1
    return count


def _first_id(batch: bytes) -> Value:
    return dict(elements_of(batch[: _LENGTH.unpack_from(batch)[0]]))[b"_id"]


def _after_first(batch: bytes) -> bytes:
    return batch[_LENGTH.unpack_from(batch)[0] :]


def _last_id(batch: bytes) -> Value:
    position, begin = 0, 0
    unpack, end = _LENGTH.unpack_from, len(batch)
    while position < end:
        begin = position
        position += unpack(batch, position)[0]
    return dict(elements_of(batch[begin:]))[b"_id"]


def _only_id(value: Value) -> bytes:
    body = value[:1] + b"_id\x00" + value[1:]
    return _LENGTH.pack(len(body) + 5) + body + b"\x00"


def _time_of(reply: Raw) -> Time:
    found: Timestamp = reply["cursor"]["atClusterTime"]
    return found.time, found.inc


async def balances_at(database: LedgerDatabase, time: Time) -> Balances | None:
    """Sum up the accounts at a cluster time, exactly.

    None if the server no longer knows what they were then. Raises PyMongoError.
    """
    concern = {"level": "snapshot", "atClusterTime": to_timestamp(time)}
    try:
        return await _balances(database, concern)
    except OperationFailure as error:
        if error.code in _SNAPSHOT_GONE:
            return None
        raise


async def balances_now(database: LedgerDatabase) -> Balances:
    """Sum up the accounts as they are, exactly. Raises PyMongoError."""
    return await _balances(database, {"level": "majority"})


async def _balances(database: LedgerDatabase, concern: Raw) -> Balances:
    names = database.users.names

    def exact(field: str) -> Raw:
        number = {"input": f"${field}", "to": "decimal", "onError": 0, "onNull": 0}
        return {"$sum": {"$convert": number}}

    sums = {"users": {"$sum": 1}, "credits": exact(names.credits), "seq": exact(names.seq)}
    pipeline = [{"$match": {names.credits: {"$ne": None}}}, {"$group": {"_id": None, **sums}}]
    reply = await database.ask(
        {
            "aggregate": database.names.users,
            "pipeline": pipeline,
            "cursor": {},
            "readConcern": concern,
        }
    )
    found = reply["cursor"]["firstBatch"]
    if not found:
        return Balances(0, 0, 0)
    total, seq = (_whole(found[0][name]) for name in ("credits", "seq"))
    return Balances(int(found[0]["users"]), total, seq)


def _whole(found: Any) -> int:
    # The sum is a plain number if nothing could be converted.
    return int(found.to_decimal() if isinstance(found, Decimal128) else found)

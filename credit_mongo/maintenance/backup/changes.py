"""Reads what was committed after a cluster time, up to a mark, by a change stream.

A backup writes a mark into the database, and reads the stream until the mark comes. The mark's
commit is the cluster time at which the backup ends: everything before it has come, too. A change
stream only shows what a majority has, in the order of the commits, and all changes of a transaction
with one cluster time. So no election adds or removes a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from bson import ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument
from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.config import BACKUPS_COLLECTION
from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.documents import Change
from credit_mongo.maintenance.backup.dumping import forget
from credit_mongo.maintenance.backup.manifest import Time
from credit_mongo.storage.codecs import UNDECODED, Raw
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import is_gone

__all__ = ["Mark", "begin_history", "changes_after", "write_mark"]

_BATCH: Final = 4000
_WAIT_MILLISECONDS: Final = 1000
_MOST_TRIES: Final = 30
_PAUSE_SECONDS: Final = 1.0
# The stream would begin, or go on, before the first entry of the oplog.
_HISTORY_LOST: Final = 286
# The stream's command itself is refused if the time lies after the server's last one.
_ENDS: Final = frozenset({"drop", "rename", "dropDatabase", "invalidate"})
_OF_DOCUMENTS: Final = frozenset({"insert", "update", "replace", "delete"})
_TELLS_NAMES_WITH_DOTS: Final = (6, 1)
_FULL: Final = "make a full backup"


class Mark:
    """The mark of a backup in its database."""

    def __init__(self, row: Raw) -> None:
        self.history: str = str(row["history"])
        self.number: int = int(row["number"])
        self.backup: ObjectId = row["backup"]


async def write_mark(database: LedgerDatabase, backup: ObjectId) -> Mark:
    """Write the mark of a backup. Raises PyMongoError."""
    row = await database[BACKUPS_COLLECTION].find_one_and_update(
        {"_id": database.names.transactions},
        {
            "$set": {"backup": backup},
            "$inc": {"number": 1},
            "$setOnInsert": {"history": ObjectId()},
            "$currentDate": {"at": True},
        },
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    assert row is not None  # noqa: S101 - it was upserted
    return Mark(row)


async def begin_history(database: LedgerDatabase) -> None:
    """Make sure that no backup follows those before. Raises PyMongoError.

    A database that was set back has the numbers of marks once more, and soon higher ones.
    """
    await database[BACKUPS_COLLECTION].update_one(
        {"_id": database.names.transactions}, {"$set": {"history": ObjectId()}}
    )


async def changes_after(
    database: LedgerDatabase, collections: Sequence[str], start: Time, backup: ObjectId
) -> AsyncGenerator[tuple[list[Change], Time | None], None]:
    """Yield all changes of the collections after a cluster time, in batches, up to a mark.

    With the last batch comes the mark's cluster time.

    Raises BackupError if the changes are no longer known, or if a collection was dropped or renamed
    since; and PyMongoError.
    """
    stream = _Stream(database, collections, start)
    wanted = frozenset(collections)
    async with aclosing(stream.batches()) as batches:
        async for events in batches:
            batch: list[Change] = []
            for event in events:
                change = Change(event.raw)
                if change.operation in _ENDS:
                    raise BackupError(
                        "",
                        f"{change.collection or database.name} was dropped or renamed since the "
                        f"last backup: {_FULL}",
                    )
                if change.operation not in _OF_DOCUMENTS:
                    continue
                if change.collection in wanted:
                    batch.append(change)
                elif change.field(b"backup") == b"\x07" + backup.binary:
                    yield batch, change.time
                    return
            yield batch, None


class _Stream:
    """A change stream that goes on after elections."""

    def __init__(self, database: LedgerDatabase, collections: Sequence[str], start: Time) -> None:
        self._database = database.read_as(UNDECODED)
        self._place: Raw = {"startAtOperationTime": Timestamp(start[0], start[1] + 1)}
        read = [*collections, BACKUPS_COLLECTION]
        self._match = {
            "$match": {
                "$or": [
                    {"ns.coll": {"$in": read}},
                    {"to.coll": {"$in": read}},
                    {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
                ]
            }
        }

    async def batches(self) -> AsyncGenerator[Sequence[RawBSONDocument], None]:
        options = await self._options()
        tries = 0
        while True:
            place = self._place
            try:
                async with aclosing(self._once(options)) as read:
                    async for events in read:
                        yield events
            except (ConnectionFailure, OperationFailure) as error:
                if isinstance(error, OperationFailure) and error.code == _HISTORY_LOST:
                    raise BackupError(
                        "",
                        f"the server's oplog no longer reaches back to the last backup: {_FULL}, "
                        "and make incremental ones more often, or enlarge the oplog",
                    ) from error
                tries = tries + 1 if place == self._place else 1
                if tries > _MOST_TRIES or not (is_gone(error) or _can_resume(error)):
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _options(self) -> Raw:
        found = await self._database.ask_admin({"buildInfo": 1})
        version = tuple(found["versionArray"])[:2]
        return {"showExpandedEvents": True} if version >= _TELLS_NAMES_WITH_DOTS else {}

    async def _once(self, options: Raw) -> AsyncGenerator[Sequence[RawBSONDocument], None]:
        database = self._database
        command: Raw = {
            "aggregate": 1,
            "pipeline": [{"$changeStream": {**self._place, **options}}, self._match],
            "cursor": {"batchSize": _BATCH},
            "readConcern": {"level": "majority"},
        }
        async with database.client.start_session(causal_consistency=False) as session:
            cursor = (await database.command(command, session=session))["cursor"]
            cursor_id, collection = cursor["id"], cursor["ns"].partition(".")[2]
            events = cursor["firstBatch"]
            try:
                while True:
                    yield events
                    self._remember(cursor, events)
                    more = {
                        "getMore": cursor_id,
                        "collection": collection,
                        "batchSize": _BATCH,
                        "maxTimeMS": _WAIT_MILLISECONDS,
                    }
                    cursor = (await database.command(more, session=session))["cursor"]
                    events, cursor_id = cursor["nextBatch"], cursor["id"]
                    if not cursor_id:
                        yield events
                        self._remember(cursor, events)
                        return
            finally:
                if cursor_id:
                    await forget(database, collection, cursor_id, session)

    def _remember(self, cursor: Any, events: Sequence[RawBSONDocument]) -> None:
        """Go on from here if the stream breaks."""
        token = cursor.get("postBatchResumeToken") or (events[-1]["_id"] if events else None)
        if token is not None:
            self._place = {"resumeAfter": token}


def _can_resume(error: ConnectionFailure | OperationFailure) -> bool:
    return error.has_error_label("ResumableChangeStreamError")

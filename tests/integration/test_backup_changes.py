"""What an increment reads: each change once, from one commit to another, whatever happens."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import pairwise
from uuid import uuid4

from bson import ObjectId
from pymongo import AsyncMongoClient

from credit_mongo.maintenance.backup.changes import changes_after, write_mark
from credit_mongo.maintenance.backup.documents import Change
from credit_mongo.maintenance.backup.manifest import Time
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.promises import Client, Database, Failure, Row, failing


async def inserted(database: Database, number: int) -> Time:
    """Insert a document. Returns the cluster time of its commit."""
    async with database.client.start_session() as session:
        await database["users"].insert_one({"_id": number}, session=session)
        time = session.operation_time
    assert time is not None
    return time.time, time.inc


async def ids_after(database: Database, start: Time, *, mark: ObjectId) -> list[int]:
    """Return what was inserted after a cluster time, up to a mark."""
    found: list[Change] = []
    async for changes, _ in changes_after(LedgerDatabase.of(database), ["users"], start, mark):
        found += changes
    return [number_of(each) for each in found]


def number_of(change: Change) -> int:
    """Return the id of the document that was inserted."""
    return int.from_bytes(change.id[1:], "little")


async def test_an_increment_begins_with_the_first_change_after_the_last_backup(
    database: Database,
) -> None:
    """Though it was committed in the same second. And it has nothing that the last one has."""
    await inserted(database, -1)
    times = [await inserted(database, number) for number in range(20)]
    mark = ObjectId()
    await write_mark(LedgerDatabase.of(database), mark)
    assert any(b == (a[0], a[1] + 1) for a, b in pairwise(times))
    for number, time in enumerate(times):
        assert await ids_after(database, time, mark=mark) == [*range(number + 1, 20)]


async def test_an_increment_has_each_change_once_though_the_stream_breaks(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """As by an election: the stream goes on after what was read."""
    start = await inserted(database, -1)
    for number in range(10):
        await inserted(database, number)
    mark, name = ObjectId(), f"backup {uuid4().hex}"
    found: list[Change] = []
    async with (
        AsyncMongoClient[Row](replica_set_uri, appname=name) as own,
        AsyncExitStack() as stack,
    ):
        ledger = LedgerDatabase.of(own[database.name])
        failure: Failure | None = None
        async for changes, _ in changes_after(ledger, ["users"], start, mark):
            found += changes
            if found and failure is None:
                await inserted(database, 10)
                await write_mark(LedgerDatabase.of(database), mark)
                failure = await stack.enter_async_context(
                    failing(client, name, {"times": 1}, failCommands=["getMore"], errorCode=11600)
                )
    assert failure is not None
    assert failure.hits == 1
    assert [number_of(each) for each in found] == [*range(11)]

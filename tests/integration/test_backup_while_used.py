"""Backups and restores hold what they promise, whatever else happens to the database meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure

from credit_mongo import BackupError, BackupRunningError
from credit_mongo.config import BACKUPS_COLLECTION, MIGRATIONS_COLLECTION
from credit_mongo.maintenance.backup import dumping, making, places, restoring
from credit_mongo.maintenance.backup.chains import Backups
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.places import place_of
from credit_mongo.maintenance.backup.restoring import restore
from credit_mongo.maintenance.backup.target import Target
from tests.integration.backups import contents, empty_database, fill, use
from tests.integration.promises import Client, Database
from tests.integration.test_backup_promises import backups_in


async def test_no_document_is_lost_if_the_last_one_read_is_deleted_between_snapshots(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next snapshot begins with the document after it, which must not be passed over."""
    ledger = await fill(database)
    monkeypatch.setattr(dumping, "_BATCH", 3)
    read = dumping.Reading._in_snapshot
    lost: list[str] = []

    async def lose(
        self: dumping.Reading, collection: str, query: Any, last: Any
    ) -> AsyncGenerator[bytes, None]:
        async for batch in read(self, collection, query, last):
            yield batch
            if collection == "users" and not lost:
                lost.append(collection)
                await ledger.delete_user("user-2")
                raise OperationFailure("too old", 239)

    monkeypatch.setattr(dumping.Reading, "_in_snapshot", lose)
    await make_backup(database, tmp_path)
    assert lost
    async with empty_database(client) as other:
        assert (await restore(other, tmp_path)).verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_a_collection_that_comes_while_a_backup_begins_is_part_of_it(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which collections there are is asked after the cluster time is fixed, not before."""
    await fill(database)
    begin = dumping.Reading.begin

    async def begin_later(self: dumping.Reading, collection: str) -> None:
        await database[MIGRATIONS_COLLECTION].insert_one({"_id": "0001_first"})
        await begin(self, collection)

    monkeypatch.setattr(dumping.Reading, "begin", begin_later)
    await make_backup(database, tmp_path)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        assert await contents(other) == await contents(database)


async def test_users_with_large_documents_are_restored(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Small changes of documents that together are larger than one command may be."""
    ledger = await fill(database, users=300)
    await database["users"].update_many({}, {"$set": {"picture": b"x" * 200_000}})
    await make_backup(database, tmp_path)
    await asyncio.gather(*(ledger.charge(f"user-{each}", "post") for each in range(300)))
    await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        assert (await restore(other, tmp_path)).verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_nothing_of_before_stays_if_a_replacing_restore_dies_while_it_clears(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with the clearing: old documents must not stand for those of the backup."""
    await fill(database)
    await make_backup(database, tmp_path)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        await other["users"].update_one({"_id": "user-0"}, {"$set": {"name": "of before"}})
        with monkeypatch.context() as patched:

            async def die(*_: object) -> None:
                raise OSError("killed")

            patched.setattr(Target, "_drop", die)
            with pytest.raises(OSError, match="killed"):
                await restore(other, tmp_path, replace=True)
        assert (await restore(other, tmp_path)).verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_a_restore_that_differs_begins_anew_with_replace(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its message says, and not without it."""
    await fill(database)
    await make_backup(database, tmp_path)
    compare = restoring._Restoring._compare
    async with empty_database(client) as other:

        async def disturb(self: restoring._Restoring) -> None:
            await other["users"].insert_one({"_id": "intruder"})
            await compare(self)

        with monkeypatch.context() as patched:
            patched.setattr(restoring._Restoring, "_compare", disturb)
            with pytest.raises(BackupError, match="users has 7 documents, but should have 6"):
                await restore(other, tmp_path)
        with pytest.raises(BackupError, match="differs from the backup"):
            await restore(other, tmp_path)
        assert (await restore(other, tmp_path, replace=True)).verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_of_two_restores_the_later_one_goes_on_and_the_other_is_stopped(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was suspended writes no older state over what another has compared already."""
    ledger = await fill(database)
    await make_backup(database, tmp_path)
    await use(ledger)
    await make_backup(database, tmp_path, incremental=True)
    replay, end = restoring._Restoring._replay_one, restoring._Restoring.end
    stopped: list[str] = []
    async with empty_database(client) as other:

        async def be_late(first: restoring._Restoring, *arguments: Any) -> None:
            async def let_the_first_go_on(second: restoring._Restoring) -> None:
                with pytest.raises(BackupError, match="another run has ended this restore") as told:
                    await replay(first, *arguments)
                stopped.append(str(told.value))
                await end(second)

            monkeypatch.setattr(restoring._Restoring, "_replay_one", replay)
            monkeypatch.setattr(restoring._Restoring, "end", let_the_first_go_on)
            assert (await restore(other, tmp_path)).verification.findings == ()
            raise OSError("killed")

        monkeypatch.setattr(restoring._Restoring, "_replay_one", be_late)
        with pytest.raises(OSError, match="killed"):
            await restore(other, tmp_path)
        assert stopped
        assert await contents(other) == await contents(database)


async def test_no_increment_ever_follows_a_backup_of_a_database_that_was_set_back(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Not after it has been tried again and again either, as cron does."""
    ledger = await fill(database)
    await make_backup(database, tmp_path)
    [mark] = await database[BACKUPS_COLLECTION].find({"history": {"$exists": True}}).to_list()
    await make_backup(database, tmp_path, incremental=True)
    await use(ledger)
    await make_backup(database, tmp_path, incremental=True)
    # As a snapshot of the disk brings it back.
    await database[BACKUPS_COLLECTION].replace_one({"_id": mark["_id"]}, mark)
    for _ in range(3):
        with pytest.raises(BackupError, match="make a full backup"):
            await make_backup(database, tmp_path, incremental=True)
    await make_backup(database, tmp_path)
    await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        assert await contents(other) == await contents(database)


async def test_a_clock_that_is_ahead_prunes_nothing_that_is_kept(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Age counts by the database's clock, and so does which chain is the newest."""
    await fill(database)
    first = await make_backup(database, tmp_path)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=400)

    with monkeypatch.context() as patched:
        patched.setattr(making, "datetime", Ahead)
        second = await make_backup(database, tmp_path, keep="30d")
    assert second.removed == ()
    await make_backup(database, tmp_path, keep="30d")
    order = [chain[0].name for chain in Backups.of(place_of("place", tmp_path)).chains]
    assert order[:2] == [first.name, second.name]


async def test_a_suspended_backup_does_not_end_after_another_has_begun(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has removed what it found unfinished."""
    await fill(database)
    finish = making._Making._finish

    async def be_late(self: Any, *arguments: Any) -> None:
        monkeypatch.setattr(making._Making, "_finish", finish)
        await database[BACKUPS_COLLECTION].update_one(
            {"_id": "lease"}, {"$set": {"run": ObjectId()}}
        )
        await finish(self, *arguments)

    monkeypatch.setattr(making._Making, "_finish", be_late)
    with pytest.raises(BackupRunningError):
        await make_backup(database, tmp_path)
    assert backups_in(tmp_path) == []


async def test_a_backup_elsewhere_whose_files_are_gone_gets_no_manifest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a backup of another database that was sent to the same place."""
    await fill(database)
    url = f"memory://{database.name}"
    finish = places._RemoteWriting.finish

    def lose(self: Any, manifest: bytes) -> None:
        self._place.remove_unfinished()
        finish(self, manifest)

    monkeypatch.setattr(places._RemoteWriting, "finish", lose)
    with pytest.raises(BackupError, match="was removed while the backup was made"):
        await make_backup(database, url)
    assert place_of("place", url).names() == []

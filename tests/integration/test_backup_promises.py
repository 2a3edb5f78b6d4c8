"""What backups promise besides: several snapshots, pruning, what was due, and what was lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from credit_mongo import CreditLedger
from credit_mongo.core.values import to_milliseconds
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.backup import dumping, making
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.printing import moment_to_seconds
from tests.integration.backups import PRICES, contents, empty_database, fill, use
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database, Row

UTC = timezone.utc


async def test_a_backup_that_takes_several_snapshots_shows_one_moment(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read later is not changed again by what it has, and counted once."""
    ledger = await fill(database)
    monkeypatch.setattr(dumping, "_BATCH", 3)
    read = dumping.Reading._in_snapshot
    lost: list[str] = []

    async def lose(
        self: dumping.Reading, collection: str, query: Any, last: Any
    ) -> AsyncGenerator[bytes, None]:
        async for batch in read(self, collection, query, last):
            yield batch
            # As on a server that has been busy for longer than it keeps snapshots.
            if collection in ("users", "transactions", "holds") and lost.count(collection) < 2:
                lost.append(collection)
                await use(ledger)
                await ledger.create_user(f"between-{len(lost)}", credits=5)
                await ledger.delete_user(f"between-{len(lost)}")
                raise OperationFailure("too old", 239)

    monkeypatch.setattr(dumping.Reading, "_in_snapshot", lose)
    made = await make_backup(database, tmp_path)
    assert len(lost) == 6
    manifest = json.loads((tmp_path / made.name / "manifest.json").read_text())
    assert len(manifest["segments"]["transactions"]) == 3
    async with empty_database(client) as other:
        restored = await restore(other, tmp_path)
        assert restored.verification.findings == ()
        assert await contents(other) == await contents(database)
    await use(ledger)
    await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        assert await contents(other) == await contents(database)


@pytest.mark.thorough
async def test_a_snapshot_that_the_server_has_given_up_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server that keeps none of the history that a slow backup needs."""
    parameters = {"enableTestCommands": "1", "minSnapshotHistoryWindowInSeconds": "0"}
    async with (
        LocalReplicaSet(parameters=parameters) as replica_set,
        AsyncMongoClient[Row](replica_set.uri, tz_aware=True) as client,
    ):
        database = client["app"]
        ledger = await fill(database)
        monkeypatch.setattr(dumping, "_BATCH", 3)
        write = making._Making._write_metadata

        async def slowly(self: Any, *arguments: Any) -> None:
            await write(self, *arguments)
            await use(ledger)
            await client.admin.command({"fsync": 1})
            await asyncio.sleep(0.3)

        monkeypatch.setattr(making._Making, "_write_metadata", slowly)
        made = await make_backup(database, tmp_path)
        manifest = json.loads((tmp_path / made.name / "manifest.json").read_text())
        assert manifest["segments"]
        async with empty_database(client) as other:
            assert (await restore(other, tmp_path)).verification.findings == ()


async def test_what_was_due_meanwhile_is_posted_when_it_is_next_needed(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Dated as it was due, whenever the ledger was restored."""
    ledger = await fill(database)
    ends = datetime.now(UTC) + timedelta(seconds=2)
    grant = await ledger.grant("user-0", 40, action="gift", expires_at=ends)
    hold = await ledger.place_hold("user-5", "post", amount=10, ttl=2)
    await ledger.extend_hold(hold.hold_id, used=4, ttl=2)
    await make_backup(database, tmp_path)
    await asyncio.sleep(2.5)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        async with CreditLedger(other, PRICES) as again:
            await again.charge("user-0", "post")
            await again.charge("user-5", "post")
            expired = await other["transactions"].find_one({"operation": "expire"})
            captured = await other["transactions"].find_one({"operation": "capture"})
            assert expired is not None
            assert captured is not None
            assert (expired["createdAt"], expired["amount"]) == (to_milliseconds(ends), -40)
            assert captured["amount"] == -4
            assert captured["createdAt"] < captured["writtenAt"]
        assert grant.transaction_id
        assert (await verify(other)).findings == ()


def backups_in(place: Path) -> list[str]:
    """Return the names of everything in a place."""
    return sorted(path.name for path in place.iterdir())


async def test_old_chains_are_pruned_as_a_whole(database: Database, tmp_path: Path) -> None:
    """A chain stays until the next one has begun before the moment that is kept."""
    await fill(database)
    first = await make_backup(database, tmp_path)
    second = await make_backup(database, tmp_path, incremental=True)
    assert (await make_backup(database, tmp_path, incremental=True, keep="0h")).removed == ()
    third = await make_backup(database, tmp_path, keep="1h")
    assert third.removed == ()
    fourth = await make_backup(database, tmp_path, incremental=True, keep="0h")
    assert len(fourth.removed) == 3
    assert {first.name, second.name} <= set(fourth.removed)
    assert backups_in(tmp_path) == sorted([third.name, fourth.name])


async def test_what_was_acknowledged_and_is_lost_is_listed(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """By transaction ids and keys, of live, archived and kept rows."""
    ledger = await fill(database)
    kept = await ledger.charge("user-0", "post", idempotency_key="kept")
    made = await make_backup(database, tmp_path / "place")
    await asyncio.sleep(max((made.moment - datetime.now(UTC)).total_seconds() + 1, 0))
    lost_at = moment_to_seconds(made.moment + timedelta(seconds=1))
    lost = await ledger.charge("user-0", "post", idempotency_key="lost")
    archived = await database["transactions_archive"].find_one({})
    assert archived is not None
    acknowledged = tmp_path / "acknowledged"
    acknowledged.write_text(
        f"{kept.transaction_id}\nkept\nlost\r\n{lost.transaction_id}\n\nfirst\nlost\n"
        f"{archived['_id']}\nno such key\n"
    )
    async with empty_database(client) as other:
        there = where(replica_set_uri, other)
        code, output, errors = await run(
            *("restore", str(tmp_path / "place"), "--reconcile", str(acknowledged)),
            *("--lost-at", lost_at, *there),
        )
        assert (code, errors) == (1, "")
        assert output.splitlines()[1].endswith(f"0:00:01 from then until {lost_at} is lost")
        listed = [*output.splitlines()[2:]]
        assert listed == [
            *("lost", lost.transaction_id, "no such key"),
            f"{other.name}: 3 of what was acknowledged are missing",
        ]
        # After the key's record is gone, the transaction still tells.
        await other["idempotency_records"].delete_many({})
        code, output, errors = await run("backup", "reconcile", str(acknowledged), "--json", *there)
        assert (code, errors) == (1, "")
        assert json.loads(output)["missing"] == ["lost", lost.transaction_id, "no such key"]
        acknowledged.write_text("kept\n")
        assert (await run("backup", "reconcile", str(acknowledged), *there))[0] == 0
        acknowledged.write_bytes(b"\xff")
        code, _, errors = await run("backup", "reconcile", str(acknowledged), *there)
        assert (code, errors.count("\n")) == (2, 1)


@pytest.mark.thorough
async def test_a_backup_is_proven_on_a_server_of_its_own(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """--local needs no right to write on the database's server. Wrong books are told."""
    await fill(database)
    await database["users"].update_one({"_id": "user-0"}, {"$inc": {"credits": 7}})
    await make_backup(database, tmp_path)
    here = where(replica_set_uri, database)
    code, output, errors = await run("backup", "verify", str(tmp_path), "--local", *here)
    assert (code, errors) == (1, "")
    assert "1 findings of 6 users" in output

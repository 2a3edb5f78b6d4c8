"""Backups show a ledger at one moment, and restored they are that ledger again."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bson import Int64, ObjectId, Regex, decode_all, json_util

from credit_mongo import (
    BackupError,
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    UserMapping,
)
from credit_mongo.engine import tasks
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import PRICES, contents, empty_database, fill, use
from tests.integration.commands import run, where
from tests.integration.existing_users import FIELDS, NAMES, PROFILE
from tests.integration.promises import Client, Database

UTC = timezone.utc


async def test_a_restored_ledger_is_the_one_that_was_backed_up(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Every document of every collection, with options, validators and indexes; and it goes on."""
    ledger = await fill(database)
    before = await contents(database)
    made = await make_backup(database, tmp_path / "backups")
    assert made.kind == "full"
    await use(ledger)
    async with empty_database(client) as other:
        restored = await restore(other, tmp_path / "backups")
        assert await contents(other) == before
        assert restored.verification.findings == ()
        assert restored.documents == sum(len(each[0]) for each in before.values()) - 1
        async with CreditLedger(other, PRICES) as again:
            replayed = await again.charge(
                "user-0", "post", idempotency_key="first", metadata={"n": [1]}
            )
            assert replayed.replayed
            assert not (await again.ensure_indexes()).conflicts
            await use(again)


async def test_increments_bring_everything_since(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Inserts, updates, deletions and what the archive moves.

    Users are deleted who came with the full backup, with an earlier increment, or with the same.
    """
    ledger = await fill(database)
    for number in range(3):
        await ledger.create_user(f"old-{number}", credits=5)
    await make_backup(database, tmp_path)
    for number in range(3):
        await use(ledger, rounds=2)
        for name in (f"brief-{number}", f"new-{number}"):
            await ledger.create_user(name, credits=number + 1)
            await ledger.charge(name, "post")
        for name in (f"old-{number}", f"brief-{number}", *([f"new-{number - 1}"] * (number > 0))):
            await ledger.delete_user(name)
        await archive(database, older_than=datetime.now(UTC))
        await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        restored = await restore(other, tmp_path)
        assert len(restored.backups) == 4
        assert await contents(other) == await contents(database)
        assert restored.verification.findings == ()


async def test_any_moment_of_a_chain_can_be_restored(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Up to a second, that second included, by whole transactions."""
    ledger = await fill(database)
    await make_backup(database, tmp_path)
    states = {}
    for number in range(3):
        await use(ledger)
        # Cluster time counts in seconds: let nothing more happen in this one.
        moment = datetime.now(UTC)
        states[moment] = await contents(database)
        await asyncio.sleep(1.05 - moment.microsecond / 1_000_000)
        if number == 1:
            await make_backup(database, tmp_path, incremental=True)
    await make_backup(database, tmp_path, incremental=True)
    for moment, state in states.items():
        async with empty_database(client) as other:
            restored = await restore(other, tmp_path, to=moment)
            assert await contents(other) == state
            assert restored.verification.findings == ()
            assert restored.moment <= moment


async def test_a_backup_beside_charges_shows_one_moment(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Full and incremental: no transaction is in it by half."""
    ledger = await fill(database)
    for each in range(6):
        await ledger.grant(f"user-{each}", 1_000_000, action="gift")
    is_over = False

    async def charge() -> None:
        while not is_over:
            await use(ledger)

    charging = tasks.start(charge())
    await asyncio.sleep(0.3)
    await make_backup(database, tmp_path)
    async with empty_database(client) as other:
        assert (await restore(other, tmp_path)).verification.findings == ()
    for _ in range(3):
        await asyncio.sleep(0.2)
        await make_backup(database, tmp_path, incremental=True)
    is_over = True
    await charging
    async with empty_database(client) as other:
        assert (await restore(other, tmp_path)).verification.findings == ()
    await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        assert await contents(other) == await contents(database)


async def test_documents_of_the_application_are_backed_up_whole(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Users have other fields, of all types, and may have no account."""
    config = CreditConfig(
        costs={"post": {"default": 1}},
        collections=NAMES,
        users=UserMapping(id_type="objectId", **FIELDS),
    )
    people, ids = database["people"], [ObjectId(), ObjectId(), 7.5]
    await people.insert_many({"_id": each, **PROFILE} for each in ids)
    at_home: dict[str, Any] = {"collections": config.collections, "users": config.users}
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(str(ids[0]), credits=100)
        await make_backup(database, tmp_path, **at_home)
        await ledger.charge(str(ids[0]), "post")
        await people.update_one({"_id": ids[0]}, {"$set": {"nested.more": Regex("x"), "list": []}})
        await people.update_one({"_id": ids[0]}, {"$push": {"list": {"$each": [1, [2], 3, 4]}}})
        await people.update_one({"_id": ids[0]}, {"$set": {"list.1.0": Int64(5)}})
        await people.update_one({"_id": ids[0]}, {"$pop": {"list": 1}, "$unset": {"email": 1}})
        await people.replace_one({"_id": ids[1]}, {"name": "without an account"})
        await make_backup(database, tmp_path, incremental=True, **at_home)
    async with empty_database(client) as other:
        restored = await restore(other, tmp_path)
        assert restored.verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_a_half_restored_database_has_no_ledger(
    client: Client, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ledgers and commands are refused until the restore has ended, which goes on when repeated."""
    await fill(database)
    await make_backup(database, tmp_path)
    async with empty_database(client) as other:
        with monkeypatch.context() as patched:

            async def fail(*_: object) -> None:
                raise OSError("the disk is gone")

            patched.setattr("credit_mongo.maintenance.backup.restoring._Restoring._compare", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                await restore(other, tmp_path)
        ledger = CreditLedger(other, PRICES)
        with pytest.raises(ConfigurationError, match="restore of this ledger has not ended"):
            await ledger.charge("user-0", "post")
        with pytest.raises(ConfigurationError, match="has not ended"):
            await ledger.ensure_indexes()
        assert (await restore(other, tmp_path)).verification.findings == ()
        assert await contents(other) == await contents(database)


async def test_the_files_have_the_form_of_mongodump(
    database: Database, tmp_path: Path, replica_set_uri: str
) -> None:
    """Concatenated BSON, and metadata in canonical extended JSON, each compressed by gzip."""
    await fill(database)
    made = await make_backup(database, tmp_path)
    directory = tmp_path / made.name / database.name
    documents = decode_all(gzip.decompress((directory / "users.bson.gz").read_bytes()))
    assert [each["_id"] for each in documents] == [f"user-{number}" for number in range(6)]
    stored = gzip.decompress((directory / "idempotency_records.metadata.json.gz").read_bytes())
    metadata = json.loads(stored)
    assert metadata["collectionName"] == "idempotency_records"
    assert metadata["indexes"][0] == {
        "v": {"$numberInt": "2"},
        "key": {"_id": {"$numberInt": "1"}},
        "name": "_id_",
    }
    assert len(metadata["uuid"]) == 32
    told = json_util.loads((directory.parent / "manifest.json").read_text())
    assert told["counts"]["users"] == 6
    assert {path.name for path in directory.iterdir()} == {
        file["path"].split("/")[1] for file in told["files"]
    }


async def test_the_commands_back_up_prove_and_restore(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """By hand or from cron."""
    ledger = await fill(database)
    here = where(replica_set_uri, database)
    code, output, errors = await run("backup", str(tmp_path), *here)
    assert (code, errors) == (0, "")
    assert "-full-" in output
    await use(ledger)
    code, output, errors = await run("backup", "--incremental", str(tmp_path), "--json", *here)
    assert (code, errors) == (0, "")
    assert json.loads(output)["kind"] == "incremental"
    code, output, errors = await run("backup", "verify", str(tmp_path), *here)
    assert (code, errors) == (0, "")
    assert "can be restored" in output
    assert f"{database.name}_backup_check" not in await client.list_database_names()
    code, output, errors = await run("restore", str(tmp_path), *here)
    assert code == 2
    assert errors == (
        f"error: {database.name} is not empty: users has documents. Restore into another database, "
        "or replace what is there by --replace\n"
    )
    async with empty_database(client) as other:
        code, output, errors = await run(
            "restore", str(tmp_path), *where(replica_set_uri, other), "--json"
        )
        assert (code, errors) == (0, "")
        assert await contents(other) == await contents(database)
    before = await contents(database)
    await use(ledger)
    code, output, errors = await run("restore", str(tmp_path), *here, "--replace")
    assert (code, errors) == (0, "")
    assert "from then until now is lost" in output
    assert await contents(database) == before
    with pytest.raises(BackupError, match="restored or made anew: make a full backup"):
        await make_backup(database, tmp_path, incremental=True)


async def test_changes_are_applied_as_the_server_applied_them(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """Random updates of random documents, of every kind that the update language has."""
    await fill(database)
    random = Random(11)
    users = database["users"]
    await make_backup(database, tmp_path)
    for number in range(150):
        name = f"user-{random.randrange(6)}"
        await users.update_one({"_id": name}, random_update(random, number))
    await make_backup(database, tmp_path, incremental=True)
    async with empty_database(client) as other:
        await restore(other, tmp_path)
        found = await users.find().sort("_id", 1).to_list()
        assert await other["users"].find().sort("_id", 1).to_list() == found
        assert any("deep" in each for each in found)


def random_update(random: Random, number: int) -> Any:
    """Return an update operator, or a pipeline that the server turns into a difference."""
    value: Any = random.choice(
        [number, str(number), None, Int64(number), [1, 2, 3], {"a": number}, {}, [], 0.5]
    )
    name = random.choice(["x", "y", "z"])
    return random.choice(
        [
            {"$set": {name: value}},
            {"$unset": {name: 1}},
            [{"$set": {f"deep.{name}": value}}],
            [{"$set": {"deep.list": [number, {"n": number}, [number]]}}],
            {"$unset": {f"deep.{name}": 1}},
            [{"$set": {"list": {"$concatArrays": [{"$ifNull": ["$list", []]}, [value]]}}}],
            [{"$set": {"list": {"$slice": [{"$ifNull": ["$list", []]}, 2]}}}],
            [{"$set": {"list": {"$reverseArray": {"$ifNull": ["$list", []]}}}}],
            [{"$replaceWith": {"$mergeObjects": ["$$ROOT", {name: {"n": number, "l": [value]}}]}}],
        ]
    )

"""Backups that are damaged, foreign or incomplete are refused in one line, with nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

import pytest

from credit_mongo import BackupError, BackupRunningError, CreditLedger, InvalidRequestError
from credit_mongo.config import BACKUPS_COLLECTION
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import PRICES, chain, copy, empty_database, fill, use
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database

__all__ = ["chain", "copy"]

KEY = "00" * 31 + "07"
OTHER_KEY = "00" * 31 + "08"


def files_of(place: Path) -> list[Path]:
    """Return all files of all backups."""
    return sorted(path for path in place.rglob("*") if path.is_file())


def backups_of(place: Path) -> list[Path]:
    """Return the backups' directories, the oldest first."""
    return sorted(path for path in place.iterdir() if not path.name.startswith("."))


def files_in(directory: Path) -> list[Path]:
    """Return everything in a directory, hidden or not."""
    return list(directory.iterdir())


def rewrite(backup: Path, **changes: Any) -> None:
    """Change a manifest, and prove it anew."""
    file = backup / "manifest.json"
    content = {**json.loads(file.read_text()), **changes}
    del content["sha256"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


async def refusal_of(client: Client, place: Path, **options: Any) -> str:
    """Restore, check that it is refused and that nothing was written, and return why."""
    async with empty_database(client) as other:
        with pytest.raises(BackupError) as refused:
            await restore(other, place, **options)
        assert await other.list_collection_names() == []
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_one_changed_byte_anywhere_is_found(client: Client, copy: Path) -> None:
    """In any file, at any place: of each file the first byte, the last one and some between."""
    random = Random(7)
    tried = 0
    for path in files_of(copy):
        whole = path.read_bytes()
        places = {0, len(whole) - 1, *(random.randrange(len(whole)) for _ in range(2))}
        for position in places:
            changed = bytearray(whole)
            changed[position] ^= 1 << random.randrange(8)
            path.write_bytes(changed)
            # All of a chain is checked before the database is looked at.
            with pytest.raises(BackupError):
                await restore(client["test_never_written"], copy)
            tried += 1
        path.write_bytes(whole)
    assert tried > 100
    assert "test_never_written" not in await client.list_database_names()


async def test_a_file_that_is_cut_longer_or_gone_is_found(client: Client, copy: Path) -> None:
    """By its size, before its content is looked at."""
    for path in files_of(copy):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert "is shorter than its manifest says" in await refusal_of(client, copy)
        path.write_bytes(whole + b"\0")
        assert "is longer than its manifest says" in await refusal_of(client, copy)
        path.unlink()
        assert "lacks its file" in await refusal_of(client, copy)
        path.write_bytes(whole)
        break


async def test_a_missing_increment_is_named(client: Client, copy: Path) -> None:
    """A chain with a gap restores nothing after the gap."""
    first, middle, _ = backups_of(copy)
    shutil.rmtree(middle)
    reason = await refusal_of(client, copy)
    assert f"follows the backup {middle.name}, which is missing" in reason
    shutil.rmtree(first)
    assert "which is missing" in await refusal_of(client, copy)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "a newer version of credit_mongo wrote it, in form 2"),
        (
            {"storedForm": {"version": 9, "lowestWriter": 9}},
            "written by a newer version of credit_mongo",
        ),
        ({"files": [{"path": 1}]}, "its manifest can't be read"),
        ({"collections": {"users": "$"}}, "its manifest can't be read"),
        ({"end": "soon"}, "its manifest can't be read"),
    ],
)
async def test_foreign_and_newer_manifests_are_refused(
    client: Client, copy: Path, changes: dict[str, Any], reason: str
) -> None:
    """A manifest that is proven is not therefore one that can be used."""
    rewrite(backups_of(copy)[-1], **changes)
    assert reason in await refusal_of(client, copy)


async def test_a_place_without_a_whole_backup_is_refused(client: Client, tmp_path: Path) -> None:
    """Nothing there, not even the place; a backup without a manifest; one that was renamed."""
    for place in (tmp_path / "nowhere", tmp_path):
        assert await refusal_of(client, place) == "there is no backup here"
    name = "20260101T000000Z-full-00000001"
    (tmp_path / name).mkdir()
    assert await refusal_of(client, tmp_path) == f"{name}: has no manifest: it is not whole"
    (tmp_path / name / "manifest.json").write_text("[]")
    assert "its manifest can't be read" in await refusal_of(client, tmp_path)


async def test_a_backup_that_was_renamed_is_refused(client: Client, copy: Path) -> None:
    """Others refer to it by its name."""
    last = backups_of(copy)[-1]
    last.rename(copy / "20270101T000000Z-full-00000001")
    assert f"give it back its name '{last.name}'" in await refusal_of(client, copy)


async def test_a_moment_out_of_reach_is_refused(client: Client, copy: Path) -> None:
    """Before the first backup, and after the last."""
    assert "the first begins at" in await refusal_of(client, copy, to="2020-01-01")
    assert "is the last backup, and ends at" in await refusal_of(client, copy, to="2999-01-01")
    with pytest.raises(InvalidRequestError, match="to: must be a date"):
        await restore(client["test_never_written"], copy, to="yesterday")


@pytest.mark.parametrize(
    ("lost_at", "reason"),
    [
        ("2020-01-01T00:00:00Z", "must not be before the restored moment, 20"),
        ("2999-01-01", "must not be in the future"),
        ("at noon", "must be a date"),
    ],
)
async def test_a_loss_at_an_impossible_moment_is_refused(
    replica_set_uri: str, client: Client, chain: tuple[Database, Path], lost_at: str, reason: str
) -> None:
    """Before anything is written: the gap that would be told is wrong."""
    there = where(replica_set_uri, client["test_never_written"])
    code, output, errors = await run("restore", str(chain[1]), "--lost-at", lost_at, *there)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"error: --lost-at: {reason}")
    assert "test_never_written" not in await client.list_database_names()


async def test_a_database_with_documents_is_not_overwritten(
    client: Client, chain: tuple[Database, Path]
) -> None:
    """Whatever they are, in whichever of the ledger's collections."""
    async with empty_database(client) as other:
        await other["holds_archive"].insert_one({"_id": 1})
        with pytest.raises(BackupError, match="is not empty: holds_archive has documents"):
            await restore(other, chain[1])
        assert await other.list_collection_names() == ["holds_archive"]


async def test_an_empty_ledger_is_restored_into(
    client: Client, chain: tuple[Database, Path]
) -> None:
    """``credit-mongo init`` may have been run before."""
    async with empty_database(client) as other:
        async with CreditLedger(other, PRICES) as ledger:
            await ledger.ensure_indexes()
        assert (await restore(other, chain[1])).verification.findings == ()


async def test_another_unfinished_restore_is_not_overwritten(
    client: Client, chain: tuple[Database, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named; --replace begins anew."""
    async with empty_database(client) as other:
        with monkeypatch.context() as patched:

            async def fail(*_: object) -> None:
                raise OSError("gone")

            patched.setattr("credit_mongo.maintenance.backup.restoring._Restoring._replay", fail)
            with pytest.raises(OSError, match="gone"):
                await restore(other, chain[1])
        first = backups_of(chain[1])[0]
        moment = json.loads((first / "manifest.json").read_text())["end"][0]
        earlier = datetime.fromtimestamp(moment, timezone.utc)
        with pytest.raises(BackupError, match=r"another restore into .* has not ended"):
            await restore(other, chain[1], to=earlier)
        restored = await restore(other, chain[1], to=earlier, replace=True)
        assert restored.verification.findings == ()


# --- Making backups -------------------------------------------------------------------------------


async def test_a_dropped_collection_ends_a_chain(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """What came into it afterwards under the same name is not its continuation."""
    await fill(database)
    await make_backup(database, tmp_path)
    await database["audit_logs"].drop()
    with pytest.raises(BackupError, match=r"audit_logs was dropped or renamed .*full backup"):
        await make_backup(database, tmp_path, incremental=True)


async def test_backups_of_another_database_are_not_continued(
    client: Client, chain: tuple[Database, Path], copy: Path
) -> None:
    """A place is for one ledger. A database that was made anew has another history."""
    async with empty_database(client) as other:
        await fill(other)
        with pytest.raises(BackupError, match="give each ledger a place of its own"):
            await make_backup(other, copy)
    rewrite(backups_of(copy)[-1], history="f" * 24)
    with pytest.raises(BackupError, match="restored or made anew: make a full backup"):
        await make_backup(chain[0], copy, incremental=True)
    rewrite(backups_of(copy)[-1], history=(await marked(chain[0]))["history"], number=1000)
    with pytest.raises(BackupError, match="set back: make a full backup"):
        await make_backup(chain[0], copy, incremental=True)


async def marked(database: Database) -> dict[str, Any]:
    row = await database[BACKUPS_COLLECTION].find_one({"_id": "transactions"})
    assert row is not None
    return {**row, "history": str(row["history"])}


async def test_increments_need_a_backup_to_follow(
    chain: tuple[Database, Path], tmp_path: Path
) -> None:
    """There may be none."""
    with pytest.raises(BackupError, match="make a full backup first"):
        await make_backup(chain[0], tmp_path / "new", incremental=True)


async def test_one_backup_at_a_time(chain: tuple[Database, Path], tmp_path: Path) -> None:
    """A second one is told until when the first keeps it out."""
    lease = {"_id": "lease"}
    backups = chain[0][BACKUPS_COLLECTION]
    before = await backups.find_one(lease)
    await backups.update_one(lease, [{"$set": {"aliveUntil": {"$add": ["$$NOW", 60_000]}}}])
    with pytest.raises(BackupRunningError, match="start this one again after that time"):
        await make_backup(chain[0], tmp_path)
    assert before is not None
    await backups.replace_one(lease, before)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: path.write_text("x"), "exists but is not a directory"),
        (lambda path: (path.mkdir(), path.chmod(0o777)), "can be written by other users"),
    ],
)
async def test_an_unsafe_place_is_refused(
    chain: tuple[Database, Path],
    replica_set_uri: str,
    tmp_path: Path,
    prepare: Callable[[Path], object],
    reason: str,
) -> None:
    """Nobody else may change a backup before it is complete."""
    prepare(tmp_path / "place")
    code, output, errors = await run(
        "backup", str(tmp_path / "place"), *where(replica_set_uri, chain[0])
    )
    assert (code, output) == (2, "")
    assert errors.startswith("error: DIR: ")
    assert reason in errors


async def test_a_place_in_no_directory_is_refused(
    chain: tuple[Database, Path], replica_set_uri: str, tmp_path: Path
) -> None:
    """Only the place itself is created: more is a typing error."""
    code, _, errors = await run(
        "backup", str(tmp_path / "no" / "place"), *where(replica_set_uri, chain[0])
    )
    assert (code, errors) == (2, f"error: {tmp_path}/no: Not a directory\n")


# --- Keys -----------------------------------------------------------------------------------------


async def test_encrypted_backups_need_their_key(
    client: Client, chain: tuple[Database, Path], tmp_path: Path
) -> None:
    """No plain text is stored; another key, or none, is refused before anything is written."""
    place, key, other_key = tmp_path / "place", tmp_path / "key", tmp_path / "other"
    key.write_text(f"{KEY}\n")
    other_key.write_text(OTHER_KEY)
    await make_backup(chain[0], place, key_file=key)
    async with CreditLedger(chain[0], PRICES) as ledger:
        await use(ledger)
    with pytest.raises(BackupError, match="is encrypted: give its key file by --encrypt-with"):
        await make_backup(chain[0], place, incremental=True)
    await make_backup(chain[0], place, incremental=True, key_file=key)
    for path in files_of(place):
        data = path.read_bytes()
        assert b"user-1" not in data
        assert path.name == "manifest.json" or not data.startswith(b"\x1f\x8b")
    assert "was encrypted with another key" in await refusal_of(client, place, key_file=other_key)
    assert "is encrypted: give its key file" in await refusal_of(client, place)
    async with empty_database(client) as other:
        assert (await restore(other, place, key_file=key)).verification.findings == ()
    assert "is not encrypted" in await refusal_of(client, chain[1], key_file=key)


@pytest.mark.parametrize("text", ["", "00", KEY + "00", "z" * 64, f"{KEY}\n{KEY}"])
async def test_key_files_that_are_none_are_refused(
    chain: tuple[Database, Path], replica_set_uri: str, tmp_path: Path, text: str
) -> None:
    """The line names the file, not what is in it."""
    key = tmp_path / "key"
    key.write_text(text)
    code, output, errors = await run(
        *("backup", str(tmp_path), "--encrypt-with", str(key)), *where(replica_set_uri, chain[0])
    )
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: --encrypt-with: {key} must hold 64 hexadecimal digits")
    assert not text or text not in errors.replace(str(key), "")
    code, _, errors = await run(
        *("backup", str(tmp_path), "--encrypt-with", str(tmp_path / "no")),
        *where(replica_set_uri, chain[0]),
    )
    assert (code, errors) == (2, f"error: {tmp_path}/no: No such file or directory\n")

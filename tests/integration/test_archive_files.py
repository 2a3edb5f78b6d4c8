"""The archive's files: their content, and what happens after a crash or a change by hand."""

from __future__ import annotations

import asyncio
import gzip
import os
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

from credit_mongo import (
    CreditError,
    InvalidRequestError,
    TransactionNotFoundError,
)
from credit_mongo.errors import ArchiveCopyError, ArchiveManifestError
from credit_mongo.maintenance.archive import files as archive_files
from credit_mongo.maintenance.archive.archiving import (
    archive,
)
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.private_files import Directory
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.archives import (
    LEASE_SECONDS,
    check_whole,
    commands_of,
    dump,
    file_rows,
    is_archived,
    kept,
    killed_at,
    names_in,
    open_books,
    options,
    run_to_the_end,
)
from tests.integration.promises import (
    Database,
    Row,
    rows,
)

UTC = timezone.utc


@pytest.mark.parametrize("file_format", ["bson", "parquet"])
async def test_files_are_readable_only_by_their_owner(
    database: Database, tmp_path: Path, file_format: str
) -> None:
    """The files hold keys and metadata, and others may be able to list the directory."""
    books = await open_books(database)
    await archive(database, **options(file_format, tmp_path, books.cut_off))
    modes = await asyncio.to_thread(lambda: [path.stat().st_mode for path in tmp_path.iterdir()])
    assert len(modes) == 2
    assert not any(mode & 0o077 for mode in modes)


async def test_a_manifest_says_what_went_where(database: Database, tmp_path: Path) -> None:
    """Anybody can check the files by count, sum, hash and length."""
    import hashlib

    books = await open_books(database)
    await archive(database, **options("bson", tmp_path, books.cut_off))
    [manifest] = [m for m in await rows(database, "archive_manifests") if m["_id"] != "lease"]
    assert manifest["state"] == "done"
    assert manifest["cutOff"] == books.cut_off
    assert manifest["destination"] == {
        "kind": "files",
        "directory": str(tmp_path),
        "format": "bson",
    }
    assert len(manifest["files"]) == 2
    for file in manifest["files"]:
        path = tmp_path / file["name"]
        documents = gzip.decompress(path.read_bytes())
        assert path.stat().st_size == file["bytes"]
        assert path.stat().st_mode & 0o077 == 0
        assert hashlib.sha256(documents).hexdigest() == file["sha256"]
        assert file["sha256"] == manifest[file["kind"]]["sha256"]
        assert len(file_rows(path)) == file["count"] == manifest[file["kind"]]["count"]
        assert file["complete"] is True
    [transactions, _] = manifest["files"]
    amounts = [row["amount"] for row in file_rows(tmp_path / transactions["name"])]
    assert manifest["transactions"]["amount"] == sum(amounts)


async def test_charges_in_files_are_not_found(database: Database, tmp_path: Path) -> None:
    """Verification still finds their refunds, and does not report them."""
    books = await open_books(database)
    await archive(database, **options("bson", tmp_path, books.cut_off))
    with pytest.raises(TransactionNotFoundError):
        await books.ledger.refund(
            "user-0", 1, action="sorry", transaction_id=books.old_charges["user-0"][0]
        )
    assert (await verify(database)).findings == ()
    assert (await verify(database, user_ids=["user-0"])).findings == ()


async def test_bytes_beyond_the_committed_end_are_cut_off(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """A crash leaves part of an uncommitted batch, of any length."""
    books = await open_books(database)
    before = await kept(database)
    facts = options("bson", tmp_path, books.cut_off)
    for number in range(8, 60, 3):
        if not await killed_at(replica_set_uri, database, facts, number, when_answered=False):
            break
        manifests = await rows(database, "archive_manifests", state={"$exists": True})
        ended = {f["name"] for m in manifests for f in m["files"] if f["complete"]}
        for name in names_in(tmp_path) - ended:
            with (tmp_path / name).open("ab") as opened:
                opened.write(b"\x1f\x8b\x08\x00garbage")
        await asyncio.sleep(LEASE_SECONDS * 2)
    await run_to_the_end(database, facts)
    await check_whole(database, before, tmp_path)


@pytest.mark.parametrize("harm", ["gone", "shorter", "changed"])
async def test_a_damaged_file_is_refused(
    database: Database, replica_set_uri: str, tmp_path: Path, harm: str
) -> None:
    """The error comes before anything is moved."""
    books = await open_books(database)
    facts = options("bson", tmp_path, books.cut_off)
    commands = await commands_of(replica_set_uri, database.name, {**facts, "older_than": "30y"})
    files: list[Row] = []
    for number in range(len(commands), len(commands) + 60):
        assert await killed_at(replica_set_uri, database, facts, number, when_answered=True)
        files = [f for m in await rows(database, "archive_manifests") for f in m.get("files", ())]
        if files:
            break
        await asyncio.sleep(LEASE_SECONDS * 2)
    path = tmp_path / files[0]["name"]
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "shorter":
        path.write_bytes(content[:-4])
    else:
        path.write_bytes(content[:40] + bytes([content[40] ^ 255]) + content[41:])
    await asyncio.sleep(LEASE_SECONDS * 2)
    left = await dump(database)
    with pytest.raises(CreditError, match=str(path.name)):
        await run_to_the_end(database, facts)
    after = await dump(database)
    assert after["transactions"] == left["transactions"]
    path.write_bytes(content)
    await run_to_the_end(database, facts)
    assert (await verify(database)).findings == ()
    assert await is_archived(database, books.cut_off)


# --- Other users of the machine -------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["bson", "parquet"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
async def test_a_directory_that_others_may_write_to_is_refused(
    database: Database, tmp_path: Path, file_format: str, mode: int
) -> None:
    """Others could plant links in it. Even a dry run refuses it before anything is moved."""
    books = await open_books(database, users=1, charges=4)
    before = await dump(database)
    directory = tmp_path / "archive"
    directory.mkdir()
    directory.chmod(mode)
    for dry_run in (True, False):
        facts = options(file_format, directory, books.cut_off, dry_run=dry_run)
        with pytest.raises(InvalidRequestError, match="directory: can be written by other users"):
            await archive(database, **facts)
    assert names_in(directory) == set()
    assert {**await dump(database), "archive_manifests": []} == {
        **before,
        "archive_manifests": [],
    }
    # Somebody may be faster, between the check and the run: the opened directory counts.
    files = archive_files.Files(LedgerDatabase.of(database), directory, "bson")
    with pytest.raises(InvalidRequestError, match="can be written by other users"):
        files._make()


async def test_no_planted_link_is_followed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link stands at the next file's name, planted while the directory was open to all."""
    books = await open_books(database, users=1, charges=4)
    before = await dump(database)
    victim = tmp_path / "victim"
    make = archive_files.Files._append

    def plant_and_append(files: Any, lane: Any, kind: str, *rest: Any) -> Any:
        if files._open is None:
            name = f"transactions.{lane.manifest_id}.1.bson.gz"
            (tmp_path / "archive" / name).symlink_to(victim)
        return make(files, lane, kind, *rest)

    monkeypatch.setattr(archive_files.Files, "_append", plant_and_append)
    with pytest.raises(FileExistsError):
        await archive(database, **options("bson", tmp_path / "archive", books.cut_off))
    assert not victim.exists()
    assert (await dump(database))["transactions"] == before["transactions"]


async def test_parquet_goes_to_no_planted_link(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows stay in the BSON file until the Parquet file is complete, so a later run has them."""
    books = await open_books(database, users=1, charges=4)
    kept_before = await kept(database)
    victim, directory = tmp_path / "victim", tmp_path / "archive"
    complete = archive_files.Files._complete

    def plant_and_complete(files: Any, file: Any, *rest: Any) -> Any:
        link = directory / file.name.replace(".bson.gz", ".parquet.part")
        link.symlink_to(victim)
        return complete(files, file, *rest)

    facts = options("parquet", directory, books.cut_off)
    with monkeypatch.context() as planting:
        planting.setattr(archive_files.Files, "_complete", plant_and_complete)
        with pytest.raises(FileExistsError, match=r"parquet\.part"):
            await archive(database, **facts)
    assert not victim.exists()
    await run_to_the_end(database, facts)
    assert not victim.exists()
    await check_whole(database, kept_before, directory)
    assert {name.rpartition(".")[2] for name in names_in(directory)} == {"parquet"}


@pytest.mark.parametrize("swapped", ["file", "directory"])
async def test_nothing_is_deleted_when_the_path_leads_elsewhere(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """The run reads the manifest's path again. If the rows are not there, it keeps them."""
    books = await open_books(database, users=1, charges=4)
    before = await dump(database)
    directory = tmp_path / "archive"
    read = archive_files._read

    def swap_and_read(opened: Any, size: int) -> bytes:
        content = read(opened, size)
        if swapped == "directory" and not (tmp_path / "moved").exists():
            directory.rename(tmp_path / "moved")
            directory.mkdir(0o700)
        for path in directory.iterdir():
            path.unlink()
            path.write_bytes(content)
        opened.seek(opened.tell() - size)
        return content

    monkeypatch.setattr(archive_files, "_read", swap_and_read)
    with pytest.raises(ArchiveCopyError):
        await archive(database, **options("bson", directory, books.cut_off))
    assert (await dump(database))["transactions"] == before["transactions"]


async def test_parquet_is_read_by_its_final_name_before_its_source_goes(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file harmed between its writing and its naming costs no row."""
    books = await open_books(database, users=1, charges=4)
    kept_before = await kept(database)
    facts = options("parquet", tmp_path, books.cut_off)
    rename = Directory.rename

    def harm_and_rename(directory: Any, old: str, new: str) -> None:
        (tmp_path / old).write_bytes((tmp_path / old).read_bytes()[:-8])
        rename(directory, old, new)

    with monkeypatch.context() as harming:
        harming.setattr(Directory, "rename", harm_and_rename)
        with pytest.raises(ArchiveCopyError):
            await archive(database, **facts)
    await run_to_the_end(database, facts)
    await check_whole(database, kept_before, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../authorized_keys"),
        ("name", "../{}"),
        ("name", "/etc/passwd"),
        ("name", "transactions.0123456789abcdef01234567.1.bson.gz"),
        ("name", "transactions.{id}.1.parquet"),
        ("name", 7),
        ("bytes", -1),
        ("bytes", 1.5),
        ("count", "many"),
        ("sha256", "0"),
        ("kind", "users"),
        ("complete", "no"),
        ("more", 1),
    ],
)
async def test_a_manifest_that_no_archive_wrote_is_refused(
    database: Database, tmp_path: Path, field: str, value: object
) -> None:
    """The name could lead anywhere, so it is checked before any file is touched."""
    books = await open_books(database, users=1, charges=4)
    directory = tmp_path / "archive"
    await archive(database, **options("bson", directory, books.cut_off))
    [manifest] = [m for m in await rows(database, "archive_manifests") if m["_id"] != "lease"]
    if isinstance(value, str):
        value = value.format(manifest["files"][0]["name"], id=manifest["_id"])
    change = {"state": "interrupted", "files.0.complete": False, f"files.0.{field}": value}
    await database["archive_manifests"].update_one({"_id": manifest["_id"]}, {"$set": change})
    keys = tmp_path / "authorized_keys"
    keys.write_text("mine")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(
        ArchiveManifestError, match=f"{manifest['_id']} has a wrong files.0"
    ) as told:
        await run_to_the_end(database, options("bson", directory, books.cut_off))
    assert told.value.field == f"files.0.{field}"
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert keys.read_text() == "mine"


@pytest.mark.parametrize("planted", ["link", "pipe", "directory"])
async def test_a_manifests_path_that_is_not_a_regular_file_is_not_opened(
    database: Database, tmp_path: Path, planted: str
) -> None:
    """Whatever the path leads to is not cut."""
    books = await open_books(database, users=1, charges=4)
    directory, victim = tmp_path / "archive", tmp_path / "victim"
    await archive(database, **options("bson", directory, books.cut_off))
    [manifest] = [m for m in await rows(database, "archive_manifests") if m["_id"] != "lease"]
    change = {"state": "interrupted", "files.0.complete": False, "files.0.bytes": 2}
    await database["archive_manifests"].update_one({"_id": manifest["_id"]}, {"$set": change})
    victim.write_text("mine, and longer")
    path = directory / manifest["files"][0]["name"]
    path.rename(tmp_path / "good")
    if planted == "link":
        path.symlink_to(victim)
    elif planted == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=path.name):
        await run_to_the_end(database, options("bson", directory, books.cut_off))
    assert victim.read_text() == "mine, and longer"

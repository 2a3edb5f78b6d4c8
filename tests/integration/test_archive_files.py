"""The archive's files: what is in them, and what a crash or somebody's hand makes of them."""

from __future__ import annotations

import asyncio
import gzip
from datetime import timezone
from pathlib import Path

import pytest

from credit_mongo import (
    CreditError,
    TransactionNotFoundError,
)
from credit_mongo.maintenance.archive import (
    archive,
)
from credit_mongo.maintenance.verify import verify
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
async def test_files_are_their_owner_s(
    database: Database, tmp_path: Path, file_format: str
) -> None:
    """Keys and metadata are in them, whoever may look into the directory."""
    books = await open_books(database)
    await archive(database, **options(file_format, tmp_path, books.cut_off))
    modes = await asyncio.to_thread(lambda: [path.stat().st_mode for path in tmp_path.iterdir()])
    assert len(modes) == 2
    assert not any(mode & 0o077 for mode in modes)


async def test_a_manifest_says_what_went_where(database: Database, tmp_path: Path) -> None:
    """Count, sum, hash and length, of files as anybody can check them."""
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
    """Their refunds are, and are no finding."""
    books = await open_books(database)
    await archive(database, **options("bson", tmp_path, books.cut_off))
    with pytest.raises(TransactionNotFoundError):
        await books.ledger.refund(
            "user-0", 1, action="sorry", transaction_id=books.old_charges["user-0"][0]
        )
    assert (await verify(database)).findings == ()
    assert (await verify(database, user_ids=["user-0"])).findings == ()


async def test_what_a_crash_left_behind_the_end_is_cut_off(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The rest of a batch that was not committed, however much of it was written."""
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
async def test_a_file_that_was_harmed_is_told(
    database: Database, replica_set_uri: str, tmp_path: Path, harm: str
) -> None:
    """Before anything is moved beside it."""
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

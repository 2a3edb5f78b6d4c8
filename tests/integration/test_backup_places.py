"""Backups in other places than a directory: in memory, and in a store that speaks S3."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import pytest_asyncio

from credit_mongo import BackupError, InvalidRequestError
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import contents, empty_database, fill, use
from tests.integration.commands import run_program, where
from tests.integration.promises import Client, Database

SECRET = "the-secret-of-the-store"  # noqa: S105 - of no other store


async def test_a_backup_in_memory(client: Client, database: Database) -> None:
    """Anything that fsspec knows: what has no manifest is no backup, and is removed."""
    ledger = await fill(database)
    place = f"memory://{uuid4().hex}/backups"
    first = await make_backup(database, place)
    await use(ledger)
    files = fsspec.filesystem("memory")
    root = place.partition("://")[2]
    unfinished = f"/{root}/20260101T000000Z-full-00000001/app/users.bson.gz"
    files.makedirs(unfinished.rpartition("/")[0])
    files.pipe_file(unfinished, b"half")
    second = await make_backup(database, place, incremental=True)
    assert sorted(name.rpartition("/")[2] for name in files.ls(f"/{root}", detail=False)) == [
        first.name,
        second.name,
    ]
    async with empty_database(client) as other:
        assert len((await restore(other, place)).backups) == 2
        assert await contents(other) == await contents(database)
    files.pipe_file(f"/{root}/{second.name}/changes.bson.gz", b"other")
    async with empty_database(client) as other:
        with pytest.raises(BackupError, match=r"changes\.bson\.gz is shorter"):
            await restore(other, place)
    await make_backup(database, place)
    last = await make_backup(database, place, keep="0h")
    assert {first.name, second.name} <= set(last.removed)
    files.rm(f"/{root}", recursive=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nothing://x", "is nothing that fsspec knows"),
        ("s3://user:password@bucket", "can't be used"),
    ],
)
async def test_places_that_cannot_be_used_are_told_without_secrets(
    database: Database, url: str, reason: str
) -> None:
    """The URL may have a password."""
    await fill(database)
    with pytest.raises((BackupError, InvalidRequestError), match=reason) as refused:
        await make_backup(database, url)
    assert "password" not in str(refused.value)


@pytest_asyncio.fixture(scope="module")
async def store() -> AsyncIterator[dict[str, Any]]:
    """A server that speaks S3, on this machine alone. Yields what its clients need to know."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                break
        yield {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
    finally:
        process.kill()
        await process.wait()


@pytest.mark.thorough
async def test_backups_in_a_store_that_speaks_s3(
    client: Client,
    database: Database,
    replica_set_uri: str,
    store: Any,
    tmp_path: Path,
) -> None:
    """By the commands, encrypted, and restored from there."""
    ledger = await fill(database)
    here = where(replica_set_uri, database)
    key = tmp_path / "key"
    key.write_text("5a" * 32)
    encrypt = ("--encrypt-with", str(key))
    make_bucket = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
    assert (await run_program(program=("-c", make_bucket), **store))[0] == 0
    place = "s3://bucket/backups"
    code, output, errors = await run_program("backup", place, *encrypt, *here, **store)
    assert (code, errors) == (0, "")
    await use(ledger)
    code, output, errors = await run_program(
        "backup", place, "--incremental", "--json", *encrypt, *here, **store
    )
    assert (code, errors) == (0, "")
    assert json.loads(output)["kind"] == "incremental"
    async with empty_database(client) as other:
        code, output, errors = await run_program(
            "restore", place, *encrypt, *where(replica_set_uri, other), **store
        )
        assert (code, errors) == (0, "")
        assert await contents(other) == await contents(database)
    code, output, errors = await run_program(
        *("backup", place, *encrypt, *here), **{**store, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith("error: s3://bucket/backups can't be used: ")
    assert SECRET not in errors

"""What the commands say when a backup can't be made or used: one line, and exit code 2."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from credit_mongo import CreditLedger
from credit_mongo.maintenance.backup.making import make_backup
from tests.integration.backups import PRICES, fill, use
from tests.integration.commands import PROGRAM, run, run_program, where
from tests.integration.promises import Client, Database, failing


@pytest_asyncio.fixture(scope="module")
async def backed_up(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Database, Path]]:
    """A ledger that has gone on since its encrypted backup, which no test changes."""
    database = client[f"test_{uuid4().hex[:12]}"]
    ledger = await fill(database)
    directory = tmp_path_factory.mktemp("backups")
    (directory / "key").write_text("5a" * 32)
    (directory / "other-key").write_text("5b" * 32)
    await make_backup(database, directory / "place", key_file=directory / "key")
    await use(ledger)
    yield database, directory
    await client.drop_database(database.name)


@pytest.fixture
def place(backed_up: tuple[Database, Path], tmp_path: Path) -> Path:
    """A copy of the place."""
    return Path(shutil.copytree(backed_up[1] / "place", tmp_path / "place"))


def check_one_line(refused: tuple[int, str, str], *parts: str) -> None:
    """Check that a command failed, that nothing looks like success, and that a line says why."""
    code, output, errors = refused
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    for part in parts:
        assert part in errors


def content_of(place: Path) -> dict[str, bytes]:
    """Return all directories and files of a place."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


def make_it_newer(place: Path) -> None:
    """Let the backup of a place say that it has a form of the future."""
    [file] = place.glob("*/manifest.json")
    content = {**json.loads(file.read_text()), "format": 2}
    del content["sha256"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


async def test_an_oplog_that_no_longer_reaches_back(
    client: Client, replica_set_uri: str, backed_up: tuple[Database, Path], place: Path
) -> None:
    """An increment is refused, and says that a full backup helps. It does."""
    database, directory = backed_up
    before = content_of(place)
    back_up = ("backup", str(place), "--encrypt-with", str(directory / "key"))
    here = where(replica_set_uri, database)
    # The smallest oplog is a gigabyte, so the server is told to answer as if it had lost it.
    async with failing(client, "credit_mongo", failCommands=["aggregate"], errorCode=286):
        refused = await run(*back_up, "--incremental", *here)
    check_one_line(refused, "oplog no longer reaches back", "make a full backup")
    assert content_of(place) == before
    code, _, errors = await run(*back_up, *here)
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("command", [("restore",), ("backup", "verify")])
async def test_a_wrong_key(
    client: Client,
    replica_set_uri: str,
    backed_up: tuple[Database, Path],
    command: tuple[str, ...],
) -> None:
    """Or none. Nothing is written, not even for a moment."""
    _, directory = backed_up
    database = client[f"test_{uuid4().hex[:12]}"]
    refuse = (*command, str(directory / "place"), *where(replica_set_uri, database))
    check_one_line(await run(*refuse), "give its key file by --encrypt-with")
    refused = await run(*refuse, "--encrypt-with", str(directory / "other-key"))
    check_one_line(refused, "was encrypted with another key")
    assert not [each for each in await client.list_database_names() if database.name in each]


async def test_an_increment_with_a_wrong_key(
    replica_set_uri: str, backed_up: tuple[Database, Path], place: Path
) -> None:
    """A chain has one key. Otherwise nobody could restore all of it with one."""
    database, directory = backed_up
    before = content_of(place)
    key = ("--encrypt-with", str(directory / "other-key"))
    refused = await run(
        "backup", str(place), "--incremental", *key, *where(replica_set_uri, database)
    )
    check_one_line(refused, "was encrypted with another key")
    assert content_of(place) == before


@pytest.mark.parametrize("command", [("restore",), ("backup", "verify")])
async def test_a_backup_of_a_newer_version(
    client: Client,
    replica_set_uri: str,
    backed_up: tuple[Database, Path],
    place: Path,
    command: tuple[str, ...],
) -> None:
    """It is left alone, and the line says what to install."""
    make_it_newer(place)
    database = client[f"test_{uuid4().hex[:12]}"]
    key = ("--encrypt-with", str(backed_up[1] / "key"))
    refused = await run(*command, str(place), *key, *where(replica_set_uri, database))
    check_one_line(refused, "a newer version of credit_mongo wrote it", "install that one")
    assert database.name not in await client.list_database_names()


@pytest.mark.parametrize("incremental", [(), ("--incremental",)])
async def test_a_full_disk(
    replica_set_uri: str,
    backed_up: tuple[Database, Path],
    place: Path,
    incremental: tuple[str, ...],
) -> None:
    """Nothing is left of the attempt, and the next one with room succeeds."""
    database, directory = backed_up
    before = content_of(place)
    back_up = ("backup", str(place), *incremental, "--encrypt-with", str(directory / "key"))
    here = where(replica_set_uri, database)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400,) * 2); "
    refused = await run_program(*back_up, *here, program=(PROGRAM[0], limit + PROGRAM[1]))
    check_one_line(refused, str(place), ".gz: File too large")
    assert content_of(place) == before
    async with CreditLedger(database, PRICES) as ledger:
        await use(ledger)
    code, _, errors = await run(*back_up, *here)
    assert (code, errors) == (0, "")


async def test_a_wrong_moment_is_named_as_it_was_typed(
    client: Client, replica_set_uri: str, place: Path
) -> None:
    """Other commands call the end of a period so."""
    there = where(replica_set_uri, client[f"test_{uuid4().hex[:12]}"])
    refused = await run("restore", str(place), "--to", "tomorrow", *there)
    check_one_line(refused, "error: --to: ")

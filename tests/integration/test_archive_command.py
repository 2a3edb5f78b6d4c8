"""The command that archives: what it prints, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import TypedDict

import pytest
from bson import ObjectId

from credit_mongo import (
    CreditLedger,
)
from credit_mongo.maintenance.archive.runs import Lease
from credit_mongo.maintenance.steps import Steps
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.archives import (
    PRICES,
    check_whole,
    dump,
    insert_chain,
    kept,
    names_in,
    open_books,
)
from tests.integration.commands import PROGRAM, run, run_program
from tests.integration.promises import (
    Client,
    Database,
    rows,
)

ROOT = Path(__file__).parents[2]
UTC = timezone.utc


class Where(TypedDict):
    """The database that the command connects to."""

    uri: str
    database: str


async def run_command(
    *arguments: str, uri: str, database: str = "app", most_bytes: int | None = None
) -> tuple[int, str, str]:
    """Archive, and return the exit code, stdout and stderr. ``most_bytes`` is a file's limit."""
    options = (*arguments, "--uri", uri, "--database", database, "--timeout", "3")
    if most_bytes is None:
        return await run("archive", *options)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes},) * 2); "
    program = (PROGRAM[0], limit + PROGRAM[1])
    return await run_program("archive", *options, program=program)


async def test_the_script_archives_and_says_what_it_did(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """It prints words, or JSON."""
    books = await open_books(database)
    before = await kept(database)
    where: Where = {"uri": replica_set_uri, "database": database.name}
    moment = books.cut_off.isoformat()
    code, output, errors = await run_command("--older-than", moment, "--dry-run", **where)
    assert (code, errors) == (0, "")
    assert "(dry run: nothing was moved)" in output
    assert "archive_manifests" not in await database.list_collection_names()
    code, output, errors = await run_command(
        "--older-than", moment, "--only", "transactions", "--json", **where
    )
    assert (code, errors) == (0, "")
    facts = json.loads(output)
    assert facts["database"] == database.name
    assert facts["transactions"] == await database["transactions_archive"].count_documents({}) > 0
    assert facts["cut_off"] == moment_to_milliseconds(books.cut_off)
    assert facts["audit_logs"] == 0
    await asyncio.sleep(0.01)
    code, output, errors = await run_command(
        *("--older-than", "0h", "--to", str(tmp_path / "new"), "--format", "parquet"),
        **where,
    )
    assert (code, errors) == (0, "")
    assert " archived\n" in output
    assert ".parquet\n" in output
    await check_whole(database, before, tmp_path / "new")


async def test_the_script_names_who_was_left_alone(
    database: Database, replica_set_uri: str
) -> None:
    """Exit code 1 means that books are broken."""
    books = await open_books(database)
    where: Where = {"uri": replica_set_uri, "database": database.name}
    await database["transactions"].update_many({"userId": "user-1"}, {"$unset": {"seq": ""}})
    moment = books.cut_off.isoformat()
    code, output, _ = await run_command("--older-than", moment, **where)
    assert code == 0
    assert "user-1\thas no seq\n" in output
    await database["transactions"].update_one({"userId": "user-2"}, {"$set": {"amount": 1.5}})
    code, output, _ = await run_command("--older-than", "0h", **where)
    assert code == 1
    assert "user-2\thas a field of the wrong type\n" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--older-than"),
        (("--older-than", "soon"), "must be an age"),
        (("--older-than", "6"), "must be an age"),
        (("--older-than", "2999-01-01"), "lies in the future"),
        (("--older-than", "2025-02-30"), "must be an age"),
        (("--older-than", "1h", "--format", "bson"), "--format needs --to"),
        (("--older-than", "1h", "--to", "DIR", "--format", "csv"), "must be one of"),
        (("--older-than", "1h", "--only", "users"), "--only must be one of"),
        (("--older-than", "1h", "--to", "FULL"), "is not empty"),
        (("--older-than", "1h", "--to", "FULL", "--dry-run"), "is not empty"),
        (("--older-than", "1h", "--to", "FULL/file"), "exists but is not a directory"),
        (("--older-than", "1h", "--to", "FULL/file/below"), "Not a directory"),
        (("--older-than", "1h", "--to", "/proc/archive"), "/proc/archive"),
    ],
)
@pytest.mark.cases(4)
async def test_bad_input_gets_one_line_and_changes_nothing(
    database: Database,
    replica_set_uri: str,
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """Exit code 2, no traceback."""
    await open_books(database, users=1, charges=4)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    places = {"DIR": str(tmp_path / "new"), "FULL": str(full)}
    given = [argument.replace("FULL", places["FULL"]) for argument in arguments]
    given = [places["DIR"] if argument == "DIR" else argument for argument in given]
    before = await dump(database)
    code, output, errors = await run_command(*given, uri=replica_set_uri, database=database.name)
    assert (code, output) == (2, "")
    assert said in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    after = await dump(database)
    assert {n: r for n, r in after.items() if not n.startswith("archive_")} == {
        n: r for n, r in before.items() if not n.startswith("archive_")
    }
    assert not (tmp_path / "new").exists()
    assert names_in(full) == {"file"}


@pytest.mark.parametrize(
    ("uri", "database", "said"),
    [
        ("mongodb://127.0.0.1:1/?replicaSet=rs0", "app", "no usable server in time"),
        ("nonsense", "app", "uri"),
        ("mongodb://user:secret@127.0.0.1:1/?tsl=true", "app", "uri"),
        (None, "a b", "database"),
    ],
)
@pytest.mark.cases(1)
async def test_no_server_gets_one_line(
    replica_set_uri: str, uri: str | None, database: str, said: str
) -> None:
    """The line shows no password."""
    code, output, errors = await run_command(
        "--older-than", "1h", uri=uri or replica_set_uri, database=database
    )
    assert (code, output) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1
    assert "secret" not in errors


async def test_an_empty_database_without_indexes(database: Database, replica_set_uri: str) -> None:
    """An empty database needs no work. With rows but no index, the error says what to run."""
    await database.create_collection("users")
    where: Where = {"uri": replica_set_uri, "database": database.name}
    code, output, errors = await run_command("--older-than", "1h", **where)
    assert (code, errors) == (0, "")
    assert "0 transactions, 0 audit logs and 0 holds" in output
    await insert_chain(database, "u", 3, datetime.now(UTC) - timedelta(days=3))
    code, output, errors = await run_command("--older-than", "1h", **where)
    assert (code, output) == (2, "")
    assert errors == "error: an index is missing: run credit-mongo init first\n"
    assert await database["transactions"].count_documents({}) == 3


async def test_a_second_command_says_that_another_is_running(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """It prints one line and writes nothing."""
    await open_books(database, users=1, charges=4)
    lease = Lease(LedgerDatabase.of(database), "archive_manifests", ObjectId(), seconds=3600)
    async with Steps(client, step_seconds=10) as steps:
        await lease.take(steps)
        before = await dump(database)
        code, output, errors = await run_command(
            "--older-than", "1h", uri=replica_set_uri, database=database.name
        )
        await lease.release()
    assert (code, output) == (2, "")
    assert errors.startswith("error: another archive run is at work")
    assert errors.count("\n") == 1
    del before["archive_manifests"]
    after = await dump(database)
    assert [row["_id"] for row in after.pop("archive_manifests")] == ["lease"]
    assert after == before


@pytest.mark.parametrize("file_format", ["bson", "parquet"])
@pytest.mark.parametrize("most_bytes", [0, 2000, 20_000])
@pytest.mark.cases(2)
async def test_a_full_disk_gets_one_line_and_loses_nothing(
    database: Database,
    replica_set_uri: str,
    tmp_path: Path,
    file_format: str,
    most_bytes: int,
) -> None:
    """Files cannot grow at first. With room again, the same command completes the work."""
    chance = Random(7)
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    await CreditLedger(database, PRICES).ensure_indexes()
    for number in range(3):
        noise = chance.randbytes(200).hex()
        await insert_chain(database, f"user-{number}", 600, moment, metadata={"noise": noise})
    for row in await rows(database, "transactions"):
        if row["seq"] % 3 == 0:
            noise = chance.randbytes(60).hex()
            change = {"$set": {"metadata.noise": noise}}
            await database["transactions"].update_one({"_id": row["_id"]}, change)
    before = await kept(database)
    arguments = ("--older-than", "1d", "--to", str(tmp_path), "--format", file_format)
    where: Where = {"uri": replica_set_uri, "database": database.name}
    code, output, errors = await run_command(*arguments, **where, most_bytes=most_bytes)
    assert (code, output) == (2, "")
    assert "File too large" in errors
    assert errors.count("\n") == 1
    assert (await verify(database, audits=False)).findings == ()
    assert await database["transactions"].count_documents({}) > 0
    code, output, errors = await run_command(*arguments, **where)
    assert (code, errors) == (0, "")
    assert await kept(database) == before
    assert await database["transactions"].count_documents({}) == 0
    assert (await verify(database, audits=False)).findings == ()

"""Exports: their content, their files, and that a failed one leaves nothing behind."""

from __future__ import annotations

import asyncio
import csv
import functools
import io
import json
import os
import re
import signal
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from bson import DBRef, Decimal128, Int64, ObjectId, json_util
from pymongo import AsyncMongoClient

from credit_mongo import (
    CreditConfig,
    CreditLedger,
    InvalidRequestError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.cli import main
from credit_mongo.maintenance.archive.borders import NO_BORDER
from credit_mongo.maintenance.export.exporting import Export, export_transactions
from credit_mongo.maintenance.export.files import whole_file
from credit_mongo.maintenance.export.formats import COLUMNS, FORMATS, Format
from credit_mongo.private_files import Directory
from credit_mongo.testing.clocks import MovableClock
from tests.integration.commands import (
    PROGRAM,
    ROOT,
    environment,
    run,
    run_on_terminal,
    run_program,
    where,
)
from tests.integration.promises import Client, Database, Row, failing, rows, with_options

UTC = timezone.utc
DAY = timedelta(days=1)
OF_LOTS: Final = frozenset({"legs", "uncollected", "written_at"})
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)


def transaction(user_id: str, seq: int, created_at: datetime, **fields: Any) -> Row:
    """Return a row as the ledger stores it."""
    return {
        "_id": ObjectId(),
        "userId": user_id,
        "seq": Int64(seq),
        "operation": "charge",
        "action": "post",
        "amount": Int64(-1),
        "balanceBefore": Int64(1000 - seq),
        "balanceAfter": Int64(999 - seq),
        "metadata": None,
        "idempotencyKey": None,
        "createdAt": created_at,
        **fields,
    }


async def fill(database: Database, users: int = 3, days: int = 10) -> list[Row]:
    """Insert a transaction a day for each user. Those of the first four days are archived."""
    made = [
        transaction(f"user-{user}", day + 1, BEGIN + day * DAY)
        for user in range(users)
        for day in range(days)
    ]
    await database["users"].insert_many(
        [{"_id": f"user-{user}", "credits": Int64(0)} for user in range(users)]
    )
    for name, part in (
        ("transactions", [row for row in made if row["seq"] > 4]),
        ("transactions_archive", [row for row in made if row["seq"] <= 4]),
    ):
        await database[name].insert_many(part)
    return made


def in_order(made: list[Row]) -> list[str]:
    """Return the ids by user, newest first."""
    ordered = sorted(made, key=lambda row: -row["seq"])
    return [str(row["_id"]) for row in sorted(ordered, key=lambda row: str(row["userId"]))]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as programs do."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


async def ids_of(database: Database, path: Path, **options: Any) -> list[str]:
    """Return the ids in an export."""
    done = await export_transactions(database, path, format="csv", overwrite=True, **options)
    ids = [row["transaction_id"] for row in read_csv(path)]
    assert done == Export(len(ids), has_files=False)
    return ids


# --- Content --------------------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
async def test_all_transactions_are_exported_by_user_newest_first(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Archived rows stand in their place, if they are wanted."""
    made = await fill(database)
    path = tmp_path / "all.csv"
    assert await ids_of(database, path) == in_order([r for r in made if r["seq"] > 4])
    assert await ids_of(database, path, include_archived=True) == in_order(made)


@pytest.mark.parametrize(
    ("start", "end", "seqs"),
    [
        (None, None, range(1, 11)),
        (BEGIN + 2 * DAY, None, range(3, 11)),
        (None, BEGIN + 6 * DAY, range(1, 7)),
        (BEGIN + 2 * DAY, BEGIN + 6 * DAY, range(3, 7)),
        (BEGIN + 99 * DAY, None, ()),
    ],
)
@pytest.mark.parametrize("user_id", [None, "user-1"])
async def test_a_period_begins_at_its_start_and_ends_before_its_end(
    ledger: CreditLedger,
    database: Database,
    tmp_path: Path,
    *,
    start: datetime | None,
    end: datetime | None,
    seqs: Any,
    user_id: str | None,
) -> None:
    """This holds for one user and for all. A period without transactions gives an empty export."""
    made = await fill(database)
    wanted = [r for r in made if r["seq"] in seqs and user_id in (None, r["userId"])]
    options = {"user_id": user_id, "start": start, "end": end, "include_archived": True}
    assert await ids_of(database, tmp_path / "some.csv", **options) == in_order(wanted)


ODD_METADATA: Final[Row] = {
    "text": 'a "quoted", ünïcode\nline',
    "id": ObjectId("65a000000000000000000000"),
    "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "price": Decimal128("1.10"),
    "bytes": b"\x00\x01",
    "none": None,
    "nested": [{"a": 1}, True, 1.5],
    "big": Int64(2**60),
    "reference": DBRef("users", 1),
}
TRICKY: Final = ("=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1", "plain", "a=b", " =1", "")


async def every_format(database: Database, directory: Path, **options: Any) -> dict[Format, Any]:
    """Return an export's rows in each format, as programs read them."""
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    found: dict[Format, Any] = {}
    for kind in FORMATS:
        path = directory / f"export.{kind}"
        await export_transactions(database, path, format=kind, overwrite=True, **options)
        if kind == "csv":
            found[kind] = read_csv(path)
        elif kind == "jsonl":
            found[kind] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        else:
            found[kind] = pyarrow_parquet.read_table(path).to_pylist()
    return found


async def test_each_format_has_the_same_content(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Each row has the transaction's facts, with the metadata as JSON."""
    await ledger.create_user("ada", credits=100, metadata=ODD_METADATA, idempotency_key="k")
    charge = await ledger.charge("ada", "translate")
    await ledger.refund("ada", 2, action="sorry", transaction_id=charge.transaction_id)
    history = list(await ledger.get_history("ada"))
    found = await every_format(database, tmp_path)
    for kind, exported in found.items():
        assert len(exported) == len(history) == 3
        for row, expected in zip(exported, history, strict=True):
            assert list(row) == list(COLUMNS)
            for name in COLUMNS.keys() - {"metadata", "created_at", *OF_LOTS}:
                value = getattr(expected, name)
                if kind == "csv":
                    value = "" if value is None else str(value)
                assert row[name] == value, (kind, name)
            moment = row["created_at"]
            moment = moment if kind == "parquet" else datetime.fromisoformat(moment[:-1] + "+00:00")
            assert moment == expected.created_at
        metadata = exported[-1]["metadata"]
        text = json.dumps(metadata) if kind == "jsonl" else metadata
        options = json_util.JSONOptions(tz_aware=True, tzinfo=UTC)
        read = json_util.loads(text, json_options=options)
        assert read == ODD_METADATA
        assert exported[0]["metadata"] in (None, "")


async def test_each_format_has_lots_holds_and_what_was_due_earlier(
    database: Database, tmp_path: Path
) -> None:
    """Legs are JSON. Rows without lots have nothing in these columns."""
    clock = MovableClock()
    clock.advance(-3 * DAY)
    async with CreditLedger(database, CreditConfig(costs={}), clock=clock) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ada", credits=10)
        end = clock() + DAY
        gift = await ledger.grant("ada", 100, action="gift", expires_at=end, source="spring")
        hold = await ledger.place_hold("ada", "job", amount=30)
        await ledger.capture_hold(hold.hold_id, amount=200)
        await ledger.grant("ada", 50, action="gift", expires_at=end)
        await ledger.revoke(gift.transaction_id, 5, action="chargeback")
        clock.advance(2 * DAY)
        await ledger.grant("ada", 1, action="gift")
        history = list(await ledger.get_history("ada"))
    found = await every_format(database, tmp_path)
    for kind, exported in found.items():
        nothing = "" if kind == "csv" else None
        by_id = {row["transaction_id"]: row for row in exported}
        assert by_id.keys() == {row.transaction_id for row in history}
        for row in history:
            written = by_id[row.transaction_id]
            legs = written["legs"] or []
            legs = json.loads(legs) if isinstance(legs, str) else legs
            amounts = [leg["amount"] for leg in legs]
            assert amounts == [leg.amount for leg in row.legs]
            assert (written["hold_id"], written["revoke_of"]) == (
                row.hold_id or nothing,
                row.revoke_of or nothing,
            )
            assert int(written["uncollected"] or 0) == row.uncollected
            assert bool(written["written_at"]) is (row.written_at is not None)
        assert any(row["uncollected"] not in (None, "", 0, "0") for row in exported)
        assert any(row["written_at"] for row in exported)


async def test_numbers_that_json_cannot_write_stay_distinct(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """NaN and infinity are written as in Extended JSON, and every line is JSON."""
    await ledger.create_user("ada", metadata={"a": float("nan"), "b": [float("-inf")]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    await every_format(database, tmp_path)
    [line] = (tmp_path / "export.jsonl").read_text().splitlines()
    [row] = read_csv(tmp_path / "export.csv")
    for metadata in (
        json.loads(line, parse_constant=refuse)["metadata"],
        json.loads(row["metadata"], parse_constant=refuse),
    ):
        assert metadata == {"a": {"$numberDouble": "NaN"}, "b": [{"$numberDouble": "-Infinity"}]}


async def test_a_spreadsheet_runs_no_formula_of_an_export(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Text that looks like a formula gets an apostrophe.

    Numbers don't, nor does a verbatim export.
    """
    await database["transactions"].insert_many(
        [
            transaction(f"u{number}{text}", 1, BEGIN, action=text, idempotencyKey=text)
            for number, text in enumerate(TRICKY)
        ]
        + [transaction("=cmd|'/C calc'!A0", 2, BEGIN, operation="=x")]
    )
    path = tmp_path / "all.csv"
    await export_transactions(database, path, format="csv")
    exported = read_csv(path)
    begins = {cell[:1] for row in exported for name, cell in row.items() if name != "amount"}
    assert not begins & set("=+-@\uff1d")
    assert {row["amount"] for row in exported} == {"-1"}
    assert [row["action"].removeprefix("'") for row in exported[1:]] == list(TRICKY)
    assert exported[0]["user_id"] == "'=cmd|'/C calc'!A0"
    await export_transactions(database, path, format="csv", overwrite=True, guard_cells=False)
    assert [row["action"] for row in read_csv(path)[1:]] == list(TRICKY)
    exported = (await every_format(database, tmp_path))["jsonl"]
    assert [row["action"] for row in exported[1:]] == list(TRICKY)


async def test_a_spreadsheet_with_other_separators_runs_no_formula_either(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Where cells end at a semicolon, the text after one starts a cell. JSON keeps its value."""
    note = {"note": "a;=1+1;-2;@x;\uff1d3"}
    await database["transactions"].insert_one(
        transaction("eve;=1+1", 1, BEGIN, action="x;+1\n=2;b=3", metadata=note)
    )
    path = tmp_path / "all.csv"
    await export_transactions(database, path, format="csv")
    [row] = read_csv(path)
    assert (row["user_id"], row["action"]) == ("eve;'=1+1", "x;'+1\n'=2;b=3")
    assert json.loads(row["metadata"]) == note
    assert not re.search("[;\n][=+@\uff1d-]", path.read_text("utf-8"))
    await export_transactions(database, path, format="csv", overwrite=True, guard_cells=False)
    assert read_csv(path)[0]["user_id"] == "eve;=1+1"


async def test_an_export_controls_no_terminal(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """A terminal gets JSON escapes. A pipe gets what is stored."""
    name = "eve\x9b\x7f\u202e\u200f\u061c\u2028"
    await database["transactions"].insert_one(transaction(name, 1, BEGIN, metadata={"a": name}))
    here = where(replica_set_uri, database)
    for kind in ("csv", "jsonl"):
        code, shown = await run_on_terminal("export", *here, "--format", kind)
        assert code == 0
        assert r"eve\u009b\u007f\u202e\u200f\u061c\u2028" in shown
        assert not set(name[3:]) & set(shown)
    _, piped, _ = await run_program("export", *here, "--format", "jsonl")
    assert json.loads(piped)["user_id"] == name


async def test_amounts_are_also_in_credits_if_these_have_decimal_places(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Credits stand beside the units in each format, except for amounts that are not integers."""
    await database["transactions"].insert_many(
        [
            transaction("ada", 2, BEGIN, amount=Int64(-123456), balanceBefore=1, balanceAfter=-5),
            transaction("ada", 1, BEGIN, amount="x"),
        ]
    )
    found = await every_format(database, tmp_path, decimal_places=2)
    for kind, (row, odd) in found.items():
        names = list(row)
        assert len(names) == len(COLUMNS) + 4
        amounts = [row[names[names.index(name) + 1]] for name in ("amount", "balance_after")]
        assert [str(amount) for amount in amounts] == ["-1234.56", "-0.05"], kind
        assert odd["amount_credits"] in (None, "")
        assert int(row["amount"]) == -123456


async def test_a_byte_order_mark_can_start_csv_alone(
    ledger: CreditLedger, replica_set_uri: str, database: Database, tmp_path: Path
) -> None:
    """With the mark, Excel recognises UTF-8."""
    path = tmp_path / "all.csv"
    here = where(replica_set_uri, database)
    code, _, errors = await run("export", *here, "--bom", "--output", str(path))
    assert (code, errors) == (0, "")
    assert path.read_bytes().startswith(b"\xef\xbb\xbftransaction_id,")
    code, _, errors = await run_program("export", *here, "--bom", "--format", "jsonl")
    assert (code, errors) == (2, "error: --bom: is for CSV alone\n")


async def test_rows_of_a_credit_sdk_are_exported_with_the_librarys(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """They have no seq or operation, another form of id, and share moments with other rows."""
    row: Row = {"userId": "ada", "action": "post", "amount": -1, "createdAt": BEGIN}
    sdk = [{**row, "_id": f"sdk-{number}"} for number in range(5)]
    await database["transactions"].insert_many(
        [*sdk, {"_id": 7, "userId": "ada"}, {**row, "_id": 8, "amount": "?", "createdAt": "?"}]
    )
    found = await every_format(database, tmp_path)
    for exported in found.values():
        ids = [each["transaction_id"] for each in exported]
        assert sorted(ids) == sorted([*(f"sdk-{number}" for number in range(5)), "7", "8"])


def record_progress(told: list[int], done: int, _: int | None) -> None:
    """Record the progress."""
    told.append(done)


async def test_a_large_export_is_read_in_batches(
    ledger: CreditLedger, database: Database, client: Client, replica_set_uri: str, tmp_path: Path
) -> None:
    """If its snapshot or its server is lost, it continues right after the last row."""
    made = [
        transaction(f"user-{user}", seq, BEGIN + seq // 5 * DAY)
        for user in range(3)
        for seq in range(1, 4000)
    ]
    await database["transactions"].insert_many([r for r in made if r["seq"] > 1500])
    await database["transactions_archive"].insert_many([r for r in made if r["seq"] <= 1500])
    expected = in_order(made)
    path = tmp_path / "all.csv"
    assert await ids_of(database, path, include_archived=True) == expected
    uri = with_options(replica_set_uri, appname="unlucky")
    gone: tuple[Row, ...] = ({"errorCode": 239}, {"errorCode": 246}, {"closeConnection": True})
    async with AsyncMongoClient[Row](uri, tz_aware=True) as unlucky:
        for number, failure in enumerate(gone):
            mode = {"times": number + 1}
            data = {"failCommands": ["getMore"], **failure}
            told: list[int] = []
            async with failing(client, "unlucky", mode, **data) as failed:
                await export_transactions(
                    unlucky[database.name],
                    path,
                    format="csv",
                    include_archived=True,
                    overwrite=True,
                    on_progress=functools.partial(record_progress, told),
                )
            assert failed.hits == number + 1
            assert [row["transaction_id"] for row in read_csv(path)] == expected
            assert told == sorted(set(told))
            assert told[-1] == len(expected)


async def test_rows_archived_during_the_export_appear_once(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Rows written meanwhile disturb nothing."""
    made = [
        transaction(f"user-{user}", seq, BEGIN + seq * DAY)
        for user in range(4)
        for seq in range(1, 3000)
    ]
    await database["transactions"].insert_many(made)
    stopped = asyncio.Event()

    async def move() -> None:
        oldest = sorted(made, key=lambda row: int(row["seq"]))
        for begin in range(0, len(oldest), 500):
            part = oldest[begin : begin + 500]
            async with database.client.start_session() as session:
                await session.start_transaction()
                await database["transactions_archive"].insert_many(part, session=session)
                ids = {"_id": {"$in": [row["_id"] for row in part]}}
                await database["transactions"].delete_many(ids, session=session)
                await session.commit_transaction()
            if stopped.is_set():
                return

    moving = asyncio.create_task(move())
    path = tmp_path / "all.csv"
    for _ in range(4):
        assert await ids_of(database, path, include_archived=True) == in_order(made)
    stopped.set()
    await moving


async def test_a_warning_says_that_rows_in_archive_files_are_missing(
    ledger: CreditLedger, replica_set_uri: str, database: Database, tmp_path: Path
) -> None:
    """The warning concerns only the users that were asked for."""
    made = await fill(database)
    border = NO_BORDER.moved_to("files", [made[0]], [])
    await database["archive_borders"].insert_one({**border.to_row(), "_id": "user-0"})
    path = tmp_path / "all.csv"
    for user_id, has_files in ((None, True), ("user-0", True), ("user-1", False)):
        done = await export_transactions(
            database, path, format="csv", user_id=user_id, overwrite=True
        )
        assert done.has_files is has_files
    here = (*where(replica_set_uri, database), "--output", str(path), "--force")
    code, _, errors = await run("export", *here)
    assert code == 0
    assert "archived to files are not included" in errors
    code, _, errors = await run("export", *here, "--user", "user-1")
    assert (code, errors) == (0, "")


# --- Files ----------------------------------------------------------------------------------------


async def test_a_file_is_readable_only_by_its_owner_and_not_overwritten(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Overwriting needs its option. No other file is left in the directory."""
    await fill(database)
    path = tmp_path / "all.csv"
    await export_transactions(database, path, format="csv")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        await export_transactions(database, path, format="csv")
    assert path.read_text() == "mine"
    await export_transactions(database, path, format="csv", overwrite=True)
    assert len(read_csv(path)) == 18
    assert names_in(tmp_path) == [path.name]


async def test_a_file_created_meanwhile_stays(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """The export does not overwrite another program's new file."""
    await fill(database)
    path = tmp_path / "all.csv"

    def write(_: int, __: int | None) -> None:
        path.write_text("theirs")

    with pytest.raises(FileExistsError):
        await export_transactions(database, path, format="csv", on_progress=write)
    assert path.read_text() == "theirs"
    assert names_in(tmp_path) == [path.name]


async def test_a_link_to_a_file_is_followed_and_other_targets_are_refused(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """Otherwise a device or a pipe would be replaced by a file."""
    await fill(database)
    target, link, pipe = tmp_path / "target.csv", tmp_path / "link.csv", tmp_path / "pipe.csv"
    target.write_text("old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    await export_transactions(database, link, format="csv", overwrite=True)
    assert link.is_symlink()
    assert len(read_csv(target)) == 18
    for wrong in (pipe, tmp_path):
        with pytest.raises(OSError, match="exists but is not a file"):
            await export_transactions(database, wrong, format="csv", overwrite=True)
    assert pipe.is_fifo()


@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_link_to_nothing_is_not_followed(
    ledger: CreditLedger, database: Database, tmp_path: Path, *, overwrite: bool
) -> None:
    """Otherwise a file would appear wherever the link leads, where a login might run it."""
    await fill(database)
    link, first = tmp_path / "all.csv", tmp_path / "first.csv"
    first.symlink_to(tmp_path / "absent")
    link.symlink_to(first)
    with pytest.raises(OSError, match="is a link to nothing") as told:
        await export_transactions(database, link, format="csv", overwrite=overwrite)
    assert told.value.filename == str(link)
    assert sorted(names_in(tmp_path)) == ["all.csv", "first.csv"]


def test_a_link_of_another_user_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force, the export would overwrite the file that the link leads to."""
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("mine")
    link.symlink_to(target)
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    with (
        pytest.raises(OSError, match="another user's link"),
        whole_file(link, overwrite=True),
    ):
        raise AssertionError("it was opened")
    assert target.read_text() == "mine"


async def test_the_next_export_removes_the_file_of_a_killed_one(tmp_path: Path) -> None:
    """Files of a running export stay, and so do files with similar names."""
    program = (
        "import os, pathlib, signal, sys\n"
        "from credit_mongo.maintenance.export.files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1]), overwrite=False) as write:\n"
        "    write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "all.csv"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))
    assert await process.wait() == -signal.SIGKILL
    [left] = names_in(tmp_path)
    others = {".export-victim.part", ".export-12345678.part", "all.csv.part"}
    (tmp_path / "all.csv.part").touch()
    (tmp_path / ".export-victim.part").touch()
    (tmp_path / ".export-12345678.part").symlink_to(tmp_path / "all.csv.part")
    with whole_file(tmp_path / "first.csv", overwrite=False) as write:
        [own] = set(names_in(tmp_path)) - others
        assert own != left
        with whole_file(path, overwrite=False) as write_too:
            assert own in names_in(tmp_path)
            write_too(b"whole")
        write(b"first")
    assert set(names_in(tmp_path)) == {*others, "all.csv", "first.csv"}
    assert (path.read_bytes(), (tmp_path / "first.csv").read_bytes()) == (b"whole", b"first")


def test_a_file_replaced_while_it_was_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that others may write to, the name may lead to their file."""
    rename = Directory.rename

    def rename_and_replace(directory: Directory, old: str, new: str) -> None:
        rename(directory, old, new)
        (tmp_path / new).unlink()
        (tmp_path / new).write_text("theirs")

    monkeypatch.setattr(Directory, "rename", rename_and_replace)
    with (
        pytest.raises(OSError, match="was replaced by somebody else"),
        whole_file(tmp_path / "all.csv", overwrite=True) as write,
    ):
        write(b"ours")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.cases(1)
async def test_a_full_disk_leaves_nothing_half_written(
    ledger: CreditLedger, replica_set_uri: str, database: Database, tmp_path: Path, kind: Format
) -> None:
    """An existing file is not touched. The error is one line, with exit code 2."""
    await database["transactions"].insert_many(
        [transaction("ada", seq, BEGIN, metadata={"n": str(ObjectId())}) for seq in range(20_000)]
    )
    path = tmp_path / f"all.{kind}"
    path.write_text("before")
    limits = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    program = (PROGRAM[0], limits + PROGRAM[1])
    here = (*where(replica_set_uri, database), "--output", str(path), "--force")
    code, output, errors = await run_program("export", *here, program=program)
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith("error: ")
    assert "File too large" in errors
    assert str(path) in errors
    assert path.read_text() == "before"
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.cases(1)
async def test_a_full_standard_output_gets_a_one_line_error(
    ledger: CreditLedger, replica_set_uri: str, database: Database, kind: Format
) -> None:
    """The disk is full. No traceback follows when Python ends."""
    await fill(database)
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *PROGRAM, "export", *where(replica_set_uri, database)),
        *("--format", kind),
        cwd=ROOT,
        env=environment(),
        stdout=full,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(full)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode().startswith("error: ")
    assert b"No space left" in errors
    assert errors.count(b"\n") == 1


async def test_standard_output_gets_only_the_export(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """The format is CSV unless another is requested. The script does the same."""
    made = await fill(database)
    here = where(replica_set_uri, database)
    code, output, errors = await run_program("export", *here, "--include-archived")
    assert (code, errors) == (0, "")
    exported = list(csv.DictReader(io.StringIO(output)))
    assert [row["transaction_id"] for row in exported] == in_order(made)
    script = ("scripts/export.py",)
    period = ("--from", "2026-01-06", "--to", "2026-01-07T00:00:00.001Z", "--user", "user-2")
    code, output, errors = await run_program(*here, *period, "--format", "jsonl", program=script)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["seq"] for line in output.splitlines()] == [7, 6]


async def test_the_command_reports_how_many_rows_a_file_got(
    ledger: CreditLedger, replica_set_uri: str, database: Database, tmp_path: Path
) -> None:
    """The file's name decides the format."""
    await fill(database)
    here = where(replica_set_uri, database)
    path = tmp_path / "all.jsonl"
    code, output, errors = await run("export", *here, "--output", str(path))
    assert (code, errors) == (0, "")
    assert output == f"{database.name}: 18 transactions exported to {path}\n"
    assert len(path.read_text().splitlines()) == 18
    code, output, errors = await run("export", *here, "--output", str(path), "--force", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output) == {
        "database": database.name,
        "output": str(path),
        "transactions": 18,
        "has_files": False,
    }


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--user", "nil"), "there is no user 'nil'"),
        (("--user", ""), "--user: must have 1"),
        (("--from", "yesterday"), "--from: must be a date"),
        (("--to", "2026-02-30"), "--to: must be a date"),
        (("--from", "2026-02-01", "--to", "2026-01-01"), "--to: must be later than the start"),
        (("--from", "2026-02-01", "--to", "2026-02-01"), "--to: must be later than the start"),
        (("--from", "0001-01-01T00:00:00+14:00"), "--from: is out of range"),
        (("--format", "xls"), "csv, jsonl, parquet"),
        (("--output", "all.xls"), "give --format"),
        (("--output", "there.csv"), "--force overwrites it"),
        (("--output", "missing/all.csv"), "No such file or directory"),
        (("--output", "there.csv/all.csv"), "Not a directory"),
        (("--output", f"{'x' * 300}.csv"), "File name too long"),
        (("--output", "/proc/all.csv"), "/proc/all.csv"),
        (("--output", "directory.csv", "--force"), "exists but is not a file"),
        (("--json",), "--json needs --output"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
@pytest.mark.cases(6)
async def test_errors_take_one_line(
    ledger: CreditLedger,
    replica_set_uri: str,
    database: Database,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    *,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    """Exit code 2, and nothing is written anywhere."""
    await fill(database)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "directory.csv").mkdir()
    before = names_in(tmp_path)
    given = [
        str(tmp_path / value) if option == "--output" else value
        for option, value in zip(("", *arguments), arguments, strict=False)
    ]
    here = where(replica_set_uri, database)
    assert await asyncio.to_thread(main, ["export", *here, *given]) == 2
    output, errors = capfd.readouterr()
    assert (output, errors.count("\n")) == ("", 1), errors
    assert errors.startswith("error: ")
    assert told in errors
    assert names_in(tmp_path) == before
    assert (tmp_path / "there.csv").read_text() == "mine"


async def test_bad_values_are_refused_by_name(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """The refusal comes before there is a file."""
    path = tmp_path / "all.csv"
    good: Row = {"format": "csv"}
    bad: list[tuple[str, Any]] = [
        *(("user_id", value) for value in (7, b"x", {"$gt": ""}, "a\x00b", "x" * 256)),
        *(("start", value) for value in ("2026-01-01", 7, datetime(2026, 1, 1))),  # noqa: DTZ001
        *(("end", value) for value in ("2026-01-01", {"$gt": 1})),
        *(("include_archived", value) for value in (1, "yes")),
        *(("format", value) for value in ("xls", None, 1)),
    ]
    for name, value in bad:
        with pytest.raises(InvalidRequestError) as caught:
            await export_transactions(database, path, **{**good, name: value})
        assert caught.value.field == name
        assert names_in(tmp_path) == []
    with pytest.raises(UserNotFoundError):
        await export_transactions(database, path, format="csv", user_id="nil")
    assert names_in(tmp_path) == []


async def test_a_user_with_rows_but_no_account_can_be_exported(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """The history may be all that is left of the user, even in the archive."""
    made = await fill(database, users=1)
    await database["users"].delete_many({})
    await database["transactions"].delete_many({})
    path = tmp_path / "all.csv"
    assert await ids_of(database, path, user_id="user-0") == []
    ids = await ids_of(database, path, user_id="user-0", include_archived=True)
    assert ids == in_order([row for row in made if row["seq"] <= 4])


async def test_without_the_ledger_s_indexes_it_says_what_to_do(
    database: Database, tmp_path: Path
) -> None:
    """Sorting everything would burden a server in use."""
    await database["transactions"].insert_one(transaction("ada", 1, BEGIN))
    with pytest.raises(StorageError, match="credit-mongo init"):
        await export_transactions(database, tmp_path / "all.csv", format="csv")
    assert names_in(tmp_path) == []


async def test_without_pyarrow_it_says_what_to_install(
    ledger: CreditLedger, replica_set_uri: str, database: Database, tmp_path: Path
) -> None:
    """The other formats don't need the extra."""
    program = (PROGRAM[0], f"import sys; sys.modules['pyarrow'] = None; {PROGRAM[1]}")
    path = tmp_path / "all.parquet"
    here = (*where(replica_set_uri, database), "--output", str(path))
    code, output, errors = await run_program("export", *here, program=program)
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert "pip install 'credit-mongo[parquet]'" in errors
    assert names_in(tmp_path) == []
    code, output, errors = await run_program("export", *here, "--format", "csv", program=program)
    assert (code, errors) == (0, "")


async def test_nothing_is_written_to_the_database(
    ledger: CreditLedger, database: Database, tmp_path: Path
) -> None:
    """An export only reads."""
    await fill(database)
    names = sorted(await database.list_collection_names())
    before = [await rows(database, name) for name in names]
    await every_format(database, tmp_path, include_archived=True)
    assert sorted(await database.list_collection_names()) == names
    assert [await rows(database, name) for name in names] == before

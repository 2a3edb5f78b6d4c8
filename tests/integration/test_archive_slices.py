"""Slices: the archive takes the oldest rows of all users first."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from bson import Int64, ObjectId
from bson.datetime_ms import DatetimeMS

from credit_mongo import CreditLedger
from credit_mongo.maintenance.archive import archiving
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.archive.slices import Slice, slices_of
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.archives import (
    PLACES,
    PRICES,
    check_whole,
    insert_chain,
    kept,
    make_small_slices,
    open_books,
    options,
)
from tests.integration.promises import Client, Database, Row, failing, rows, with_options

UTC = timezone.utc
BEGIN: Final = datetime(2020, 1, 1, tzinfo=UTC)
END: Final = datetime(2021, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make slices of a few rows."""
    make_small_slices(monkeypatch.setattr)


class StoppedError(Exception):
    """Raised by a test to stop a run."""


@pytest.mark.parametrize("kinds", ["transactions", "audit_logs"])
async def test_the_oldest_of_all_users_go_first(database: Database, kinds: str) -> None:
    """When a slice is done, no row older than those moved is left."""
    books = await open_books(database)
    there = len(await rows(database, kinds))
    moved: list[int] = []

    async def look() -> None:
        gone = [row["createdAt"] for row in await rows(database, f"{kinds}_archive")]
        left = [row["createdAt"] for row in await rows(database, kinds)]
        assert not gone or max(gone) <= min(left)
        assert len(gone) + len(left) == there
        moved.append(len(gone))

    while len(set(moved)) == len(moved):
        calls: list[int] = []

        def stop(done: int, _total: int | None, calls: list[int] = calls) -> None:
            calls.append(done)
            raise StoppedError

        facts: Row = {"older_than": books.cut_off, "kinds": kinds, "on_progress": stop}
        try:
            await archive(database, **facts)
        except StoppedError:
            assert len(calls) == 1
        await look()
    assert len(moved) > 4
    assert not await database[kinds].count_documents({"createdAt": {"$lt": books.cut_off}})
    assert (await verify(database)).findings == ()


@pytest.mark.parametrize("place", PLACES)
async def test_no_row_is_lost_or_doubled(database: Database, tmp_path: Path, place: str) -> None:
    """Each row exists once, whatever the storage."""
    books = await open_books(database)
    before = await kept(database)
    done = await archive(database, **options(place, tmp_path, books.cut_off))
    assert done.users_left == 0
    assert done.transactions > 20
    await check_whole(database, before, None if place == "collections" else tmp_path)


@pytest.mark.parametrize("place", PLACES)
async def test_users_left_alone_are_named_once(
    database: Database, tmp_path: Path, place: str
) -> None:
    """One message names them, however many slices pass. Their audit rows wait for them."""
    books = await open_books(database)
    third = {"userId": "user-2", "seq": 3}
    await database["transactions"].update_one(third, {"$set": {"balanceBefore": 5}})
    await database["transactions"].update_many({"userId": "user-3"}, {"$unset": {"seq": ""}})
    done = await archive(database, **options(place, tmp_path, books.cut_off))
    assert sorted(done.left) == [
        ("user-2", "does not go on from the balance before"),
        ("user-3", "has no seq"),
    ]
    assert (done.users_left, done.users_broken) == (2, 1)
    left = {(row["userId"], row.get("seq")) for row in await rows(database, "transactions")}
    assert ("user-2", 3) in left
    assert ("user-2", 2) not in left
    if place != "collections":
        ids = {row["_id"] for row in await rows(database, "transactions")}
        audits = {row["_id"] for row in await rows(database, "audit_logs")}
        assert ids <= audits


# --- A user whose history breaks off --------------------------------------------------------------


async def before_the_ledger(database: Database) -> None:
    """Another program's rows end at a balance of 0, from which the ledger's own rows start."""
    balances = [(0, 10), (10, 7), (7, 4), (4, 0)]
    await database["transactions"].insert_many(
        stray_row(BEGIN + timedelta(minutes=number), before, after)
        for number, (before, after) in enumerate(balances)
    )


async def a_clock_that_went_back(database: Database) -> None:
    """The ninth row is dated before the sixth."""
    ninth = {"userId": "ann", "seq": 9}
    moment = BEGIN + timedelta(minutes=55)
    await database["transactions"].update_one(ninth, {"$set": {"createdAt": moment}})


async def a_stray_row(database: Database) -> None:
    """A row that changes nothing stands between the eighth and the ninth."""
    await database["transactions"].insert_one(stray_row(BEGIN + timedelta(minutes=85), 16, 16))


def stray_row(moment: datetime, before: int, after: int) -> Row:
    """Insert a row without ``seq``."""
    return {
        "_id": ObjectId(),
        "userId": "ann",
        "action": "x",
        "amount": Int64(after - before),
        "balanceBefore": Int64(before),
        "balanceAfter": Int64(after),
        "createdAt": moment,
    }


async def history(ledger: CreditLedger, limit: int) -> list[str]:
    """Return the ids on all pages, including archived rows."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await ledger.get_history("ann", include_archived=True, limit=limit, cursor=cursor)
        found += [each.transaction_id for each in page]
        if (cursor := page.next_cursor) is None:
            return found


@pytest.mark.parametrize("rows_of_a_slice", [1, 4, 1000])
@pytest.mark.parametrize(
    "broken",
    [
        (before_the_ledger, 0, "has no seq"),
        (a_clock_that_went_back, 5, "does not follow the one before"),
        (a_stray_row, 8, "has no seq"),
    ],
)
async def test_later_rows_of_a_user_left_alone_stay(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    rows_of_a_slice: int,
    broken: tuple[Any, int, str],
) -> None:
    """They stay even if rows of a later slice continue what is archived."""
    spoil, archived, reason = broken
    monkeypatch.setattr(archiving, "_ROWS_PER_SLICE", rows_of_a_slice)
    ledger = CreditLedger(database, PRICES)
    await ledger.ensure_indexes()
    await insert_chain(database, "ann", 12, BEGIN)
    for seq in range(1, 13):
        moment = BEGIN + timedelta(minutes=10 * seq)
        each = {"userId": "ann", "seq": seq}
        await database["transactions"].update_one(each, {"$set": {"createdAt": moment}})
    await spoil(database)
    pages = {limit: await history(ledger, limit) for limit in (1, 2, 3, 100)}
    findings = (await verify(database, audits=False)).findings
    done = await archive(database, older_than=END, kinds="transactions")
    assert done.left == (("ann", reason),)
    seqs = [row["seq"] for row in await rows(database, "transactions_archive")]
    assert sorted(seqs) == list(range(1, archived + 1))
    assert {limit: await history(ledger, limit) for limit in pages} == pages
    assert (await verify(database, audits=False)).findings == findings


# --- Where slices end -----------------------------------------------------------------------------


def failed(number: int, **fields: Any) -> Row:
    """Return an audit row of the day with this number."""
    moment = BEGIN + timedelta(minutes=number)
    return {"userId": f"user-{number % 3}", "status": "failed", "createdAt": moment, **fields}


def check_that_they_cover_all(slices: list[Slice], cut_off: datetime) -> None:
    """Check that each slice starts where the last one ended, and that the last takes the rest."""
    *parts, whole = slices
    assert whole == Slice(None, cut_off)
    for before, after in pairwise(parts):
        assert before.begin is not None
        assert before.begin < before.end
        assert before.end == after.begin
    assert all(each.end < cut_off for each in parts)
    assert not parts or parts[0].begin == datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize("name", ["_id_", "by_id", None])
async def test_slices_have_about_as_many_rows_each(database: Database, name: str | None) -> None:
    """This holds for any type of id, for rows without dates, and for any kind of collection."""
    clustered: Any = {"clusteredIndex": {"key": {"_id": 1}, "unique": True, "name": name}}
    await database.create_collection("audit_logs", **(clustered if name else {}))
    audits = database["audit_logs"]
    ids: list[Any] = [ObjectId, lambda: f"{ObjectId()}", lambda: ObjectId().binary]
    odd: list[Any] = [DatetimeMS(2**55), DatetimeMS(-(2**55)), "yesterday", None]
    await audits.insert_many(
        [
            failed(number, _id=ids[number % len(ids)]())
            if number % 10
            else failed(number, createdAt=odd[number // 10 % len(odd)])
            for number in range(20_000)
        ]
    )
    cut_off = BEGIN + timedelta(minutes=15_000)
    slices = await slices_of(LedgerDatabase.of(database)["audit_logs"], cut_off, 1000)
    check_that_they_cover_all(slices, cut_off)
    assert 8 <= len(slices) - 1 <= 22  # 13.5 on average.
    sizes = [await audits.count_documents({"createdAt": each.moments}) for each in slices[:-1]]
    assert min(sizes) > 0
    assert max(sizes) < 4000


@pytest.mark.parametrize("count", [0, 1, 7, 8])
async def test_few_rows_make_one_slice(database: Database, count: int) -> None:
    """A slice takes up to nearly twice its size."""
    if count:
        await database["audit_logs"].insert_many([failed(number) for number in range(count)])
    slices = await slices_of(LedgerDatabase.of(database)["audit_logs"], END, 4)
    assert (len(slices) > 1) is (count == 8)
    check_that_they_cover_all(slices, END)


async def test_rows_of_one_moment_share_a_slice(database: Database) -> None:
    """This holds however many there are."""
    moments = [BEGIN + timedelta(days=number // 200) for number in range(400)]
    await database["audit_logs"].insert_many([failed(0, createdAt=each) for each in moments])
    slices = await slices_of(LedgerDatabase.of(database)["audit_logs"], END, 10)
    check_that_they_cover_all(slices, END)
    assert {each.end for each in slices[:-1]} == {BEGIN, BEGIN + timedelta(days=1)}


@pytest.mark.parametrize("command", ["count", "aggregate"])
async def test_without_a_sample_one_slice_takes_everything(
    database: Database, client: Client, replica_set_uri: str, command: str
) -> None:
    """Only speed depends on the sample."""
    await database["audit_logs"].insert_many([failed(number) for number in range(40)])
    uri = with_options(replica_set_uri, appName="sampling", retryReads="false")
    async with type(client)(uri, tz_aware=True) as sampling:
        audits = LedgerDatabase.of(sampling[database.name])["audit_logs"]
        async with failing(client, "sampling", failCommands=[command], errorCode=50) as failure:
            assert await slices_of(audits, END, 4) == [Slice(None, END)]
        assert failure.hits == 1
        assert len(await slices_of(audits, END, 4)) > 4


async def test_a_date_beyond_pythons_range_stops_nothing(database: Database) -> None:
    """Old rows are moved. The row with the odd date and the one without a date stay."""
    books = await open_books(database)
    odd: list[Any] = [DatetimeMS(2**55), None]
    await database["audit_logs"].insert_many([failed(0, createdAt=each) for each in odd])
    done = await archive(database, older_than=books.cut_off)
    assert done.transactions > 20
    assert not await database["audit_logs"].count_documents({"createdAt": {"$lt": books.cut_off}})
    assert await database["audit_logs"].count_documents({"createdAt": {"$in": odd}}) == len(odd)


async def test_lanes_count_together(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress reported is the sum over all lanes, and never goes back."""
    monkeypatch.setattr(archiving, "_ROWS_PER_SLICE", 100_000)
    ledger = CreditLedger(database, PRICES)
    await ledger.ensure_indexes()
    for number in range(12):
        await insert_chain(database, f"user-{number:02}", 700, BEGIN)
    told: list[tuple[int, int | None]] = []
    done = await archive(
        database,
        older_than=END,
        kinds="transactions",
        on_progress=lambda *facts: told.append(facts),
    )
    assert done.transactions == 12 * 700
    assert told == sorted(told)
    assert told[-1] == (12 * 700, 12 * 700)

"""The archive: which rows move, which users are left alone, and what still works."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bson import Int64, ObjectId

from credit_mongo import (
    CollectionNames,
    CreditLedger,
    InvalidRequestError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
)
from credit_mongo.config.configuration import SETTINGS_COLLECTION
from credit_mongo.maintenance.archive.archiving import (
    archive,
)
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.archives import (
    PLACES,
    PRICES,
    check_whole,
    dump,
    insert_chain,
    is_archived,
    kept,
    names_in,
    open_books,
    options,
)
from tests.integration.promises import (
    Client,
    Database,
    Row,
    rows,
)

UTC = timezone.utc


# --- Which rows move ------------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("place", PLACES)
async def test_old_rows_move_and_no_others(database: Database, tmp_path: Path, place: str) -> None:
    """Rows move byte for byte, counted and summed. A second run finds nothing more."""
    books = await open_books(database)
    before = await kept(database)
    old = {
        kind: {i: r for i, r in before[kind].items() if r["createdAt"] < books.cut_off}
        for kind in ("transactions", "audit_logs")
    }
    assert 0 < len(old["transactions"]) < len(before["transactions"])
    told: list[tuple[int, int | None]] = []
    done = await archive(
        database,
        **options(place, tmp_path, books.cut_off),
        on_progress=lambda *facts: told.append(facts),
    )
    assert (done.transactions, done.audit_logs) == (
        len(old["transactions"]),
        len(old["audit_logs"]),
    )
    assert done.amount == sum(row["amount"] for row in old["transactions"].values())
    assert (done.users_left, done.left, done.dry_run) == (0, (), False)
    total = done.transactions + done.audit_logs
    assert told[-1] == (total, total)
    for name, moved in old.items():
        live = await rows(database, name)
        assert {row["_id"]: row for row in live} == {
            i: row for i, row in before[name].items() if i not in moved
        }
    await check_whole(database, before, None if place == "collections" else tmp_path)
    assert len(done.files) == (0 if place == "collections" else 2)
    assert set(done.files) == names_in(tmp_path)
    again = await archive(database, **options(place, tmp_path, books.cut_off))
    assert (again.transactions, again.audit_logs, again.files) == (0, 0, ())
    await check_whole(database, before, None if place == "collections" else tmp_path)
    await books.ledger.charge("user-1", "post")
    assert (await verify(database)).findings == ()


async def test_a_dry_run_counts_and_writes_nothing(database: Database, tmp_path: Path) -> None:
    """It makes no directory either."""
    books = await open_books(database)
    before = await dump(database)
    for place in PLACES:
        directory = tmp_path / "new"
        done = await archive(database, **options(place, directory, books.cut_off), dry_run=True)
        assert done.dry_run
        assert not directory.exists()
        assert await dump(database) == before
        old = {"createdAt": {"$lt": books.cut_off}}
        assert done.transactions == await database["transactions"].count_documents(old)
        assert done.audit_logs == await database["audit_logs"].count_documents(old)


@pytest.mark.parametrize("place", ["collections", "bson"])
async def test_one_kind_can_be_archived_alone(
    database: Database, tmp_path: Path, place: str
) -> None:
    """Transactions go without their audit rows. Those go to files only after their transactions."""
    books = await open_books(database)
    before = await kept(database)
    facts = options(place, tmp_path, books.cut_off)
    done = await archive(database, **facts, kinds="audit_logs")
    assert done.transactions == 0
    await check_whole(database, before)
    # An audit log begins with the opening, whose transaction is still in place.
    assert bool(done.audit_logs) == (place == "collections")
    done = await archive(database, **facts, kinds="transactions")
    assert done.transactions
    await check_whole(database, before)
    await archive(database, **facts, kinds="audit_logs")
    await check_whole(database, before)
    assert await is_archived(database, books.cut_off)


async def test_renamed_collections_are_archived(database: Database) -> None:
    """The names come from the configuration."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    config = PRICES.model_copy(update={"collections": names})
    books = await open_books(database, config=config)
    done = await archive(database, older_than=books.cut_off, collections=names)
    assert done.transactions
    # The settings collection has a fixed name, because it records the others.
    found = {*await database.list_collection_names()} - {SETTINGS_COLLECTION}
    assert {name.removeprefix("our_") for name in found} <= set(CollectionNames.model_fields)
    assert (await verify(database, collections=names)).findings == ()
    page = await books.ledger.get_history("user-0", limit=100, include_archived=True)
    assert [row.seq for row in page] == list(range(15, 0, -1))


@pytest.mark.parametrize("full_speed", [False, True])
async def test_many_users_and_long_chains(database: Database, full_speed: bool) -> None:
    """One user has more rows than a batch holds, many have one, and some rows have 16 KB."""
    ledger = CreditLedger(database, PRICES)
    await ledger.ensure_indexes()
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(days=400)
    await insert_chain(database, "m", 3300, moment)
    for number in range(40):
        await insert_chain(database, f"{'az'[number % 2]}{number}", 1 + number % 3, moment)
    await insert_chain(database, "large", 400, moment, metadata={"text": "x" * 16_000})
    before = await kept(database)
    done = await archive(database, older_than="1y", full_speed=full_speed)
    assert done.transactions == len(before["transactions"])
    assert await kept(database) == before
    assert (await verify(database, audits=False)).findings == ()
    assert await database["transactions"].count_documents({}) == 0
    history = await ledger.get_history("m", limit=1000, offset=3000, include_archived=True)
    assert [row.seq for row in history] == list(range(300, 0, -1))


# --- Which users are left alone -------------------------------------------------------------------


async def test_rows_without_seq_stay_and_are_named(database: Database) -> None:
    """The Credit SDK's rows have no ``seq``."""
    books = await open_books(database)
    await database["transactions"].update_many({"userId": "user-2"}, {"$unset": {"seq": ""}})
    theirs = await rows(database, "transactions", userId="user-2")
    done = await archive(database, older_than=books.cut_off)
    assert done.left == (("user-2", "has no seq"),)
    assert (done.users_left, done.users_broken) == (1, 0)
    assert await rows(database, "transactions", userId="user-2") == theirs
    assert await rows(database, "archive_borders", _id="user-2") == []
    assert await database["transactions_archive"].count_documents({}) == done.transactions > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"amount": Int64(-4)}, "does not go on from the balance before"),
        ({"balanceBefore": Int64(5)}, "does not go on from the balance before"),
        ({"amount": -3.0}, "has a field of the wrong type"),
        ({"seq": Int64(9)}, "does not follow the one before"),
        ({"seq": None}, "has no seq"),
        (None, "does not follow the one before"),
    ],
)
async def test_rows_stay_from_the_first_break_in_the_chain_on(
    database: Database, change: Row | None, reason: str
) -> None:
    """Earlier rows move. Verification still finds the same in the rest."""
    books = await open_books(database)
    third = {"userId": "user-2", "seq": 3}
    if change is None:
        await database["transactions"].delete_one(third)
    else:
        await database["transactions"].update_one(third, {"$set": change})
    found = (await verify(database)).findings
    assert found
    done = await archive(database, older_than=books.cut_off)
    assert done.left == (("user-2", reason),)
    archived = await rows(database, "transactions_archive", userId="user-2")
    assert sorted(row["seq"] for row in archived) == [1, 2]
    assert {f.code for f in (await verify(database)).findings} == {f.code for f in found}
    again = await archive(database, older_than=books.cut_off)
    assert (again.transactions, again.left) == (0, done.left)


async def test_users_without_an_account_stay(database: Database) -> None:
    """Their accounts were removed by hand. An erased account leaves nothing behind."""
    books = await open_books(database)
    await database["users"].delete_one({"_id": "user-2"})
    done = await archive(database, older_than=books.cut_off)
    assert done.left == (("user-2", "has no account"),)
    assert await rows(database, "archive_borders", _id="user-2") == []
    erasure = await erase_user(database, "user-1", requested_by="ann")
    assert erasure.archived_transactions
    for name in await database.list_collection_names():
        assert "user-1" not in str(await rows(database, name)), name


# --- What still works -----------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
async def test_archived_charges_are_refunded_up_to_their_cap(database: Database) -> None:
    """Refunds count, whether they are archived or not."""
    books = await open_books(database)
    await archive(database, older_than=books.cut_off)
    ledger = books.ledger
    refunded, untouched = books.old_charges["user-0"][:2]
    assert await rows(database, "transactions_archive", _id=ObjectId(refunded))
    # Of three charges, one was refunded before the cut-off and one after it.
    with pytest.raises(RefundExceedsChargeError) as caught:
        await ledger.refund("user-0", 2, action="sorry", transaction_id=refunded)
    assert caught.value.refundable == 1
    await ledger.refund("user-0", 1, action="sorry", transaction_id=refunded)
    with pytest.raises(RefundExceedsChargeError):
        await ledger.refund("user-0", 1, action="sorry", transaction_id=refunded)
    results = await asyncio.gather(
        *(ledger.refund("user-0", 1, action="sorry", transaction_id=untouched) for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, RefundExceedsChargeError) for result in results) == 2
    with pytest.raises(TransactionNotFoundError):
        await ledger.refund("user-1", 1, action="sorry", transaction_id=untouched)
    assert (await verify(database)).findings == ()
    done = await archive(database, older_than=datetime.now(UTC))
    assert done.transactions
    with pytest.raises(RefundExceedsChargeError):
        await ledger.refund("user-0", 1, action="sorry", transaction_id=untouched)
    assert (await verify(database)).findings == ()


async def test_keys_of_archived_transactions_still_answer(
    database: Database, tmp_path: Path
) -> None:
    """The key's record has the result, wherever the transaction is."""
    books = await open_books(database)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    await archive(database, older_than=moments[3])
    await archive(database, **options("bson", tmp_path, books.cut_off))
    for number in (0, 3):
        result = await books.ledger.charge("user-1", "post", idempotency_key=f"user-1-{number}")
        assert result.replayed
    assert (await verify(database)).findings == ()


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_history_and_audit_log_continue_in_the_archive(
    database: Database, limit: int
) -> None:
    """Pages are the same as before, whatever was archived between two of them."""
    books = await open_books(database, users=2, charges=9)
    reads: tuple[Any, ...] = (books.ledger.get_history, books.ledger.get_audit_log)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    all_rows = [list(await read("user-0", limit=1000)) for read in reads]
    for read, before in zip(reads, all_rows, strict=True):
        for old in (2, 5, 8):
            found: list[Any] = []
            cursor = None
            while True:
                page = await read("user-0", limit=limit, cursor=cursor, include_archived=True)
                found += page
                cursor = page.next_cursor
                if cursor is None:
                    break
                await archive(database, older_than=moments[old])
            assert found == before
            for offset in (0, 1, 4, 7, len(before) - 1, len(before)):
                page = await read("user-0", limit=limit, offset=offset, include_archived=True)
                assert list(page) == before[offset : offset + limit]
        await archive(database, older_than=moments[5])
    [first, *_] = moments
    history = await books.ledger.get_history(
        "user-0", end_date=moments[1], include_archived=True, action="post"
    )
    assert [row.created_at for row in history] == []
    history = await books.ledger.get_history("user-0", end_date=moments[1], include_archived=True)
    assert [row.created_at for row in history] == [first]
    assert await books.ledger.get_history("user-0", end_date=moments[1]) != history


@pytest.mark.drivers("pymongo", "motor")
async def test_reads_of_the_archive_in_an_applications_transaction(
    database: Database, client: Client
) -> None:
    """Such reads see the transaction's snapshot."""
    books = await open_books(database)
    before = list(await books.ledger.get_history("user-0", limit=1000))
    # A snapshot lacks collections that were made after it.
    await archive(database, older_than="1y")
    async with client.start_session() as session:
        await session.start_transaction()
        await books.ledger.get_balance("user-0", session=session)
        await archive(database, older_than=books.cut_off)
        for flag in (False, True):
            page = await books.ledger.get_history(
                "user-0", limit=1000, include_archived=flag, session=session
            )
            assert list(page) == before
        await session.abort_transaction()


# --- Wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("older_than", None),
        ("older_than", "never"),
        ("older_than", datetime(2020, 1, 1)),  # noqa: DTZ001
        ("directory", 5),
        ("directory", "\x00"),
        ("directory", b"/tmp"),
        ("file_format", "csv"),
        ("file_format", None),
        ("kinds", "users"),
        ("kinds", None),
        ("dry_run", 1),
        ("full_speed", "yes"),
        ("lease_seconds", 0),
        ("lease_seconds", True),
        ("lease_seconds", "30"),
        ("lease_seconds", float("nan")),
    ],
)
async def test_bad_arguments_are_refused(database: Database, argument: str, value: Any) -> None:
    """The error names the argument, and nothing is written."""
    await open_books(database, users=1, charges=4)
    before = await dump(database)
    with pytest.raises(InvalidRequestError) as caught:
        await archive(database, **{"older_than": "1h", argument: value})
    assert caught.value.field == argument
    assert await dump(database) == before

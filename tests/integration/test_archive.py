"""The archive: what is old moves away, nothing is lost or there twice, and all promises hold."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import resource
import signal
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any, Final, TypedDict
from uuid import uuid4

import pytest
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo import (
    CollectionNames,
    CreditError,
    CreditLedger,
    InvalidRequestError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
)
from credit_mongo.maintenance.archive import (
    Archive,
    ArchiveLostError,
    ArchiveRunningError,
    archive,
)
from credit_mongo.maintenance.archive_runs import Lease
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.repair import repair
from credit_mongo.maintenance.steps import Steps
from credit_mongo.maintenance.verify import verify
from tests.integration.archives import (
    LEASE_SECONDS,
    PRICES,
    Errand,
    check_whole,
    commands_of,
    exit_code_of,
    file_rows,
    is_archived,
    kept,
    names_in,
    open_books,
)
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_that_no_transaction_stays_open,
    end_all_transactions,
    failing,
    rows,
    with_options,
)

ROOT = Path(__file__).parents[2]
UTC = timezone.utc
PLACES = ("collections", "bson", "parquet")
# How many runs to each place are killed, spread over all commands; more go round again.
KILLS: Final = int(os.environ.get("ARCHIVE_KILLS", "6"))


def options(place: str, directory: Path, cut_off: datetime, **more: Any) -> dict[str, Any]:
    """The arguments that archive to a place."""
    facts: dict[str, Any] = {"older_than": cut_off, "lease_seconds": LEASE_SECONDS, **more}
    if place != "collections":
        facts |= {"directory": str(directory), "file_format": place}
    return facts


async def dump(database: Database) -> dict[str, list[Row]]:
    """All documents of all collections."""
    names = sorted(await database.list_collection_names())
    return {name: await database[name].find().sort("_id", 1).to_list(None) for name in names}


# --- What goes where ------------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("place", PLACES)
async def test_what_is_old_moves_and_nothing_else(
    database: Database, tmp_path: Path, place: str
) -> None:
    """Byte for byte, counted and summed; a second run finds nothing more."""
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


async def test_borders_say_how_far_each_user_is_archived(
    database: Database, tmp_path: Path
) -> None:
    """To collections, files and collections again: the last row, and each stretch by itself."""
    await open_books(database)
    before = await kept(database)
    moments = sorted({row["createdAt"] for row in before["transactions"].values()})
    for number, place in ((3, "collections"), (5, "bson"), (8, "parquet"), (10, "collections")):
        directory = tmp_path / str(number)
        await archive(database, **options(place, directory, moments[number]))
        await check_whole(database, before)
        for border in await rows(database, "archive_borders"):
            chain = [
                row
                for row in before["transactions"].values()
                if row["userId"] == border["_id"] and row["createdAt"] < moments[number]
            ]
            last = max(chain, key=lambda row: int(row["seq"]))
            assert border["seq"] == border["count"] == len(chain) == last["seq"]
            assert border["balance"] == last["balanceAfter"] == sum(r["amount"] for r in chain)
            assert border["createdAt"] == last["createdAt"]
    [border] = await rows(database, "archive_borders", _id="user-1")
    places = [segment["place"] for segment in border["segments"]]
    assert places == ["collection", "files", "collection"]


async def test_a_dry_run_counts_and_writes_nothing(database: Database, tmp_path: Path) -> None:
    """Nor does it make a directory."""
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
async def test_one_kind_alone(database: Database, tmp_path: Path, place: str) -> None:
    """Transactions go without their audit rows; these follow to files only if those are there."""
    books = await open_books(database)
    before = await kept(database)
    facts = options(place, tmp_path, books.cut_off)
    done = await archive(database, **facts, kinds="audit_logs")
    assert done.transactions == 0
    await check_whole(database, before)
    # A log begins with an opening, whose transaction is still there.
    assert bool(done.audit_logs) == (place == "collections")
    done = await archive(database, **facts, kinds="transactions")
    assert done.transactions
    await check_whole(database, before)
    await archive(database, **facts, kinds="audit_logs")
    await check_whole(database, before)
    assert await is_archived(database, books.cut_off)


async def test_collections_of_other_names(database: Database) -> None:
    """All of them are the configuration's."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    config = PRICES.model_copy(update={"collections": names})
    books = await open_books(database, config=config)
    done = await archive(database, older_than=books.cut_off, collections=names)
    assert done.transactions
    assert {name.removeprefix("our_") for name in await database.list_collection_names()} <= set(
        CollectionNames.model_fields
    )
    assert (await verify(database, collections=names)).findings == ()
    page = await books.ledger.get_history("user-0", limit=100, include_archived=True)
    assert [row.seq for row in page] == list(range(15, 0, -1))


async def insert_chain(
    database: Database, user_id: str, count: int, moment: datetime, **fields: Any
) -> None:
    """So many old transactions of a user, inserted directly."""
    chain = [
        {
            "_id": ObjectId(),
            "userId": user_id,
            "seq": Int64(seq),
            "operation": "grant",
            "action": "gift",
            "amount": Int64(2),
            "balanceBefore": Int64(2 * seq - 2),
            "balanceAfter": Int64(2 * seq),
            "metadata": None,
            "idempotencyKey": None,
            "createdAt": moment + timedelta(milliseconds=seq // 7),
            **fields,
        }
        for seq in range(1, count + 1)
    ]
    await database["transactions"].insert_many(chain)
    await database["users"].insert_one(
        {
            "_id": user_id,
            "credits": Int64(2 * count),
            "seq": Int64(count),
            "createdAt": moment,
            "updatedAt": moment,
        }
    )


@pytest.mark.parametrize("full_speed", [False, True])
async def test_many_users_and_long_chains(database: Database, full_speed: bool) -> None:
    """A user with more rows than a batch has, users with one each, and rows of 16 KB."""
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


# --- Who is left alone ----------------------------------------------------------------------------


async def test_rows_without_seq_stay_and_are_named(database: Database) -> None:
    """Those of the Credit SDK have none."""
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
async def test_from_what_does_not_follow_on_all_stays(
    database: Database, change: Row | None, reason: str
) -> None:
    """What is before goes; and a verification says the same of the rest as it did."""
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
    """Whose account was removed by hand; and an erased one leaves nothing behind."""
    books = await open_books(database)
    await database["users"].delete_one({"_id": "user-2"})
    done = await archive(database, older_than=books.cut_off)
    assert done.left == (("user-2", "has no account"),)
    assert await rows(database, "archive_borders", _id="user-2") == []
    erasure = await erase_user(database, "user-1", requested_by="ann")
    assert erasure.archived_transactions
    for name in await database.list_collection_names():
        assert "user-1" not in str(await rows(database, name)), name


async def test_a_border_that_cannot_be_read_keeps_its_user(database: Database) -> None:
    """Nothing goes beyond what nobody knows; verification says so."""
    books = await open_books(database)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    await archive(database, older_than=moments[3])
    await database["archive_borders"].update_one({"_id": "user-2"}, {"$set": {"seq": "3"}})
    done = await archive(database, older_than=books.cut_off)
    assert [user_id for user_id, _ in done.left] == ["user-2"]
    assert "border-unusable" in {f.code for f in (await verify(database)).findings}


# --- What still works -----------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
async def test_archived_charges_are_refunded_up_to_their_cap(database: Database) -> None:
    """Counting refunds that are archived, and those that are not."""
    books = await open_books(database)
    await archive(database, older_than=books.cut_off)
    ledger = books.ledger
    refunded, untouched = books.old_charges["user-0"][:2]
    assert await rows(database, "transactions_archive", _id=ObjectId(refunded))
    # Of three, one was refunded before the cut-off and one after it.
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


async def test_keys_of_archived_transactions_still_answer(
    database: Database, tmp_path: Path
) -> None:
    """The record has the result, wherever the transaction is."""
    books = await open_books(database)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    await archive(database, older_than=moments[3])
    await archive(database, **options("bson", tmp_path, books.cut_off))
    for number in (0, 3):
        result = await books.ledger.charge("user-1", "post", idempotency_key=f"user-1-{number}")
        assert result.replayed
    assert (await verify(database)).findings == ()


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_history_and_audit_log_read_on_in_the_archive(database: Database, limit: int) -> None:
    """Page by page the same as before, whatever was archived between two pages."""
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
    """They are of its snapshot."""
    books = await open_books(database)
    before = list(await books.ledger.get_history("user-0", limit=1000))
    # A snapshot has no collection that was made after it.
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


async def test_settled_findings_stay_settled_in_the_archive(
    database: Database, tmp_path: Path
) -> None:
    """Corrections go to files like the rest, and what they have settled is no finding again."""
    books = await open_books(database)
    old = await database["audit_logs"].find_one({"userId": "user-2", "action": "post"})
    new = await database["audit_logs"].find_one(
        {"userId": "user-2", "status": "success"}, sort=[("createdAt", -1)]
    )
    assert old is not None
    assert new is not None
    await database["audit_logs"].delete_many({"_id": {"$in": [old["_id"], new["_id"]]}})
    await repair(database, operator="ann", reason="lost")
    assert (await verify(database)).findings == ()
    await archive(database, **options("bson", tmp_path, books.cut_off))
    assert (await verify(database)).findings == ()
    await archive(database, **options("bson", tmp_path, datetime.now(UTC)))
    assert await database["transactions"].count_documents({}) == 0
    assert (await verify(database)).findings == ()
    assert (await verify(database, user_ids=["user-2"])).findings == ()


# --- What verification sees across the border -----------------------------------------------------

Tampering = tuple[str, Row, Row | list[Row] | None]
LAST_OLD = {"userId": "user-2", "seq": 6}
TAMPERINGS: dict[str, Tampering] = {
    "border further": ("archive_borders", {"_id": "user-2"}, {"$inc": {"seq": Int64(1)}}),
    "border gone": ("archive_borders", {"_id": "user-2"}, None),
    "balance of the border": (
        "archive_borders",
        {"_id": "user-2"},
        {"$inc": {"balance": Int64(5), "segments.0.balance": Int64(5)}},
    ),
    "border a row further": (
        "archive_borders",
        {"_id": "user-2"},
        {"$inc": {"seq": Int64(1), "count": Int64(1), "segments.0.seq": Int64(1)}},
    ),
    "border a row less": (
        "archive_borders",
        {"_id": "user-2"},
        {"$inc": {"seq": Int64(-1), "count": Int64(-1), "segments.0.seq": Int64(-1)}},
    ),
    "archived row gone": ("transactions_archive", {"userId": "user-2", "seq": 3}, None),
    "first archived row gone": ("transactions_archive", {"userId": "user-2", "seq": 1}, None),
    "last archived row gone": ("transactions_archive", LAST_OLD, None),
    "archived amount": ("transactions_archive", LAST_OLD, {"$inc": {"amount": Int64(1)}}),
    "archived balances": (
        "transactions_archive",
        LAST_OLD,
        {"$inc": {"balanceAfter": Int64(1), "amount": Int64(1)}},
    ),
    "archived audit row gone": ("audit_logs_archive", {"userId": "user-2", "action": "post"}, None),
    "archived row of another": ("transactions_archive", LAST_OLD, {"$set": {"userId": "user-3"}}),
    "row gone": ("transactions", {"userId": "user-2", "seq": 8}, None),
    "row after the border gone": ("transactions", {"userId": "user-2", "seq": 7}, None),
    "balance": ("users", {"_id": "user-2"}, {"$inc": {"credits": Int64(1)}}),
}


@pytest.mark.parametrize("name", TAMPERINGS)
async def test_what_was_changed_by_hand_is_found(database: Database, name: str) -> None:
    """On either side of the border and in it, by a full look and by one at the user."""
    books = await open_books(database)
    await archive(database, older_than=books.cut_off)
    collection, query, change = TAMPERINGS[name]
    if change is None:
        assert (await database[collection].delete_one(query)).deleted_count
    else:
        assert (await database[collection].update_one(query, change)).modified_count
    found = await verify(database)
    assert "user-2" in {finding.user_id for finding in found.findings}
    alone = await verify(database, user_ids=["user-2"])
    mine = {f for f in found.findings if f.user_id == "user-2"}
    assert mine == set(alone.findings)


@pytest.mark.parametrize("source", ["transactions", "transactions_archive"])
async def test_a_row_that_is_on_both_sides_is_found(database: Database, source: str) -> None:
    """Copied back by hand, say."""
    books = await open_books(database)
    await archive(database, older_than=books.cut_off)
    [other] = {"transactions", "transactions_archive"} - {source}
    row = await database[source].find_one({"userId": "user-2"})
    assert row is not None
    await database[other].insert_one(row)
    found = await verify(database)
    assert {finding.user_id for finding in found.findings} == {"user-2"}


# --- Whatever happens on the way ------------------------------------------------------------------


@pytest.fixture
def errands(replica_set_uri: str) -> str:
    """Where the processes connect to."""
    return replica_set_uri


async def killed_at(
    uri: str, database: Database, facts: dict[str, Any], number: int, *, when_answered: bool
) -> bool:
    """Kill a run at one of its commands; whether it came so far."""
    errand = Errand(uri, database.name, facts, number, when_answered)
    code = await exit_code_of(errand)
    assert code in (0, -signal.SIGKILL)
    # The server would end them by itself, after a minute.
    await end_all_transactions(database.client)
    return code != 0


async def run_to_the_end(database: Database, facts: dict[str, Any]) -> Archive:
    """Run, again as long as a dead one's lease lasts."""
    for _ in range(100):
        try:
            return await archive(database, **facts)
        except ArchiveRunningError:
            await asyncio.sleep(LEASE_SECONDS)
    raise AssertionError("the lease does not end")


@pytest.mark.parametrize("place", PLACES)
async def test_killed_at_each_command_and_run_again(
    client: Client, database: Database, errands: str, tmp_path: Path, place: str
) -> None:
    """It is whole at every moment, for verification too, and at the end nothing old is left."""
    books = await open_books(database, users=2, charges=4)
    facts = options(place, tmp_path / "first", books.cut_off)
    template = await dump(database)
    commands = await commands_of(errands, database.name, facts)
    assert commands.count("commitTransaction") >= 4
    assert await is_archived(database, books.cut_off)
    chance = Random(KILLS)
    killed = 0
    for turn in range(KILLS):
        number = turn % len(commands) if len(commands) < KILLS else turn * len(commands) // KILLS
        when_answered = (turn + turn // len(commands)) % 2 == 1
        fresh = client[f"{database.name}_{turn}"]
        for name, documents in template.items():
            await fresh[name].insert_many(documents)
        await CreditLedger(fresh, PRICES).ensure_indexes()
        before = await kept(fresh)
        directory = tmp_path / str(turn)
        own = {**facts, "directory": str(directory)} if "directory" in facts else facts
        killed += await killed_at(errands, fresh, own, number, when_answered=when_answered)
        found = await verify(fresh)
        assert found.findings == (), (commands[number], number, when_answered)
        if chance.random() < 0.3:
            await killed_at(errands, fresh, own, number, when_answered=not when_answered)
        await run_to_the_end(fresh, own)
        await check_whole(fresh, before, directory if "directory" in facts else None)
        assert await is_archived(fresh, books.cut_off)
        await client.drop_database(fresh.name)
    # How many commands there are varies by a few.
    assert killed >= KILLS * 9 // 10


FAILURES: dict[str, Row] = {
    "conflict": {"errorCode": 112, "errorLabels": ["TransientTransactionError"]},
    "not primary": {"errorCode": 10107},
    "connection": {"closeConnection": True},
    "refused": {"errorCode": 13},
    "applied, then an error": {"writeConcernError": {"code": 100, "errmsg": "x"}},
    "applied, then another": {"writeConcernError": {"code": 91, "errmsg": "x"}},
}


@pytest.mark.parametrize("place", ["collections", "bson"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_failures_at_each_kind_of_command(
    client: Client,
    database: Database,
    replica_set_uri: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: str,
    place: str,
) -> None:
    """It goes on, or ends with an error; and the next run makes it whole."""
    monkeypatch.setattr("credit_mongo.maintenance.archive._STEP_SECONDS", 1.0)
    app = f"archive-{uuid4().hex[:8]}"
    names = [
        "find",
        "insert",
        "delete",
        "update",
        "commitTransaction",
        "aggregate",
        "createIndexes",
    ]
    data = FAILURES[failure]
    if "writeConcernError" in data:
        names = ["commitTransaction"]
    books = await open_books(database, users=2, charges=4)
    before = await kept(database)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    async with AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own:
        for number, name in enumerate(names):
            # From the second on, or so many times.
            lasting = [{"skip": 1}] if name in ("delete", "commitTransaction") else []
            for times in ({"times": 1}, {"times": 2}, *lasting):
                cut_off = min(moments[min(number + 1, len(moments) - 1)], books.cut_off)
                facts = options(place, tmp_path, cut_off)
                try:
                    async with failing(client, app, times, failCommands=[name], **data):
                        await asyncio.wait_for(archive(own[database.name], **facts), 30)
                except (PyMongoError, CreditError) as error:
                    assert not isinstance(error, ArchiveLostError)  # noqa: PT017
                except asyncio.TimeoutError:
                    pytest.fail(f"{name}: no end")
                await check_that_no_transaction_stays_open(client)
                await end_all_transactions(client)
                assert (await verify(database)).findings == (), name
        await run_to_the_end(own[database.name], options(place, tmp_path, books.cut_off))
    assert await is_archived(database, books.cut_off)
    await check_whole(database, before, tmp_path if place == "bson" else None)


async def until_running(database: Database, lanes: int = 1) -> None:
    """Until a run has written so many manifests."""
    while True:
        if len(await rows(database, "archive_manifests", state="running")) == lanes:
            return
        await asyncio.sleep(0)


async def test_two_at_once(client: Client, database: Database, replica_set_uri: str) -> None:
    """The second is told, and writes nothing; when the first is done, another may run."""
    books = await open_books(database)
    before = await kept(database)
    app = f"archive-{uuid4().hex[:8]}"
    async with AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own:
        block: Row = {"failCommands": ["delete"], "blockConnection": True, "blockTimeMS": 1500}
        async with failing(client, app, {"times": 1}, **block):
            first = asyncio.create_task(archive(own[database.name], older_than=books.cut_off))
            await until_running(database, lanes=2)
            manifests = await rows(database, "archive_manifests")
            with pytest.raises(ArchiveRunningError) as caught:
                await archive(database, older_than=books.cut_off)
            assert caught.value.code == "ARCHIVE_RUNNING"
            assert caught.value.alive_until > datetime.now(UTC)
            assert await rows(database, "archive_manifests") == manifests
            await first
    await archive(database, older_than=books.cut_off)
    await check_whole(database, before)


async def test_the_command_says_that_another_is_at_work(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """In one line; and nothing was written."""
    await open_books(database, users=1, charges=4)
    lease = Lease(database, "archive_manifests", ObjectId(), seconds=3600)
    async with Steps(client, step_seconds=10) as steps:
        await lease.take(steps)
        before = await dump(database)
        code, output, errors = await run_command(
            "--older-than", "1h", uri=replica_set_uri, database=database.name
        )
        await lease.release()
    assert (code, output) == (2, "")
    assert errors.startswith("error: another run of the archive is at work")
    assert errors.count("\n") == 1
    del before["archive_manifests"]
    after = await dump(database)
    assert [row["_id"] for row in after.pop("archive_manifests")] == ["lease"]
    assert after == before


async def test_many_at_once_move_each_row_once(database: Database, replica_set_uri: str) -> None:
    """One of them has the lease, whoever it is; the others are told, or come after it."""
    books = await open_books(database)
    before = await kept(database)
    runs = [
        archive(database, older_than=books.cut_off, lease_seconds=LEASE_SECONDS) for _ in range(8)
    ]
    results = await asyncio.gather(*runs, return_exceptions=True)
    for result in results:
        assert isinstance(result, Archive | ArchiveRunningError | ArchiveLostError), result
    await run_to_the_end(database, options("collections", Path(), books.cut_off))
    await check_whole(database, before)


@pytest.mark.parametrize("place", PLACES)
async def test_a_run_that_was_silent_can_not_move_any_more(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path, place: str
) -> None:
    """Another has taken over: what the first would still write is refused by the server."""
    books = await open_books(database)
    before = await kept(database)
    app = f"archive-{uuid4().hex[:8]}"
    facts = options(place, tmp_path / "one", books.cut_off)
    async with AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own:
        block: Row = {"failCommands": ["update"], "blockConnection": True, "blockTimeMS": 2000}
        slow = asyncio.create_task(archive(own[database.name], **facts))
        await until_running(database)
        async with failing(client, app, **block):
            other = options(place, tmp_path / "two", books.cut_off)
            await run_to_the_end(database, other)
        result = (await asyncio.gather(slow, return_exceptions=True))[0]
    assert isinstance(result, ArchiveLostError | Archive), result
    await run_to_the_end(database, facts)
    assert await is_archived(database, books.cut_off)
    await check_whole(database, before)


@pytest.mark.drivers("pymongo", "motor")
async def test_cancelled_it_leaves_nothing_open(client: Client, database: Database) -> None:
    """Ctrl-C: the lease is free at once."""
    books = await open_books(database)
    before = await kept(database)
    for turns in range(0, 200, 20):
        task = asyncio.create_task(archive(database, older_than=books.cut_off))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await check_that_no_transaction_stays_open(client)
        assert (await verify(database)).findings == ()
    await archive(database, older_than=books.cut_off)
    await check_whole(database, before)


async def test_charges_go_on_beside_it_and_verification_finds_nothing(
    database: Database, tmp_path: Path
) -> None:
    """At every moment: sums, chains, refunds, keys and audit rows, across the moving border."""
    books = await open_books(database)
    ledger = CreditLedger(database, PRICES)
    stop = asyncio.Event()
    names = list(books.old_charges)

    charged: list[str] = []

    async def charge(name: str) -> None:
        charges = books.old_charges[name][2:]
        while not stop.is_set():
            await ledger.charge(name, "post", idempotency_key=uuid4().hex)
            if charges:
                await ledger.refund(name, 3, action="x", transaction_id=charges.pop())
            charged.append(name)

    looks: list[int] = []

    async def look() -> None:
        while not stop.is_set():
            found = await verify(database)
            assert found.findings == ()
            looks.append(found.transactions)

    async def move() -> None:
        for turn in range(6):
            # To the moment itself: what is charged meanwhile is as old a moment later.
            facts = options(("collections", "bson")[turn % 2], tmp_path, datetime.now(UTC))
            await archive(database, **facts)
        stop.set()

    await asyncio.gather(*map(charge, names), look(), move())
    assert set(charged) == set(names)
    assert looks
    assert (await verify(database)).findings == ()
    balances = [await ledger.get_balance(name) for name in names]
    stored = {row["_id"]: row["credits"] for row in await rows(database, "users")}
    assert balances == [stored[name] for name in names]


# --- Files ----------------------------------------------------------------------------------------


async def test_what_a_crash_left_behind_the_end_is_cut_off(
    database: Database, errands: str, tmp_path: Path
) -> None:
    """The rest of a batch that was not committed, however much of it was written."""
    books = await open_books(database)
    before = await kept(database)
    facts = options("bson", tmp_path, books.cut_off)
    for number in range(8, 60, 3):
        if not await killed_at(errands, database, facts, number, when_answered=False):
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
    database: Database, errands: str, tmp_path: Path, harm: str
) -> None:
    """Before anything is moved beside it."""
    books = await open_books(database)
    facts = options("bson", tmp_path, books.cut_off)
    commands = await commands_of(errands, database.name, {**facts, "older_than": "30y"})
    files: list[Row] = []
    for number in range(len(commands), len(commands) + 60):
        assert await killed_at(errands, database, facts, number, when_answered=True)
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


# --- The command ----------------------------------------------------------------------------------


class Where(TypedDict):
    """What the command connects to."""

    uri: str
    database: str


async def run_command(
    *arguments: str, uri: str, database: str = "app", most_bytes: int | None = None
) -> tuple[int, str, str]:
    """Exit code, output and errors of the script."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "scripts" / "archive.py"),
        *arguments,
        *("--uri", uri, "--database", database, "--timeout", "3"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=limit,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_the_script_archives_and_says_what_it_did(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """In words, or as JSON."""
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
    assert facts["cut_off"] == moment
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
    """Exit code 1 is for books that are broken."""
    books = await open_books(database)
    where: Where = {"uri": replica_set_uri, "database": database.name}
    await database["transactions"].update_many({"userId": "user-1"}, {"$unset": {"seq": ""}})
    moment = books.cut_off.isoformat()
    code, output, _ = await run_command("--older-than", moment, **where)
    assert code == 0
    assert "user-1 has no seq\n" in output
    await database["transactions"].update_one({"userId": "user-2"}, {"$set": {"amount": 1.5}})
    code, output, _ = await run_command("--older-than", "0h", **where)
    assert code == 1
    assert "user-2 has a field of the wrong type\n" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--older-than"),
        (("--older-than", "soon"), "must be an age"),
        (("--older-than", "6"), "must be an age"),
        (("--older-than", "2999-01-01"), "lies in the future"),
        (("--older-than", "2025-02-30"), "must be an age"),
        (("--older-than", "1h", "--format", "bson"), "--format goes with --to"),
        (("--older-than", "1h", "--to", "DIR", "--format", "csv"), "must be one of"),
        (("--older-than", "1h", "--only", "users"), "--only must be one of"),
        (("--older-than", "1h", "--to", "FULL"), "is not empty"),
        (("--older-than", "1h", "--to", "FULL", "--dry-run"), "is not empty"),
        (("--older-than", "1h", "--to", "FULL/file"), "is no directory"),
        (("--older-than", "1h", "--to", "FULL/file/below"), "Not a directory"),
        (("--older-than", "1h", "--to", "/proc/archive"), "/proc/archive"),
    ],
)
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
async def test_no_server_gets_one_line(
    replica_set_uri: str, uri: str | None, database: str, said: str
) -> None:
    """And no password is shown."""
    code, output, errors = await run_command(
        "--older-than", "1h", uri=uri or replica_set_uri, database=database
    )
    assert (code, output) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1
    assert "secret" not in errors


async def test_an_empty_database_without_indexes(database: Database, replica_set_uri: str) -> None:
    """There is nothing to do; with rows and no index, the way out is named."""
    where: Where = {"uri": replica_set_uri, "database": database.name}
    code, output, errors = await run_command("--older-than", "1h", **where)
    assert (code, errors) == (0, "")
    assert "0 transactions and 0 audit logs" in output
    await insert_chain(database, "u", 3, datetime.now(UTC) - timedelta(days=3))
    code, output, errors = await run_command("--older-than", "1h", **where)
    assert (code, output) == (2, "")
    assert errors == "error: an index is missing: run credit-mongo init first\n"
    assert await database["transactions"].count_documents({}) == 3


@pytest.mark.parametrize("file_format", ["bson", "parquet"])
@pytest.mark.parametrize("most_bytes", [0, 2000, 20_000])
async def test_a_full_disk_gets_one_line_and_loses_nothing(
    database: Database,
    replica_set_uri: str,
    tmp_path: Path,
    file_format: str,
    most_bytes: int,
) -> None:
    """No file can become larger; with room again, the same command completes it."""
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
    """By name, before anything is written."""
    await open_books(database, users=1, charges=4)
    before = await dump(database)
    with pytest.raises(InvalidRequestError) as caught:
        await archive(database, **{"older_than": "1h", argument: value})
    assert caught.value.field == {"file_format": "format"}.get(argument, argument)
    assert await dump(database) == before

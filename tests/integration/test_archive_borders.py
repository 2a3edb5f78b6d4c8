"""The border up to which each user is archived, and what verification sees across it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from bson import Int64

from credit_mongo.maintenance.archive.archiving import (
    archive,
)
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.archives import (
    check_whole,
    kept,
    open_books,
    options,
)
from tests.integration.promises import (
    Database,
    Row,
    rows,
)

UTC = timezone.utc


async def test_borders_say_how_far_each_user_is_archived(
    database: Database, tmp_path: Path
) -> None:
    """Runs to collections, files and collections again record the last row and each segment."""
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


async def test_an_unreadable_border_stops_the_archive_for_its_user(database: Database) -> None:
    """Nothing is archived beyond an unreadable border, and verification reports it."""
    books = await open_books(database)
    moments = sorted(await database["transactions"].distinct("createdAt"))
    await archive(database, older_than=moments[3])
    await database["archive_borders"].update_one({"_id": "user-2"}, {"$set": {"seq": "3"}})
    done = await archive(database, older_than=books.cut_off)
    assert [user_id for user_id, _ in done.left] == ["user-2"]
    assert "border-unusable" in {f.code for f in (await verify(database)).findings}


async def test_settled_findings_stay_settled_in_the_archive(
    database: Database, tmp_path: Path
) -> None:
    """Corrections go to files like other rows, and what they settled is not reported again."""
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
@pytest.mark.cases(6)
async def test_a_change_by_hand_is_found(database: Database, name: str) -> None:
    """Verification finds it before, at and behind the border, for all users or for one."""
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
async def test_a_row_on_both_sides_is_found(database: Database, source: str) -> None:
    """For example, a row was copied back by hand."""
    books = await open_books(database)
    await archive(database, older_than=books.cut_off)
    [other] = {"transactions", "transactions_archive"} - {source}
    row = await database[source].find_one({"userId": "user-2"})
    assert row is not None
    await database[other].insert_one(row)
    found = await verify(database)
    assert {finding.user_id for finding in found.findings} == {"user-2"}

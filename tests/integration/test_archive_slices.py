"""Slices: the archive takes the oldest rows of all users first, whatever their ids are."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from bson import ObjectId

from credit_mongo.maintenance.archive import archive
from credit_mongo.maintenance.verify import verify
from tests.integration.archives import (
    PLACES,
    check_whole,
    kept,
    make_small_slices,
    open_books,
    options,
)
from tests.integration.promises import Database, Row, rows


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few rows."""
    make_small_slices(monkeypatch.setattr)


class StoppedError(Exception):
    """By the test."""


@pytest.mark.parametrize("kinds", ["transactions", "audit_logs"])
async def test_the_oldest_of_all_users_go_first(database: Database, kinds: str) -> None:
    """When a slice is done, nothing is left that is older than what went."""
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
async def test_whole_at_the_end(database: Database, tmp_path: Path, place: str) -> None:
    """Each row is there once, in every place."""
    books = await open_books(database)
    before = await kept(database)
    done = await archive(database, **options(place, tmp_path, books.cut_off))
    assert done.users_left == 0
    assert done.transactions > 20
    await check_whole(database, before, None if place == "collections" else tmp_path)


@pytest.mark.parametrize("place", PLACES)
async def test_who_is_left_alone_is_named_once(
    database: Database, tmp_path: Path, place: str
) -> None:
    """However many slices pass; and their audit rows do not go to files before them."""
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


@pytest.mark.parametrize("kind", ["at random", "backwards", "of several types"])
async def test_ids_that_do_not_grow_with_time(database: Database, kind: str) -> None:
    """All that is old moves nevertheless, and nothing else."""
    ids: dict[str, list[object]] = {
        "at random": [ObjectId(f"{number * 7919 % 1009:024x}") for number in range(40)],
        "backwards": [ObjectId(f"{1000 - number:024x}") for number in range(40)],
        "of several types": [number if number % 2 else f"n{number}" for number in range(40)],
    }
    now = datetime.now(timezone.utc).replace(microsecond=0)
    begin = now - timedelta(days=39, hours=12)
    await open_books(database)
    await database["audit_logs"].delete_many({})
    await database["audit_logs"].insert_many(
        {
            "_id": each,
            "userId": f"user-{number % 3}",
            "status": "failed",
            "createdAt": begin + timedelta(days=number),
        }
        for number, each in enumerate(ids[kind])
    )
    done = await archive(database, older_than="10d", kinds="audit_logs")
    left = await rows(database, "audit_logs")
    assert done.audit_logs == 40 - len(left)
    assert {row["createdAt"] for row in left} == {
        begin + timedelta(days=number) for number in range(30, 40)
    }

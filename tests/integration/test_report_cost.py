"""The report of a day reads the rows of that day, however many rows the ledger has."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

import pytest
from bson import Int64, ObjectId

from credit_mongo.config import CollectionNames
from credit_mongo.maintenance.archive.places import Collections
from credit_mongo.maintenance.indexes import ensure_indexes
from credit_mongo.maintenance.usage import reading
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.usage.results import Usage
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.promises import Client, Database, Row

END: Final = datetime(2026, 3, 1, tzinfo=timezone.utc)
DAY: Final = timedelta(days=1)
A_DAY: Final = 80


async def fill(database: Database, days: int, *, archived_days: int = 0) -> None:
    """Write 80 transactions a day, up to the end: charges, and a refund of each tenth."""
    await ensure_indexes(database, CollectionNames())
    await Collections(LedgerDatabase.of(database)).open()
    for collection in ("transactions", "audit_logs"):
        for name in (collection, f"{collection}_archive"):
            await database[name].delete_many({})
    charge = ObjectId()
    made: list[tuple[Row, Row]] = []
    for number in range(days * A_DAY):
        row: Row = {
            "_id": ObjectId(),
            "userId": f"user-{number % 7}",
            "operation": "charge",
            "action": f"action-{number % 5}",
            "amount": Int64(-10 - number % 3),
            "createdAt": END - DAY * (number + 1) / A_DAY,
        }
        details: Row = {"amount": row["amount"], "tier": ("free", "pro", None)[number % 3]}
        if number % 10 == 0 and number:
            row |= {"operation": "refund", "amount": Int64(3), "refundOf": charge}
            details["amount"] = row["amount"]
        else:
            charge = row["_id"]
        audit = {key: value for key, value in row.items() if key != "amount"}
        made.append((row, {**audit, "status": "success", "details": details}))
    live = (days - archived_days) * A_DAY
    for name, part in (("", made[:live]), ("_archive", made[live:])):
        if part:
            await database[f"transactions{name}"].insert_many([row for row, _ in part])
            await database[f"audit_logs{name}"].insert_many([audit for _, audit in part])


async def examined(client: Client) -> tuple[int, int]:
    """Return how many keys and documents the server has examined since its start."""
    status = await client.admin.command("serverStatus")
    executor = status["metrics"]["queryExecutor"]
    return int(executor["scanned"]), int(executor["scannedObjects"])


@pytest.mark.parametrize("archived_days", [0, 495])
async def test_the_report_of_a_day_examines_as_much_among_twenty_times_the_rows(
    client: Client, database: Database, archived_days: int
) -> None:
    """Most rows may be in the archive, with the reported day among them or not."""
    costs: list[int] = []
    for days in (25, 500):
        await fill(database, days, archived_days=archived_days * (days == 500))
        for end in (END, END - 8 * DAY):
            before = await examined(client)
            usage = await usage_of(database, end - DAY, end)
            costs.append(sum(await examined(client)) - sum(before))
            assert (usage.transactions, usage.left_out) == (A_DAY, 0)
    assert max(costs) <= 2 * costs[0], costs
    # Twice the rows for the day before, and their charges and tiers.
    assert costs[0] <= 20 * A_DAY


async def test_the_index_and_the_scan_give_the_same_report(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds with rows of other software, too, and with a collection that has no index."""
    await fill(database, 20, archived_days=12)
    base = {"userId": "ada", "action": "x", "amount": -4, "operation": "charge"}
    now = END - DAY / 2
    for name in ("transactions", "transactions_archive"):
        moments: list[object] = [
            "2026-03-01",
            None,
            {},
            [],
            ["x"],
            [now],
            [now, "x"],
            END.timestamp(),
            7,
        ]
        await database[name].insert_many([{**base, "createdAt": odd} for odd in moments])
        await database[name].insert_one(dict(base))
        await database[name].insert_one({**base, "createdAt": now, "amount": "4"})
    periods = (END - DAY, END), (END - 13 * DAY, END - 6 * DAY)
    scanned: list[Usage] = []
    for few in (0.0, 0.1, 1.0):
        monkeypatch.setattr(reading, "_FEW", few)
        reports = [await usage_of(database, *period, places=3) for period in periods]
        scanned = scanned or reports
        assert reports == scanned
    assert all(report.left_out and report.spent_by_tier for report in scanned)
    for name in ("transactions", "transactions_archive"):
        await database[name].drop_index("createdAt_1")
    assert await usage_of(database, *periods[1], places=3) == scanned[1]


async def test_a_long_period_is_read_by_scans(client: Client, database: Database) -> None:
    """Each of the five queries meets each row once, and fetches none through the index."""
    await fill(database, 20, archived_days=10)
    before = await examined(client)
    usage = await usage_of(database, END - 15 * DAY, END)
    keys, documents = (a - b for a, b in zip(await examined(client), before, strict=True))
    assert usage.transactions == 15 * A_DAY
    refunds = 15 * A_DAY // 10
    # The server counts the half in the archive twice, as part of a union.
    assert documents <= 5 * 30 * A_DAY + 4 * refunds
    assert keys <= 2 * 20 * A_DAY // 10 + 6 * refunds

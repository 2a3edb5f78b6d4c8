"""The pace of jobs: small steps while users are charged, large ones while nobody is."""

from __future__ import annotations

import pytest
from bson import ObjectId

from credit_mongo.maintenance.pace import Pace, _rest_after
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.promises import Database

EARLY, MIDDLE, LATE = ObjectId("5" * 24), ObjectId("6" * 24), ObjectId("7" * 24)


@pytest.fixture
def at_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the pace after each batch, without rests."""
    monkeypatch.setattr("credit_mongo.maintenance.pace._LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("credit_mongo.maintenance.pace._rest_after", lambda *_: 0.0)


@pytest.mark.parametrize("full_speed", [False, True])
async def test_charges_slow_the_archive_down(
    database: Database, at_each_batch: None, full_speed: bool
) -> None:
    """A new transaction slows it, unless the option says that this does not matter."""
    transactions = database["transactions"]
    await transactions.insert_one({"_id": MIDDLE})
    pace = Pace(LedgerDatabase.of(database)["transactions"], lanes=4, full_speed=full_speed)
    large = pace.rows
    for _ in range(2):
        await pace.rest(1.0)
        assert pace.rows == large
    await transactions.insert_one({"_id": LATE})
    await pace.rest(1.0)
    assert (pace.rows < large) is not full_speed


async def test_rows_that_it_moves_do_not_slow_it_down(
    database: Database, at_each_batch: None
) -> None:
    """As it moves the newest rows, the newest one left is older. In the end there is none."""
    transactions = database["transactions"]
    await transactions.insert_many([{"_id": number} for number in (EARLY, MIDDLE, LATE)])
    pace = Pace(LedgerDatabase.of(database)["transactions"], lanes=4, full_speed=False)
    large = pace.rows
    await pace.rest(1.0)
    for number in (LATE, MIDDLE, EARLY):
        await transactions.delete_one({"_id": number})
        await pace.rest(1.0)
        assert pace.rows == large
    await transactions.insert_one({"_id": EARLY})
    await pace.rest(1.0)
    assert pace.rows < large


async def test_rows_that_it_writes_do_not_slow_it_down(
    database: Database, at_each_batch: None
) -> None:
    """Those of others do, also if a row of its own is the newest."""
    transactions = database["transactions"]
    pace = Pace(
        LedgerDatabase.of(database)["transactions"],
        lanes=3,
        full_speed=False,
        own=[{"operation": "create_user"}, {"action": "opening-balance"}],
    )
    large = pace.rows
    for own in ({"operation": "create_user"}, {"operation": "charge", "action": "opening-balance"}):
        await pace.rest(1.0)
        await transactions.insert_one({"_id": ObjectId(), **own})
        await pace.rest(1.0)
        assert pace.rows == large
    await transactions.insert_one({"_id": ObjectId(), "operation": "charge", "action": "post"})
    await transactions.insert_one({"_id": ObjectId(), "operation": "create_user"})
    await pace.rest(1.0)
    assert pace.rows < large


async def test_on_a_slow_server_batches_are_smaller(
    database: Database, at_each_batch: None
) -> None:
    """Batches shrink to a few rows, and grow back when the server is quick again."""
    pace = Pace(LedgerDatabase.of(database)["transactions"], lanes=4, full_speed=True)
    large = pace.rows
    sizes = []
    for _ in range(20):
        await pace.rest(seconds_of_work=10.0)
        sizes.append(pace.rows)
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] < sizes[0] < large
    pace.slow_down()
    assert pace.rows == sizes[-1]
    await pace.rest(seconds_of_work=3.0)
    assert pace.rows == sizes[-1]
    for _ in range(20):
        await pace.rest(seconds_of_work=0.1)
    assert pace.rows == large


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_lanes_together_are_at_work_half_of_the_time(lanes: int) -> None:
    """Several lanes together work half of the time, a single lane a quarter of it."""
    of_each = 1.0 / (1.0 + _rest_after(1.0, lanes))
    assert of_each == pytest.approx(min(0.25, 0.5 / lanes))

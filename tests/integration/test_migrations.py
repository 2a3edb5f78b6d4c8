"""Migrations of the application's data: applied once and in order, and told if they can't be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import MigrationError
from credit_mongo.maintenance.migrations.log import Operator
from credit_mongo.maintenance.migrations.runner import MigrationRun, Migrations, Options
from tests.integration.killed_process import MOMENTS, CommandCounter, Job, run_until_killed
from tests.integration.promises import Database, Row, end_all_transactions, rows

# How many runs in each direction are killed, spread over all commands.
KILLS: Final = int(os.environ.get("MIGRATION_KILLS", "8"))
AT_ONCE: Final = 4
LOG = "ledger_migrations"
ANN = Operator("ann", "laptop")
QUICK = Options(wait=5, lease=0.4)

FIRST = "20260101000000_add_plan"
SECOND = "20260102000000_rename_plan"
THIRD = "20260103000000_count_visits"

ADD_PLAN = """
async def forward(database):
    await database["members"].update_many({}, {"$set": {"plan": "free"}})
    await database["done"].insert_one({"by": "add_plan"})

async def backward(database):
    await database["members"].update_many({}, {"$unset": {"plan": ""}})
    await database["done"].delete_one({"by": "add_plan"})
"""
RENAME_PLAN = """
async def forward(database):
    await database["members"].update_many({}, {"$rename": {"plan": "tier"}})
    await database["done"].insert_one({"by": "rename_plan"})

async def backward(database):
    await database["members"].update_many({}, {"$rename": {"tier": "plan"}})
    await database["done"].delete_one({"by": "rename_plan"})
"""
COUNT_VISITS = """
IN_TRANSACTION = False

async def forward(database):
    for member in await database["members"].find({"visits": None}).to_list():
        await database["members"].update_one({"_id": member["_id"]}, {"$set": {"visits": 0}})
    await database["members"].create_index("visits")

async def backward(database):
    await database["members"].update_many({}, {"$unset": {"visits": ""}})
    await database["members"].drop_indexes()
"""


def write(directory: Path, **sources: str) -> Path:
    """Write files of migrations, and return the directory."""
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source, encoding="utf-8")
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three migrations: two in a transaction, and one without."""
    three = {FIRST: ADD_PLAN, SECOND: RENAME_PLAN, THIRD: COUNT_VISITS}
    return write(tmp_path, **three)


async def add_members(database: Database) -> None:
    """Two members of the application, before any migration."""
    await database["members"].insert_many([{"_id": "ann"}, {"_id": "bob"}])
    await database["done"].insert_one({"by": "nobody"})


MIGRATED = [{"_id": each, "tier": "free", "visits": 0} for each in ("ann", "bob")]


async def check_migrated(database: Database) -> None:
    """Each migration has happened once, and the log says so."""
    assert await rows(database, "members") == MIGRATED
    assert sorted(row["by"] for row in await rows(database, "done")) == [
        *("add_plan", "nobody", "rename_plan")
    ]
    log = await rows(database, LOG, state="applied")
    assert [row["_id"] for row in log] == [FIRST, SECOND, THIRD]


# What they do


async def test_up_applies_all_in_order_and_down_goes_back(
    database: Database, directory: Path
) -> None:
    """The log says who did what, when, and how long it took."""
    await add_members(database)
    migrations = Migrations(database, directory, ANN, QUICK)
    assert [each.name for each in await migrations.up(to="rename_plan")] == [FIRST, SECOND]
    assert [each.state for each in await migrations.states()] == ["applied", "applied", "pending"]
    assert [each.name for each in await migrations.up()] == [THIRD]
    await check_migrated(database)
    assert await migrations.up() == []
    first = (await migrations.states())[0]
    assert (first.by, first.host) == ("ann", "laptop")
    assert first.at is not None
    assert first.seconds is not None
    assert 0 <= first.seconds < 10
    assert [each.name for each in await migrations.down()] == [THIRD]
    assert [each.name for each in await migrations.down(to=FIRST)] == [SECOND]
    assert await rows(database, "members") == [
        {"_id": "ann", "plan": "free"},
        {"_id": "bob", "plan": "free"},
    ]
    [second] = await rows(database, LOG, _id=SECOND)
    assert [each["state"] for each in second["runs"]] == ["applied", "rolled back"]
    await migrations.up()
    await check_migrated(database)


async def test_a_dry_run_writes_nothing(database: Database, directory: Path) -> None:
    """It says what would be run, without a lock."""
    await add_members(database)
    migrations = Migrations(database, directory, ANN, QUICK)
    planned = await migrations.up(dry_run=True)
    assert planned == [
        MigrationRun(FIRST, in_transaction=True, seconds=0),
        MigrationRun(SECOND, in_transaction=True, seconds=0),
        MigrationRun(THIRD, in_transaction=False, seconds=0),
    ]
    assert sorted(await database.list_collection_names()) == ["done", "members"]


async def test_no_command_of_a_migration_misses_its_transaction(
    database: Database, tmp_path: Path, replica_set_uri: str
) -> None:
    """Even though the file passes no session, and the URI has a write concern of its own."""
    await add_members(database)
    write(tmp_path, **{FIRST: f"{ADD_PLAN.partition('async def backward')[0]}    1 / 0\n"})
    async with AsyncMongoClient[Row](replica_set_uri, w="majority") as client:
        migrations = Migrations(client[database.name], tmp_path, ANN, QUICK)
        with pytest.raises(MigrationError) as caught:
            await migrations.up()
    assert caught.value.migration == FIRST
    assert caught.value.reason == (
        f"{tmp_path / FIRST}.py failed: ZeroDivisionError in line 6; nothing of it was written"
    )
    assert await rows(database, "members") == [{"_id": "ann"}, {"_id": "bob"}]
    assert len(await rows(database, "done")) == 1
    write(tmp_path, **{FIRST: ADD_PLAN})
    assert len(await Migrations(database, tmp_path, ANN, QUICK).up()) == 1


async def test_without_a_transaction_a_failed_migration_goes_on_from_where_it_was(
    database: Database, tmp_path: Path
) -> None:
    """Until it is complete, it can't be rolled back. Nor can another one be applied."""
    await add_members(database)
    broken = COUNT_VISITS.replace('["members"].create_index', '["members"].create_indexx')
    write(tmp_path, **{THIRD: broken})
    migrations = Migrations(database, tmp_path, ANN, QUICK)
    with pytest.raises(MigrationError, match=r"it may be half done\. Run credit-mongo migrate up"):
        await migrations.up()
    assert [each.state for each in await migrations.states()] == ["applying"]
    with pytest.raises(MigrationError, match="began applying it, and did not finish"):
        await migrations.down()
    write(tmp_path, **{THIRD: COUNT_VISITS})
    mended = Migrations(database, tmp_path, ANN, QUICK)
    assert [each.name for each in await mended.up()] == [THIRD]
    assert [each.state for each in await mended.states()] == ["applied"]
    assert "visits_1" in await database["members"].index_information()


# Two at once


async def until_there_is(
    database: Database, collection: str, job: asyncio.Task[Any], **query: str
) -> None:
    """Wait for a document. Fails if the job that should write it has ended."""

    async def look() -> None:
        for _ in range(1000):
            if job.done() or await rows(database, collection, **query):
                return
            await asyncio.sleep(0.01)

    await look()
    assert not job.done(), await job


async def test_of_two_deployments_at_once_one_waits_and_each_migration_happens_once(
    database: Database, directory: Path, replica_set_uri: str
) -> None:
    """The one that waited finds nothing left to do, and says whom it waited for."""
    await add_members(database)
    waits: list[str] = []

    async def deploy(client: AsyncMongoClient[Row]) -> list[MigrationRun]:
        options = QUICK._replace(on_wait=waits.append)
        return await Migrations(client[database.name], directory, ANN, options).up()

    async with (
        AsyncMongoClient[Row](replica_set_uri) as one,
        AsyncMongoClient[Row](replica_set_uri) as other,
    ):
        runs = await asyncio.gather(deploy(one), deploy(other))
    assert sorted(len(each) for each in runs) == [0, 3]
    assert all("by ann on laptop" in each for each in waits)
    await check_migrated(database)


async def test_a_deployment_that_does_not_wait_is_told_who_is_at_work(
    database: Database, directory: Path
) -> None:
    """It changes nothing."""
    write(
        directory,
        **{FIRST: "import asyncio\nasync def forward(database):\n  await asyncio.sleep(1)\n"},
    )
    slow = asyncio.create_task(Migrations(database, directory, ANN, QUICK).up(to=FIRST))
    await until_there_is(database, LOG, slow, by="ann")
    with pytest.raises(MigrationError, match=r"at work, by ann on laptop\. Its lease lasts until"):
        await Migrations(database, directory, ANN, QUICK._replace(wait=0)).up()
    assert len(await slow) == 1


async def test_a_run_that_lost_its_lease_writes_no_more(
    database: Database, tmp_path: Path, replica_set_uri: str
) -> None:
    """It is told so, and the run that took over does the work."""
    write(
        tmp_path,
        **{
            FIRST: "import time\nIN_TRANSACTION = False\nasync def forward(database):\n"
            "  if await database['done'].find_one() is None:\n"
            "    await database['done'].insert_one({})\n"
            "    time.sleep(1)\n"
        },
    )
    slow = asyncio.create_task(
        asyncio.to_thread(up_in_a_loop_of_its_own, replica_set_uri, database.name, tmp_path)
    )
    await until_there_is(database, "done", slow)
    assert len(await Migrations(database, tmp_path, ANN, QUICK).up()) == 1
    with pytest.raises(MigrationError, match="another run of migrations took over"):
        await slow
    [row] = await rows(database, LOG, _id=FIRST)
    assert row["state"] == "applied"


def up_in_a_loop_of_its_own(uri: str, name: str, directory: Path) -> None:
    """Apply all in another thread, whose loop the migration can block."""

    async def up() -> None:
        async with AsyncMongoClient[Row](uri) as client:
            await Migrations(client[name], directory, ANN, QUICK).up()

    asyncio.run(up())


# Killed


async def apply_all(database: Database, directory: str) -> None:
    """What the killed process does."""
    await Migrations(database, Path(directory), ANN, QUICK).up()


async def roll_back(database: Database, directory: str) -> None:
    """What it does on the way back: a migration without a transaction, then one in it."""
    await Migrations(database, Path(directory), ANN, QUICK).down(to=FIRST)


async def check_rolled_back(database: Database) -> None:
    """Each has been undone once, and only the first is applied."""
    members = [{"_id": each, "plan": "free"} for each in ("ann", "bob")]
    assert await rows(database, "members") == members
    assert sorted(row["by"] for row in await rows(database, "done")) == ["add_plan", "nobody"]
    assert set(await database["members"].index_information()) == {"_id_"}
    states = {row["_id"]: row["state"] for row in await rows(database, LOG) if "state" in row}
    assert states == {FIRST: "applied", SECOND: "rolled back", THIRD: "rolled back"}


async def prepare(database: Database, directory: Path, job: Job) -> None:
    """The members, migrated if the job is to go back."""
    await add_members(database)
    if job is roll_back:
        await apply_all(database, str(directory))


DIRECTIONS: Final = {
    "up": (apply_all, check_migrated, {"insert", "update", "createIndexes"}),
    "down": (roll_back, check_rolled_back, {"delete", "update", "dropIndexes"}),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_killed_at_any_command_and_run_again_it_comes_to_the_same_end(
    client: AsyncMongoClient[Row],
    database: Database,
    directory: Path,
    replica_set_uri: str,
    direction: str,
) -> None:
    """Each command of a run, at one of three moments: before, on its way, and answered."""
    job, check, kinds = DIRECTIONS[direction]
    await prepare(database, directory, job)
    counter = CommandCounter()
    async with AsyncMongoClient[Row](replica_set_uri, event_listeners=[counter]) as own:
        await job(own[database.name], str(directory))
    await check(database)
    sent = counter.sent
    assert {"find", "commitTransaction"} | kinds <= set(sent)
    everywhere = [turn * len(sent) // KILLS for turn in range(KILLS)]
    others = [client[f"{database.name}_{number}"] for number in range(AT_ONCE)]

    async def kill(turn: int) -> bool:
        other = others[turn % AT_ONCE]
        await client.drop_database(other.name)
        await prepare(other, directory, job)
        return await run_until_killed(
            replica_set_uri,
            other.name,
            job,
            str(directory),
            command=everywhere[turn],
            moment=MOMENTS[turn % len(MOMENTS)],
        )

    async def complete(turn: int) -> None:
        other = others[turn % AT_ONCE]
        await job(other, str(directory))
        await check(other)

    killed = 0
    for first in range(0, KILLS, AT_ONCE):
        turns = range(first, min(first + AT_ONCE, KILLS))
        killed += sum(await asyncio.gather(*map(kill, turns)))
        # The server would end them within a minute.
        await end_all_transactions(client)
        await asyncio.gather(*map(complete, turns))
    for other in others:
        await client.drop_database(other.name)
    assert killed >= KILLS * 9 // 10

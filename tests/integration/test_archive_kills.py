"""Archive runs that are killed, fail, stall or compete lose and double no row."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo import (
    CreditError,
    CreditLedger,
)
from credit_mongo.errors import ArchiveLostError, ArchiveRunningError
from credit_mongo.maintenance.archive.archiving import Archive, archive
from credit_mongo.maintenance.archive.moves import Mover
from credit_mongo.maintenance.archive.places import Collections
from credit_mongo.maintenance.archive.runs import Lane
from credit_mongo.maintenance.archive.spans import Span
from credit_mongo.maintenance.pace import Pace
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.archives import (
    LEASE_SECONDS,
    PLACES,
    PRICES,
    RunTask,
    check_whole,
    commands_of,
    dump,
    is_archived,
    is_killed,
    kept,
    make_small_slices,
    open_books,
    options,
    run_to_the_end,
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

UTC = timezone.utc


# How many runs to each kind of storage are killed, spread over all commands.
KILLS: Final = int(os.environ.get("ARCHIVE_KILLS", "6"))
AT_ONCE: Final = 3


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small slices in the child processes, too."""
    make_small_slices(monkeypatch.setattr)


@dataclass(frozen=True)
class Doomed:
    """A run that is killed at one of its commands, in a database of its own."""

    database: Database
    facts: dict[str, Any]
    number: int
    when_answered: bool

    async def prepare(self, template: dict[str, list[Row]]) -> None:
        """Restore the books as they were before any archive."""
        there = set(await self.database.list_collection_names())
        if not there:
            await CreditLedger(self.database, PRICES).ensure_indexes()
        for name in there - set(template):
            await self.database.drop_collection(name)
        for name, documents in template.items():
            await self.database[name].delete_many({})
            if documents:
                await self.database[name].insert_many(documents)

    async def kill(self, uri: str) -> bool:
        """Run it, and return whether it was killed at its command."""
        task = RunTask(uri, self.database.name, self.facts, self.number, self.when_answered)
        return await is_killed(task)

    async def complete(self, before: dict[str, dict[Any, Row]], cut_off: datetime) -> None:
        """Run it again to its end, and check everything."""
        await run_to_the_end(self.database, self.facts)
        directory = self.facts.get("directory")
        await check_whole(self.database, before, None if directory is None else Path(directory))
        assert await is_archived(self.database, cut_off)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("place", PLACES)
async def test_killed_at_each_command_and_run_again(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path, place: str
) -> None:
    """No row is lost or doubled at any moment. In the end, no old row is left."""
    books = await open_books(database, users=2, charges=4)
    before, template = await kept(database), await dump(database)
    facts = options(place, tmp_path / "first", books.cut_off)
    commands = await commands_of(replica_set_uri, database.name, facts)
    assert commands.count("commitTransaction") >= 4
    assert await is_archived(database, books.cut_off)
    killed = 0
    for first in range(0, KILLS, AT_ONCE):
        doomed = []
        for turn in range(first, min(first + AT_ONCE, KILLS)):
            # The number of commands varies by a few.
            number = turn if len(commands) < KILLS else turn * len(commands) // KILLS
            again, number = divmod(number, len(commands))
            own = client[f"{database.name}_{turn - first}"]
            facts = options(place, tmp_path / str(turn), books.cut_off)
            doomed.append(Doomed(own, facts, number, (turn + again) % 2 == 1))
        await asyncio.gather(*(run.prepare(template) for run in doomed))
        killed += sum(await asyncio.gather(*(run.kill(replica_set_uri) for run in doomed)))
        for run in doomed:
            found = await verify(run.database)
            assert found.findings == (), (commands[run.number], run)
        await end_all_transactions(client)
        if first % 2:
            # The run that completes a dead one's work may die, too.
            again_doomed = [replace(run, when_answered=not run.when_answered) for run in doomed]
            await asyncio.gather(*(run.kill(replica_set_uri) for run in again_doomed))
            await end_all_transactions(client)
        await asyncio.gather(*(run.complete(before, books.cut_off) for run in doomed))
    for number in range(AT_ONCE):
        await client.drop_database(f"{database.name}_{number}")
    assert killed >= KILLS * 9 // 10


FAILURES: dict[str, Row] = {
    "conflict": {"errorCode": 112, "errorLabels": ["TransientTransactionError"]},
    "not primary": {"errorCode": 10107},
    "connection": {"closeConnection": True},
    "refused": {"errorCode": 13},
    "applied, then an error": {"writeConcernError": {"code": 100, "errmsg": "x"}},
    "applied, then another": {"writeConcernError": {"code": 91, "errmsg": "x"}},
}


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("place", ["collections", "bson"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.cases(2)
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
    """The run goes on or ends with an error, and the next run completes it."""
    monkeypatch.setattr("credit_mongo.maintenance.archive.archiving._STEP_SECONDS", 1.0)
    monkeypatch.setattr("credit_mongo.maintenance.archive.moves._MOST_LATE", 1)
    app = f"archive-{uuid4().hex[:8]}"
    # After a shutdown error, the driver waits before it looks for another server.
    uri = with_options(replica_set_uri, appName=app, heartbeatFrequencyMS=500)
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
    async with AsyncMongoClient[Row](uri) as own:
        for number, name in enumerate(names):
            # Fail from the second command on, or this many times.
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


@pytest.mark.parametrize("place", ["collections", "bson"])
@pytest.mark.parametrize("slow", ["find", "delete", "commitTransaction"])
@pytest.mark.cases(2)
async def test_a_step_that_takes_too_long_is_begun_again(
    client: Client,
    database: Database,
    replica_set_uri: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
    slow: str,
) -> None:
    """The repeat has fewer rows, or the same rows if the commit's outcome is unknown."""
    monkeypatch.setattr("credit_mongo.maintenance.archive.archiving._STEP_SECONDS", 0.3)
    monkeypatch.setattr(Pace, "slow_down", lambda _pace: slowed.append(None))
    slowed: list[None] = []
    app = f"archive-{uuid4().hex[:8]}"
    block: Row = {"failCommands": [slow], "blockConnection": True, "blockTimeMS": 400}
    point: Row = {"mode": {"times": 2}, "data": {"appName": app, **block}}
    move, moves = Mover.move, list[Span]()

    async def move_slowly(mover: Mover, span: Span, lane: Lane) -> int:
        if not moves:
            await client.admin.command({"configureFailPoint": "failCommand", **point})
        moves.append(span)
        return await move(mover, span, lane)

    monkeypatch.setattr(Mover, "move", move_slowly)
    books = await open_books(database, users=2, charges=4)
    before = await kept(database)
    facts = options(place, tmp_path, books.cut_off)
    async with (
        AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own,
        failing(client, app, "off") as blocked,
    ):
        done = await archive(own[database.name], **facts)
    assert blocked.hits == 2
    assert slowed
    assert done.transactions
    assert await is_archived(database, books.cut_off)
    await check_whole(database, before, None if place == "collections" else tmp_path)
    await check_that_no_transaction_stays_open(client)


async def until_running(database: Database, lanes: int = 1) -> None:
    """Wait until a run has written this many manifests."""
    while True:
        if len(await rows(database, "archive_manifests", state="running")) == lanes:
            return
        await asyncio.sleep(0)


async def test_two_runs_at_once_do_not_overlap(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """The second gets an error and writes nothing. When the first has ended, another may run."""
    books = await open_books(database)
    before = await kept(database)
    app = f"archive-{uuid4().hex[:8]}"
    async with AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own:
        block: Row = {"failCommands": ["delete"], "blockConnection": True, "blockTimeMS": 1500}
        async with failing(client, app, {"times": 1}, **block):
            first = asyncio.create_task(archive(own[database.name], older_than=books.cut_off))
            await until_running(database, Collections.lanes)
            manifests = await rows(database, "archive_manifests")
            with pytest.raises(ArchiveRunningError) as caught:
                await archive(database, older_than=books.cut_off)
            assert caught.value.code == "ARCHIVE_RUNNING"
            assert caught.value.alive_until > datetime.now(UTC)
            assert await rows(database, "archive_manifests") == manifests
            await first
    await archive(database, older_than=books.cut_off)
    await check_whole(database, before)


@pytest.mark.usefixtures("small_slices")
async def test_many_runs_at_once_move_each_row_once(
    database: Database, replica_set_uri: str
) -> None:
    """One run has the lease. The others get an error or come after it."""
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
@pytest.mark.cases(1)
async def test_a_stalled_run_cannot_move_rows_after_its_lease(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path, place: str
) -> None:
    """After another has taken over, the server refuses the stalled run's writes."""
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


@pytest.mark.usefixtures("small_slices")
@pytest.mark.drivers("pymongo", "motor")
async def test_a_cancelled_run_leaves_nothing_open(client: Client, database: Database) -> None:
    """After Ctrl-C, the lease is free at once."""
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


async def test_charges_go_on_beside_the_archive_and_verification_finds_nothing(
    database: Database, tmp_path: Path
) -> None:
    """At every moment, sums, chains, refunds, keys and audit rows agree across the border."""
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
            # Archive up to the current moment: charges made now are old enough a moment later.
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

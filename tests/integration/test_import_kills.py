"""Imports that are killed, fail, compete or meet charges lose and double no row."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo import CreditError, CreditLedger, LedgerImportError, UserNotFoundError
from credit_mongo.maintenance.imports import (
    importing,
    long_histories,
    pages,
    planning,
    writing,
)
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.report import ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.deployments import CONFIG, Deployment, SqliteFile, check_books
from tests.integration.killed_process import MOMENTS, CommandCounter, run_until_killed
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

# How many runs are killed, spread over all commands.
KILLS: Final = int(os.environ.get("IMPORT_KILLS", "6"))
LEASE_SECONDS: Final = 1.0
SMALL: Final = (
    (pages, "_FIRST_PAGE", 2),
    (pages, "_LARGEST_PAGE", 2),
    (pages, "_MOST_ROWS", 11),
    (planning, "ROWS_PER_PIECE", 4),
    (writing, "ROWS_PER_PIECE", 4),
    (long_histories, "ROWS_PER_PIECE", 4),
    (importing, "_KEYS_PER_PAGE", 5),
)


def busy(users: int = 6, charges: int = 5) -> Deployment:
    """A deployment with enough rows for several pages and batches of the small sizes."""
    deployment = Deployment()
    for number in range(users):
        deployment.sign_up(f"u{number}", 100)
    go_on(deployment, charges)
    return deployment


def go_on(deployment: Deployment, charges: int) -> None:
    """Charge each user, with keys, and refuse some."""
    for number in range(charges):
        for user_id in deployment.users:
            key = f"{user_id}-{len(deployment.rows['Transaction'])}"
            deployment.move(user_id, "charge", -1, key=key if number % 2 else None)
        deployment.fail("u1")


def make_small() -> None:
    """Use small pages and batches."""
    for module, name, value in SMALL:
        setattr(module, name, value)


async def import_all(database: Database, url: str) -> ImportReport:
    """Import everything that is new."""
    return await import_credit_sdk(
        source_of(url, Names.of({})),
        LedgerDatabase.of(database),
        ImportRules(),
        lease_seconds=LEASE_SECONDS,
    )


async def import_in_small_parts(database: Database, url: str) -> ImportReport:
    """The same, for a child process that may come after one that was killed."""
    make_small()
    return await import_to_the_end(database, url)


async def import_to_the_end(database: Database, url: str) -> ImportReport:
    """Wait for the lease of a run that was killed, and import."""
    while True:
        try:
            return await import_all(database, url)
        except LedgerImportError as error:
            assert "another import" in str(error)  # noqa: PT017
            await asyncio.sleep(LEASE_SECONDS / 4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small pages and batches in this process."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)


async def open_ledger(database: Database) -> None:
    """A ledger without users."""
    async with CreditLedger(database, CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts


async def all_rows(database: Database) -> dict[str, list[Row]]:
    """What an import writes."""
    names = ("users", "transactions", "audit_logs", "idempotency_records")
    return {name: sorted(await rows(database, name), key=lambda r: str(r["_id"])) for name in names}


@pytest.mark.usefixtures("small")
async def test_killed_at_each_command_and_run_again(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The books are right at every moment, and in the end as if nothing had happened."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(busy())
    whole = client[f"{database.name}_whole"]
    await open_ledger(whole)
    counter = CommandCounter()
    async with AsyncMongoClient[Row](
        replica_set_uri, tz_aware=True, event_listeners=[counter]
    ) as counted:
        assert (await import_all(counted[whole.name], file.url)).agrees
    expected, commands = await all_rows(whole), len(counter.sent)
    assert {"insert", "update", "commitTransaction", "aggregate", "find"} <= set(counter.sent)
    killed = 0
    for turn in range(KILLS):
        own = client[f"{database.name}_{turn}"]
        await open_ledger(own)
        command, moment = turn * commands // KILLS, MOMENTS[turn % 3]
        for _ in range(1 + turn % 2):
            # The run that completes a dead one's work may die, too.
            killed += await run_until_killed(
                replica_set_uri,
                own.name,
                import_in_small_parts,
                file.url,
                command=command,
                moment=moment,
            )
            await end_all_transactions(client)
            assert (await verify(own)).findings == (), (command, moment)
        report = await import_to_the_end(own, file.url)
        assert report.agrees, report.to_dict()
        assert await all_rows(own) == expected
        await check_books(own)
        await client.drop_database(own.name)
    await client.drop_database(whole.name)
    assert killed >= KILLS * 9 // 10


@pytest.mark.usefixtures("small")
async def test_killed_while_the_deployment_goes_on(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The next run imports the rest, and what is new."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = busy(users=4, charges=2)
    file.save(deployment)
    await open_ledger(database)
    for command in (12, 30, 45):
        await run_until_killed(
            replica_set_uri,
            database.name,
            import_in_small_parts,
            file.url,
            command=command,
            moment=MOMENTS[1],
        )
        await end_all_transactions(client)
        go_on(deployment, 1)
        deployment.sign_up(f"new{command}", 5)
        file.save(deployment)
    report = await import_to_the_end(database, file.url)
    assert report.agrees, report.to_dict()
    await check_books(database)


FAILURES: dict[str, Row] = {
    "conflict": {"errorCode": 112, "errorLabels": ["TransientTransactionError"]},
    "not primary": {"errorCode": 10107},
    "connection": {"closeConnection": True},
    "refused": {"errorCode": 13},
    "applied, then an error": {"writeConcernError": {"code": 100, "errmsg": "x"}},
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.cases(2)
async def test_failures_at_each_kind_of_command(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path, failure: str
) -> None:
    """The run goes on or ends with an error, and the next run completes it."""
    app = f"import-{uuid4().hex[:8]}"
    uri = with_options(replica_set_uri, appName=app, heartbeatFrequencyMS=500)
    data = FAILURES[failure]
    names = ["find", "insert", "update", "aggregate", "commitTransaction"]
    if "writeConcernError" in data:
        names = ["commitTransaction"]
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = busy(users=3, charges=2)
    file.save(deployment)
    await open_ledger(database)
    async with AsyncMongoClient[Row](uri, tz_aware=True) as own:
        for name in names:
            times: Any = {"times": 2}
            try:
                async with failing(client, app, times, failCommands=[name], **data):
                    await asyncio.wait_for(import_all(own[database.name], file.url), 60)
            except (PyMongoError, CreditError):
                pass
            await check_that_no_transaction_stays_open(client)
            await end_all_transactions(client)
            assert (await verify(database)).findings == (), name
            go_on(deployment, 1)
            file.save(deployment)
    report = await import_to_the_end(database, file.url)
    assert report.agrees, report.to_dict()
    await check_books(database)


@pytest.mark.usefixtures("small")
async def test_charges_beside_the_import_are_never_lost(database: Database, tmp_path: Path) -> None:
    """The import never overwrites an account that the ledger has changed."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = busy(users=12, charges=6)
    file.save(deployment)
    await open_ledger(database)
    charged: dict[str, int] = dict.fromkeys(deployment.users, 0)
    is_done = asyncio.Event()

    async def charge(ledger: CreditLedger, user_id: str) -> None:
        while not is_done.is_set():
            try:
                await ledger.charge(user_id, "post", amount=1)
                charged[user_id] += 1
            except UserNotFoundError:
                pass
            await asyncio.sleep(0.01)

    async with CreditLedger(database, CONFIG) as ledger:
        charging = [asyncio.create_task(charge(ledger, each)) for each in ("u1", "u7", "u11")]
        report = await import_all(database, file.url)
        is_done.set()
        await asyncio.gather(*charging)
    assert not report.agrees
    for user in await rows(database, "users"):
        name = user["_id"]
        there = deployment.users[name]["credits"]
        if not any(trouble.user_id == name for trouble in report.troubles):
            assert user["credits"] == there - charged[name]
    assert sum(charged.values()) > 0
    assert (await verify(database)).findings == ()


@pytest.mark.usefixtures("small")
async def test_two_imports_at_once_do_not_overlap(database: Database, tmp_path: Path) -> None:
    """One has the lease. The others say so."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(busy())
    await open_ledger(database)
    found = await asyncio.gather(
        *(import_all(database, file.url) for _ in range(4)), return_exceptions=True
    )
    assert any(isinstance(each, ImportReport) for each in found)
    for each in found:
        assert isinstance(each, ImportReport | LedgerImportError), each
    assert (await import_to_the_end(database, file.url)).agrees
    await check_books(database)


@pytest.mark.usefixtures("small")
async def test_a_cancelled_import_leaves_nothing_open(
    client: Client, database: Database, tmp_path: Path
) -> None:
    """After Ctrl-C, the lease is free at once."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(busy())
    await open_ledger(database)
    for pause in (0.02, 0.1, 0.3):
        running = asyncio.create_task(import_all(database, file.url))
        await asyncio.sleep(pause)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await check_that_no_transaction_stays_open(client)
        assert (await verify(database)).findings == ()
    assert (await import_to_the_end(database, file.url)).agrees
    await check_books(database)


async def until_begun(database: Database) -> None:
    """Wait until an import has written a user."""
    while True:
        if await rows(database, "users"):
            return
        await asyncio.sleep(0)


@pytest.mark.usefixtures("small")
async def test_a_stalled_import_writes_nothing_after_its_lease(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """After another run has taken over, the server refuses the stalled run's transactions."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(busy())
    await open_ledger(database)
    app = f"import-{uuid4().hex[:8]}"
    async with AsyncMongoClient[Row](
        with_options(replica_set_uri, appName=app), tz_aware=True
    ) as own:
        slow = asyncio.create_task(import_all(own[database.name], file.url))
        await until_begun(database)
        block: Row = {"failCommands": ["update"], "blockConnection": True, "blockTimeMS": 3000}
        async with failing(client, app, **block):
            report = await import_to_the_end(database, file.url)
            assert report.agrees, report.to_dict()
        expected = await all_rows(database)
        [result] = await asyncio.gather(slow, return_exceptions=True)
    assert isinstance(result, LedgerImportError), result
    assert "another import took over" in str(result)
    assert await all_rows(database) == expected
    await check_books(database)

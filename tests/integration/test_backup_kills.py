"""Backups, restores and prunings that are killed: whole, or they can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import BackupRunningError, ConfigurationError, CreditLedger
from credit_mongo.maintenance.backup import restoring
from credit_mongo.maintenance.backup.chains import Backups, check_chain
from credit_mongo.maintenance.backup.files import FileWriter
from credit_mongo.maintenance.backup.making import Backup, make_backup
from credit_mongo.maintenance.backup.places import place_of
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import PRICES, contents, empty_database, fill, use
from tests.integration.killed_process import MOMENTS, CommandCounter, run_until_killed
from tests.integration.promises import Client, Database, Row, end_all_transactions

# How many runs of each kind are killed, spread over all that they do.
KILLS: Final = int(os.environ.get("BACKUP_KILLS", "4"))
LEASE_SECONDS: Final = 0.05


def die_at_step(number: int, count: Callable[[], None] = lambda: None) -> None:
    """Die at the ``number``-th step in the file system (-1: at none)."""
    done = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            count()
            return work(*arguments, **options)

        return run

    for owner, name in (
        *((os, each) for each in ("fsync", "rename", "unlink", "rmdir")),
        *((Path, each) for each in ("mkdir", "rename")),
        (FileWriter, "_store"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))


async def back_up(database: Database, word: str) -> Backup:
    """Make a backup in the child process, as ``word`` says."""
    options = json.loads(word)
    die_at_step(options.pop("step", -1))
    return await make_backup(database, lease_seconds=LEASE_SECONDS, **options)


async def bring_back(database: Database, word: str) -> object:
    """Restore in the child process, in small batches."""
    restoring._DOCUMENTS_PER_INSERT = 4  # type: ignore[misc]
    restoring._DOCUMENTS_PER_STEP = 5  # type: ignore[misc]
    restoring._CHANGES_PER_STEP = 20  # type: ignore[misc]
    return await restore(database, **json.loads(word))


async def commands_of(uri: str, database: Database, job: Any, word: str) -> int:
    """Return how many commands a job sends."""
    counter = CommandCounter()
    async with AsyncMongoClient[Row](uri, tz_aware=True, event_listeners=[counter]) as client:
        await job(client[database.name], word)
    return len(counter.sent)


async def back_up_again(database: Database, place: Path, **options: Any) -> Backup:
    """Repeat it while a dead run's lease lasts."""
    while True:
        try:
            return await make_backup(database, place, lease_seconds=LEASE_SECONDS, **options)
        except BackupRunningError:
            continue


def check_place(path: Path) -> int:
    """Check that every backup that is there is whole. Returns how many there are."""
    place = place_of("place", path)
    backups = Backups.of(place)
    assert backups.broken == []
    for manifest in backups.manifests:
        check_chain(place, (manifest,), None)
    if backups.manifests:
        check_chain(place, backups.chain_to(None), None)
    return len(backups.manifests)


@pytest.mark.thorough
@pytest.mark.parametrize("incremental", [False, True])
async def test_a_killed_backup_is_whole_or_not_there(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path, incremental: bool
) -> None:
    """Killed at commands and at steps in the file system; the next run leaves nothing of it."""
    ledger = await fill(database, opening_credits=10 * KILLS + 100)
    place = tmp_path / "place"
    await back_up_again(database, place)
    options: dict[str, Any] = {"place": str(place), "incremental": incremental}
    commands = 8 if incremental else 30
    killed = 0
    for number in range(KILLS):
        await use(ledger)
        before = check_place(place)
        if number % 2:
            word = json.dumps(options)
            command, moment = number * commands // KILLS, MOMENTS[number % 3]
        else:
            word = json.dumps({**options, "step": number * 40 // KILLS})
            command, moment = -1, MOMENTS[0]
        killed += await run_until_killed(
            replica_set_uri, database.name, back_up, word, command=command, moment=moment
        )
        await end_all_transactions(client)
        assert check_place(place) in (before, before + 1)
        await back_up_again(database, place, incremental=incremental)
        assert not [each for each in place.iterdir() if each.name.startswith(".")]
    assert killed >= KILLS // 2
    async with empty_database(client) as other:
        await restore(other, place)
        assert await contents(other) == await contents(database)


async def test_a_killed_restore_goes_on(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """Until it has ended no ledger opens, and in the end everything is there once."""
    ledger = await fill(database)
    place = tmp_path / "place"
    await make_backup(database, place)
    await use(ledger, rounds=3)
    await make_backup(database, place, incremental=True)
    expected = await contents(database)
    word = json.dumps({"place": str(place)})
    async with empty_database(client) as other:
        commands = await commands_of(replica_set_uri, other, bring_back, word)
    killed = 0
    for number in range(KILLS):
        async with empty_database(client) as other:
            # Twice: a run that goes on is killed, too.
            for share in (number, (number * 7 + 3) % KILLS):
                killed += await run_until_killed(
                    replica_set_uri,
                    other.name,
                    bring_back,
                    word,
                    command=share * commands // KILLS,
                    moment=MOMENTS[number % 3],
                )
                await end_all_transactions(client)
                await check_that_it_looks_like_what_it_is(other, expected)
            restored = await restore(other, place) if await is_unfinished(other) else None
            assert await contents(other) == expected
            assert restored is None or restored.verification.findings == ()
    assert killed >= KILLS


async def is_unfinished(database: Database) -> bool:
    """Whether the database has no ledger yet."""
    row = await database["ledger_settings"].find_one({"_id": "transactions"})
    return row is None or "restoring" in row


async def check_that_it_looks_like_what_it_is(database: Database, expected: Any) -> None:
    """Check that a ledger opens only if everything is there."""
    if not await database.list_collection_names():
        return
    try:
        async with CreditLedger(database, PRICES) as ledger:
            await ledger.get_user("user-0")
    except ConfigurationError:
        assert await is_unfinished(database)
    else:
        assert await contents(database) == expected


@pytest.mark.thorough
async def test_a_killed_pruning_leaves_chains_that_can_be_restored(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """A chain loses its newest backups first, and each at once."""
    ledger = await fill(database)
    template = tmp_path / "template"
    await make_backup(database, template)
    for _ in range(2):
        await use(ledger)
        await make_backup(database, template, incremental=True)
    await make_backup(database, template)
    killed = 0
    for number in range(KILLS):
        place = Path(shutil.copytree(template, tmp_path / f"place-{number}"))
        word = json.dumps(
            {
                "place": str(place),
                "incremental": True,
                "keep": "0h",
                "step": 20 + number * 60 // KILLS,
            }
        )
        killed += await run_until_killed(
            replica_set_uri, database.name, back_up, word, command=-1, moment=MOMENTS[0]
        )
        await end_all_transactions(client)
        check_place(place)
        await back_up_again(database, place, keep="0h")
        assert check_place(place) == 1
    assert killed

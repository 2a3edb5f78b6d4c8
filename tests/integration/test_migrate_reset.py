"""``credit-mongo migrate reset``: empties databases made for development, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from credit_mongo import CreditConfig, CreditLedger, UserMapping
from credit_mongo.maintenance.migrations.development import mark_for_development, reset
from credit_mongo.maintenance.migrations.log import Operator
from credit_mongo.maintenance.migrations.runner import Migrations
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import run, where
from tests.integration.killed_process import MOMENTS, run_until_killed
from tests.integration.promises import Client, Database, end_all_transactions, rows

FIRST = "20260101000000_seed"
SEED = """
async def forward(database):
    await database["members"].insert_one({"_id": "ann"})
"""
CONFIG = CreditConfig(costs={"post": {"default": 10}}, users=UserMapping(seq="turn"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One migration."""
    (tmp_path / f"{FIRST}.py").write_text(SEED, encoding="utf-8")
    return tmp_path


async def reset_it(database: Database, directory: str) -> None:
    """What the killed process does."""
    ledger = LedgerDatabase.of(database, CONFIG.collections, CONFIG.users)
    await reset(ledger, Migrations(database, Path(directory), Operator("ann", "laptop")))


async def make(database: Database) -> None:
    """A database for development, with data."""
    await mark_for_development(LedgerDatabase.of(database, CONFIG.collections, CONFIG.users))
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=5)
    await database["members"].insert_many([{"_id": "bob"}, {"_id": "cy"}])


async def check_new(database: Database) -> None:
    """Only what the migration wrote is there, and the ledger's indexes."""
    assert await rows(database, "members") == [{"_id": "ann"}]
    assert await rows(database, "users") == await rows(database, "transactions") == []
    async with CreditLedger(database, CONFIG) as ledger:
        report = await ledger.ensure_indexes()
        assert {each.state for each in report.changes} == {"kept"}


async def test_a_database_for_development_is_emptied_and_made_anew(
    database: Database, replica_set_uri: str, directory: Path
) -> None:
    """As often as one likes."""
    await make(database)
    here = (*where(replica_set_uri, database), "--directory", str(directory))
    for _ in range(2):
        code, output, errors = await run("migrate", "reset", *here, "--yes")
        assert (code, errors) == (0, "")
        assert output.endswith(f"{database.name}: 1 migration done\n")
        await check_new(database)


async def test_killed_and_run_again_it_comes_to_the_same_end(
    client: Client, database: Database, replica_set_uri: str, directory: Path
) -> None:
    """The mark and the settings are never gone."""
    await make(database)
    for number, command in enumerate((8, 14, 20)):
        moment = MOMENTS[number % len(MOMENTS)]
        await run_until_killed(
            replica_set_uri,
            database.name,
            reset_it,
            str(directory),
            command=command,
            moment=moment,
        )
        await end_all_transactions(client)
        await database["ledger_migrations"].delete_one({"_id": "lease"})
    await reset_it(database, str(directory))
    await check_new(database)


async def test_no_other_database_is_reset(
    database: Database, replica_set_uri: str, directory: Path, tmp_path: Path
) -> None:
    """Nor can one be marked that has data, or one be emptied whose name is not given again."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=5)
    here = where(replica_set_uri, database)
    options = ("--directory", str(directory))
    code, output, errors = await run("init", *here, "--development")
    assert (code, output) == (2, "")
    assert "only a new database can be marked" in errors
    for arguments, told in (
        ((*here, "--yes"), "was not made for development"),
        (here, "give --database NAME and --yes"),
        ((*here[:2], "--yes"), "give --database NAME and --yes"),
    ):
        code, output, errors = await run(
            "migrate", "reset", *arguments, *options, MONGODB_DATABASE=database.name
        )
        assert (code, output, len(errors.splitlines())) == (2, "", 1)
        assert told in errors
    assert len(await rows(database, "users")) == 1


async def test_init_marks_a_new_database(database: Database, replica_set_uri: str) -> None:
    """A dry run does not."""
    here = where(replica_set_uri, database)
    assert (await run("init", *here, "--development", "--dry-run"))[0] == 0
    assert await database.list_collection_names() == []
    assert (await run("init", *here, "--development"))[0] == 0
    assert [row["_id"] for row in await rows(database, "ledger_migrations")] == ["development"]

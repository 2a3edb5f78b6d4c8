"""The cleanup of idempotency records removes expired ones, nothing else, and can be repeated."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import CreditConfig, CreditError, CreditLedger, InvalidRequestError
from credit_mongo.cli import main
from credit_mongo.maintenance.cleanup import clean_up
from tests.integration.commands import run, run_on_terminal, run_program, where
from tests.integration.killed_process import MOMENTS, CommandCounter, run_until_killed
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    count,
    failing,
    rows,
    with_options,
)

UTC = timezone.utc
HOUR = timedelta(hours=1)
RECORDS = "idempotency_records"


def record(key: str, expires_at: Any) -> Row:
    """Return a record of other software."""
    return {"_id": key, "userId": "ada", "expiresAt": expires_at}


async def without_ttl(database: Database, *, is_indexed: bool = True) -> None:
    """Remove the TTL index, as those do who turn TTL off."""
    await database[RECORDS].drop_indexes()
    if is_indexed:
        await database[RECORDS].create_index("expiresAt")


async def fill(database: Database, expired: int = 2500, live: int = 10) -> set[str]:
    """Insert expired records and others that must stay: live ones, and some without a date."""
    await without_ttl(database)
    now = datetime.now(UTC)
    gone = [record(f"old {n}", now - 2 * HOUR - n * timedelta(seconds=1)) for n in range(expired)]
    odd: list[Any] = [None, "2020-01-01", 0, 1.5, True, {"$date": 0}, [], "0001-01-01"]
    stays = [record(f"live {n}", now + HOUR) for n in range(live)]
    stays += [record(f"odd {n}", value) for n, value in enumerate(odd)]
    # A running request may still have seen this record as live.
    stays += [record("just now", now - timedelta(minutes=50)), {"_id": "none", "userId": "ada"}]
    await database[RECORDS].insert_many([*gone, *stays])
    return {each["_id"] for each in stays}


async def keys(database: Database) -> set[str]:
    """Return the keys that are left."""
    return {each["_id"] for each in await rows(database, RECORDS)}


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("is_indexed", [True, False])
async def test_expired_records_are_removed_and_nothing_else(
    database: Database, *, is_indexed: bool
) -> None:
    """The server's clock and the dates decide. An index helps but is not needed."""
    stays = await fill(database)
    await without_ttl(database, is_indexed=is_indexed)
    before = await rows(database, RECORDS)
    planned = await clean_up(database, dry_run=True)
    assert (planned.removed, planned.dry_run) == (2500, True)
    assert await rows(database, RECORDS) == before
    told: list[tuple[int, int | None]] = []
    done = await clean_up(database, on_progress=lambda *progress: told.append(progress))
    assert (done.removed, done.dry_run) == (2500, False)
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]
    assert await keys(database) == stays
    again = await clean_up(database)
    assert again.removed == 0
    assert again.before >= done.before
    soon = await clean_up(database, grace_seconds=0)
    assert soon.removed == 1
    assert await keys(database) == stays - {"just now"}


@pytest.mark.drivers("pymongo", "motor")
async def test_the_ledgers_own_keys_are_removed_when_they_expire(
    database: Database, config: CreditConfig
) -> None:
    """Expired keys are forgotten. Live ones still answer."""
    past = datetime.now(UTC) - timedelta(days=3)
    async with CreditLedger(database, config, clock=lambda: past) as ledger:
        await ledger.ensure_indexes()
        await without_ttl(database)
        await ledger.create_user("ada", credits=100)
        await ledger.charge("ada", "translate", idempotency_key="over")
    async with CreditLedger(database, config) as ledger:
        await ledger.charge("ada", "translate", idempotency_key="new")
        await check_promises(database)
        assert (await clean_up(database)).removed == 1
        assert await keys(database) == {"new"}
        assert (await ledger.charge("ada", "translate", idempotency_key="new")).replayed
        assert not (await ledger.charge("ada", "translate", idempotency_key="over")).replayed


async def test_a_key_reused_during_the_cleanup_stays(
    database: Database, client: Client, replica_set_uri: str
) -> None:
    """The record was expired when it was found, but not when it was to be removed."""
    await fill(database, expired=10)
    uri = with_options(replica_set_uri, appname="slow")
    data = {"failCommands": ["delete"], "blockConnection": True, "blockTimeMS": 800}
    async with (
        AsyncMongoClient[Row](uri, tz_aware=True) as slow,
        failing(client, "slow", **data) as failure,
    ):
        cleaning = asyncio.create_task(clean_up(slow[database.name]))
        await asyncio.sleep(0.3)
        later = datetime.now(UTC) + HOUR
        await database[RECORDS].replace_one({"_id": "old 3"}, record("old 3", later))
        assert (await cleaning).removed == 9
    assert failure.hits == 1
    assert "old 3" in await keys(database)


async def clean(database: Database, _: str) -> object:
    """Clean up in a child process."""
    return await clean_up(database)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.cases(1)
async def test_a_run_killed_at_any_command_is_completed_by_the_next(
    database: Database, replica_set_uri: str, moment: str
) -> None:
    """Each record is removed once, and live ones stay."""
    stays = await fill(database)
    listener = CommandCounter()
    async with AsyncMongoClient[Row](replica_set_uri, event_listeners=[listener]) as client:
        await clean_up(client[database.name])
    assert listener.sent.count("delete") == 3
    for command in range(MOMENTS.index(moment), len(listener.sent), 2):
        await database[RECORDS].delete_many({})
        stays = await fill(database)
        assert await run_until_killed(
            replica_set_uri, database.name, clean, "", command=command, moment=moment
        )
        assert stays <= await keys(database)
        await clean_up(database)
        assert await keys(database) == stays


async def test_a_cleanup_survives_the_loss_of_its_server(
    database: Database, client: Client, replica_set_uri: str
) -> None:
    """The cleanup continues with another cursor."""
    stays = await fill(database)
    uri = with_options(replica_set_uri, appname="unlucky")
    data = {"failCommands": ["getMore", "delete"], "closeConnection": True}
    async with (
        AsyncMongoClient[Row](uri, tz_aware=True) as unlucky,
        failing(client, "unlucky", {"times": 3}, **data) as failure,
    ):
        assert (await clean_up(unlucky[database.name])).removed == 2500
    assert failure.hits == 3
    assert await keys(database) == stays


@pytest.mark.drivers("pymongo", "motor")
async def test_many_runs_at_once_remove_each_record_once(database: Database) -> None:
    """This happens when every machine starts the cleanup by its clock."""
    stays = await fill(database)
    done = await asyncio.gather(*(clean_up(database) for _ in range(4)))
    assert sum(each.removed for each in done) == 2500
    assert await keys(database) == stays


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), 10**9, True, "60", None])
async def test_a_bad_grace_is_refused(database: Database, grace: Any) -> None:
    """The refusal comes before anything is removed."""
    await fill(database, expired=1)
    with pytest.raises(InvalidRequestError) as caught:
        await clean_up(database, grace_seconds=grace)
    assert caught.value.field == "grace_seconds"
    assert "old 0" in await keys(database)


def _echo(moment: datetime) -> datetime:
    return moment


async def test_audit_rows_of_old_refusals_are_removed_and_no_others(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """Rows of invented names and empty accounts do not pile up. What was done stays on record."""
    now = datetime.now(UTC)
    for days in (40, 20, 0):
        clock = partial(_echo, now - timedelta(days=days))
        async with CreditLedger(database, config, clock=clock) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user(f"ann {days}", credits=10)
            for user_id in (f"ann {days}", "nobody", "somebody"):
                with pytest.raises(CreditError):
                    await ledger.charge(user_id, "generate-post", amount=100)
    everything = await rows(database, "audit_logs")
    assert (await clean_up(database)).refusals_removed == 0
    here = where(replica_set_uri, database)
    code, output, errors = await run("cleanup", *here, "--refusals-older-than", "30", "--dry-run")
    assert (code, errors) == (0, "")
    assert f"{database.name}: 3 audit rows of refusals before " in output
    assert await rows(database, "audit_logs") == everything
    code, output, errors = await run("cleanup", *here, "--refusals-older-than", "30", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output)["refusals_removed"] == 3
    stayed = await rows(database, "audit_logs")
    assert len(stayed) == len(everything) - 3
    old = [row for row in stayed if row["createdAt"] < now - timedelta(days=30)]
    assert [row["status"] for row in old] == ["success"]
    await check_promises(database)
    day = timedelta(days=1).total_seconds()
    assert (await clean_up(database, refusals_older_than_seconds=day)).refusals_removed == 3
    assert await count(database, "audit_logs", status="failed") == 3
    assert await count(database, "audit_logs", status="success") == 3


@pytest.mark.parametrize("age", [0, 3599, float("nan"), 10**10, True, "60"])
async def test_a_bad_age_of_refusals_is_refused(database: Database, age: Any) -> None:
    """The refusals of the last hour always stay, so a smaller age is refused at once."""
    await fill(database, expired=1)
    with pytest.raises(InvalidRequestError) as caught:
        await clean_up(database, refusals_older_than_seconds=age)
    assert caught.value.field == "refusals_older_than_seconds"
    assert "old 0" in await keys(database)


async def test_the_command_says_what_it_did(
    replica_set_uri: str, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints a line, or JSON. The script does the same."""
    await database.create_collection("users")
    stays = await fill(database)
    here = where(replica_set_uri, database)
    code, output, errors = await run("cleanup", *here, "--dry-run")
    assert (code, errors) == (0, "")
    assert output.startswith(f"{database.name}: 2500 records that expired before ")
    assert "would be removed (dry run" in output
    assert await count(database, RECORDS) == 2500 + len(stays)
    code, output, errors = await run_program(*here, "--json", program=("scripts/cleanup.py",))
    assert (code, errors) == (0, "")
    facts = json.loads(output)
    assert (facts["database"], facts["removed"], facts["dry_run"]) == (database.name, 2500, False)
    assert datetime.fromisoformat(facts["before"]).tzinfo is not None
    code, shown = await run_on_terminal("cleanup", *here, "--grace", "60")
    assert code == 0
    assert "1 records that expired before" in shown
    for wrong in ("-1", "nan", "much"):
        assert await asyncio.to_thread(main, ["cleanup", *here, "--grace", wrong]) == 2
        output, errors = capfd.readouterr()
        assert (output, errors.count("\n")) == ("", 1), errors


async def test_the_configuration_says_where_the_records_are(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The configuration's collection names count."""
    await database.create_collection("users")
    stays = await fill(database, expired=3)
    await database[RECORDS].rename("keys")
    config = tmp_path / "config.json"
    config.write_text('{"costs": {}, "collections": {"idempotency_records": "keys"}}')
    here = where(replica_set_uri, database)
    code, output, errors = await run("cleanup", *here, "--config", str(config))
    assert (code, errors) == (0, "")
    assert output.startswith(f"{database.name}: 3 records that expired before ")
    assert {row["_id"] for row in await rows(database, "keys")} == stays

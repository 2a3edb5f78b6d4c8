"""The log of commands names them with their durations, and shows no value."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo import (
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    InsufficientCreditsError,
    UserNotFoundError,
)
from credit_mongo.observability import CommandLog
from tests.integration.promises import Client, Database, failing, with_options

APP = "logged"
CONFIG = CreditConfig(costs={"post": {"default": 10}}, operation_timeout_seconds=5)
WORD = "opensesame"
KINDS: dict[str, Any] = {"pymongo": AsyncMongoClient, "motor": AsyncIOMotorClient}


@asynccontextmanager
async def logged_ledger(
    kind: str, uri: str, database: Database, log: CommandLog
) -> AsyncIterator[tuple[Any, CreditLedger]]:
    """A client with the log, and a ledger with one user on it."""
    own = KINDS[kind](with_options(uri, appName=APP), tz_aware=True, event_listeners=[log])
    try:
        async with CreditLedger(own[database.name], CONFIG) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user(f"{WORD}-user", credits=100)
            yield own, ledger
    finally:
        closing = own.close()
        if closing is not None:
            await closing


def records_in(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What the log of commands has said."""
    return [each for each in caplog.records if each.name == "credit_mongo.commands"]


async def charge(ledger: CreditLedger, number: int = 1, **options: Any) -> None:
    """One charge with values that no log may show."""
    await ledger.charge(
        f"{WORD}-user",
        "post",
        idempotency_key=f"{WORD}-key-{number}",
        metadata={f"{WORD}-name": WORD},
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_slow_commands_are_logged_and_others_are_not(
    *,
    client: Client,
    database: Database,
    replica_set_uri: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """With collection, name and duration, as text and as fields of the record."""
    log = CommandLog(slow_milliseconds=400)
    async with logged_ledger(kind, replica_set_uri, database, log) as (_, ledger):
        caplog.clear()
        async with failing(
            client,
            APP,
            {"times": 1},
            failCommands=["update"],
            blockConnection=True,
            blockTimeMS=500,
        ):
            await charge(ledger)
    [record] = records_in(caplog)
    assert record.levelno == logging.WARNING
    assert f"slow command: update on {database.name}.users took " in record.getMessage()
    assert record.command_name == "update"
    assert (record.database_name, record.collection_name) == (database.name, "users")
    assert 500 <= record.duration_milliseconds < 5000
    assert record.error_name is None


@pytest.mark.parametrize("kind", KINDS)
async def test_at_debug_every_command_is_logged_and_no_value_is(
    *,
    client: Client,
    database: Database,
    replica_set_uri: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Neither of the ledger's commands nor of the application's, nor in an error."""
    async with logged_ledger(kind, replica_set_uri, database, CommandLog()) as (own, ledger):
        caplog.set_level(logging.DEBUG, logger="credit_mongo.commands")
        await charge(ledger)
        with pytest.raises(InsufficientCreditsError):
            await charge(ledger, 2, amount=1000)
        async with failing(client, APP, {"times": 1}, failCommands=["update"], errorCode=112):
            await ledger.grant(f"{WORD}-user", 5, action="gift")
        await ledger.get_history(f"{WORD}-user")
        notes = own[database.name]["notes"]
        await notes.insert_one({"_id": WORD, "text": WORD})
        for command in (
            {"insert": "notes", "documents": [{"_id": WORD}]},
            {"find": "notes", "filter": {f"${WORD}": 1}},
            {"usersInfo": WORD},
            {WORD: WORD},
        ):
            with contextlib.suppress(PyMongoError):
                await own[database.name].command(command)
        await notes.delete_many({"text": WORD})
    lines = [each.getMessage() for each in records_in(caplog)]
    # Of the command that does not exist, the name is what was sent.
    assert [each for each in lines if WORD in each and not each.startswith(f"{WORD} on ")] == []
    assert {record.levelno for record in records_in(caplog)} == {logging.DEBUG}
    found = {(each.command_name, each.collection_name) for each in records_in(caplog)}
    assert found >= {
        *(("insert", "transactions"), ("insert", "audit_logs"), ("update", "users")),
        *(("commitTransaction", None), ("delete", "notes"), ("usersInfo", None)),
    }
    errors = {each.error_name for each in records_in(caplog)}
    assert errors >= {None, "WriteConflict", "BadValue"}


async def test_waiting_for_news_is_not_slow(
    database: Database, replica_set_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A change stream without changes waits on the server for a second at a time."""
    log = CommandLog(slow_milliseconds=300)
    async with logged_ledger("pymongo", replica_set_uri, database, log) as (own, _):
        caplog.clear()
        async with await own[database.name]["users"].watch(max_await_time_ms=600) as changes:
            assert await changes.try_next() is None
    assert not records_in(caplog)


async def test_what_never_ended_is_forgotten(database: Database, replica_set_uri: str) -> None:
    """A cancelled command is never told to have ended, and must not be kept for ever."""
    log = CommandLog()
    async with logged_ledger("pymongo", replica_set_uri, database, log) as (own, _):
        for number in range(10_050):
            log._collections[-number - 1] = "users"
        await own[database.name]["users"].find_one({})
        await asyncio.sleep(0)
        assert len(log._collections) < 10


@pytest.mark.parametrize("milliseconds", [-1, True, "1000", None, float("nan"), 10**9])
def test_a_limit_that_is_no_number_of_milliseconds_is_refused(milliseconds: Any) -> None:
    """By the name of the argument."""
    with pytest.raises(ConfigurationError) as refused:
        CommandLog(slow_milliseconds=milliseconds)
    assert refused.value.field == "slow_milliseconds"


async def test_connect_takes_listeners(
    database: Database, replica_set_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a ledger with a client of its own is logged as well."""
    caplog.set_level(logging.DEBUG, logger="credit_mongo.commands")
    async with CreditLedger.connect(
        replica_set_uri, database=database.name, config=CONFIG, event_listeners=[CommandLog()]
    ) as ledger:
        with pytest.raises(UserNotFoundError):
            await ledger.get_balance("ann")
    assert ("find", "users") in {(r.command_name, r.collection_name) for r in records_in(caplog)}

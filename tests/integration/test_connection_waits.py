"""Calls that wait for a connection cause a warning, at most one a minute. Others cause none."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.errors import WaitQueueTimeoutError

from credit_mongo import ConfigurationError, CreditConfig, CreditLedger
from credit_mongo.integrations.fastapi import credit_lifespan
from credit_mongo.observability import ConnectionWaits
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database, failing, with_options

APP = "waits"
CONFIG = CreditConfig(costs={"post": {"default": 10}})
KINDS: dict[str, Any] = {"pymongo": AsyncMongoClient, "motor": AsyncIOMotorClient}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about waits for connections."""
    return [each for each in caplog.messages if "waited for a connection" in each]


@asynccontextmanager
async def client_with_one_connection(
    kind: str, uri: str, waits: ConnectionWaits, **options: Any
) -> AsyncIterator[Any]:
    """An application's client, which has pinged the server."""
    uri = with_options(uri, appName=APP)
    client = KINDS[kind](uri, maxPoolSize=1, event_listeners=[waits], **options)
    try:
        await client.admin.command("ping")
        yield client
    finally:
        closing = client.close()
        if closing is not None:
            await closing


@pytest.mark.parametrize("kind", KINDS)
async def test_the_first_wait_causes_a_warning_and_the_next_minute_s_share_one(
    client: Client, replica_set_uri: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The second warning counts all the waits since the first."""
    now = 0.0
    waits = ConnectionWaits(clock=lambda: now)
    async with (
        client_with_one_connection(kind, replica_set_uri, waits) as own,
        failing(client, APP, failCommands=["ping"], blockConnection=True, blockTimeMS=50),
    ):
        for now, warnings in ((0.0, 1), (59.9, 1), (60.0, 2)):  # noqa: B007 - the clock reads it
            await asyncio.gather(*(own.admin.command("ping") for _ in range(3)))
            assert len(warnings_in(caplog)) == warnings
    first, second = warnings_in(caplog)
    assert first.startswith("1 call waited for a connection to ")
    assert "all 1 are in use. Raise max_pool_size" in first
    # One more of the first round, two of the second, one of the third. On a slow machine, those
    # that found the connection free may have waited for their thread or the event loop.
    assert 3 <= int(second.split()[0]) <= 6
    assert waits.in_use == 0


async def test_a_call_that_gets_no_connection_in_time_counts(
    client: Client, replica_set_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With waitQueueTimeoutMS, the driver raises an error instead of waiting on."""
    waits = ConnectionWaits()
    async with (
        client_with_one_connection("pymongo", replica_set_uri, waits, waitQueueTimeoutMS=50) as own,
        failing(client, APP, failCommands=["ping"], blockConnection=True, blockTimeMS=500),
    ):
        first = asyncio.ensure_future(own.admin.command("ping"))
        await asyncio.sleep(0.1)
        with pytest.raises(WaitQueueTimeoutError):
            await own.admin.command("ping")
        await first
    assert len(warnings_in(caplog)) == 1


async def test_the_ledger_s_own_client_warns_too(
    client: Client, database: Database, replica_set_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Many charges share few connections. Many reads need one each."""
    async with CreditLedger.connect(
        with_options(replica_set_uri, appName=APP),
        database=database.name,
        config=CONFIG,
        max_pool_size=5,
    ) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=10_000)
        await asyncio.gather(*(ledger.charge("ann", "post") for _ in range(300)))
        assert not warnings_in(caplog)
        async with failing(
            client, APP, failCommands=["find"], blockConnection=True, blockTimeMS=50
        ):
            await asyncio.gather(*(ledger.get_balance("ann") for _ in range(20)))
    [warning] = warnings_in(caplog)
    assert "all 5 are in use" in warning


async def test_an_application_on_fastapi_takes_its_sizes_from_the_environment(
    database: Database, replica_set_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a client of its own, it says itself: a listener for it would never be called."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    monkeypatch.setenv("MONGODB_DATABASE", database.name)
    monkeypatch.setenv("MONGODB_POOL_PROFILE", "development")
    monkeypatch.setenv("MONGODB_MAX_POOL_SIZE", "7")
    waits = ConnectionWaits()
    app = FastAPI(lifespan=credit_lifespan(CONFIG, event_listeners=[waits]))
    async with app.router.lifespan_context(app):
        ledger: CreditLedger = app.state.credit_mongo.ledger
        pool = ledger._database.client.options.pool_options
        assert (pool.min_pool_size, pool.max_pool_size) == (5, 7)
        assert list(waits._most.values()) == [7]
    with pytest.raises(ConfigurationError, match="event_listeners: must be given to the client"):
        credit_lifespan(CONFIG, database=database, event_listeners=[waits])


async def test_status_shows_the_primary_s_connections(
    database: Database, replica_set_uri: str
) -> None:
    """How many are open, and how many more it takes."""
    code, output, _ = await run("status", "--json", *where(replica_set_uri, database))
    assert code == 1  # the database has no ledger yet
    connections = json.loads(output)["connections"]
    assert connections["open"] > connections["active"] >= 0
    assert connections["available"] > 0
    _, output, _ = await run("status", *where(replica_set_uri, database))
    [line] = [each for each in output.splitlines() if each.startswith("connections")]
    assert re.fullmatch(r"connections\s[\d,]+ open, [\d,]+ active, [\d,]+ more possible", line)

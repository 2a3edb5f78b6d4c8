"""A replica set of three members that can be told to fail, for these tests alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
import pytest_asyncio

from credit_mongo import CollectionNames
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.indexes import ensure_indexes
from tests.faults.checks import member_uris
from tests.faults.cluster import Cluster
from tests.faults.faults import client_of
from tests.faults.settings import COUNTS, SETTINGS
from tests.integration.promises import Client, Database


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many cases of each kind ran."""
    if COUNTS:
        terminalreporter.section(f"faults (seed {SETTINGS.seed})")
        width = max(len(f"{number:,}") for number in COUNTS.values())
        for name, number in sorted(COUNTS.items()):
            terminalreporter.write_line(f"{number:>{width},} {name}")


@pytest_asyncio.fixture(scope="session")
async def replica_set() -> AsyncIterator[LocalReplicaSet]:
    """Start a new set even if MONGODB_URI is set: these tests kill servers."""
    parameters = {"enableTestCommands": "1", "ttlMonitorEnabled": "false"}
    async with LocalReplicaSet(members=3, parameters=parameters) as replica_set:
        yield replica_set


@pytest_asyncio.fixture(scope="session")
async def client(replica_set: LocalReplicaSet) -> AsyncIterator[Client]:
    """An application's client, which no fail point hits."""
    async with client_of(replica_set.uri) as client:
        yield client


@pytest_asyncio.fixture(scope="session")
async def observers(replica_set: LocalReplicaSet) -> AsyncIterator[list[Client]]:
    """A client of each member."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client_of(uri)) for uri in member_uris(replica_set)]


@pytest_asyncio.fixture
async def database(
    replica_set: LocalReplicaSet, client: Client, observers: list[Client]
) -> AsyncIterator[Database]:
    """An empty database on a healthy set. Whatever a test leaves open is gone before the next."""
    await replica_set.wait_until_ready()
    database = client[f"test_{uuid4().hex[:12]}"]
    await ensure_indexes(database, CollectionNames())
    await database["transactions"].create_index("metadata.mark")
    await database["audit_logs"].create_index("metadata.mark")
    await database["holds"].create_index("metadata.mark")
    yield database
    await replica_set.wait_until_ready()
    for observer in observers:
        await observer.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        await observer.admin.command({"killAllSessions": []})
    await client.drop_database(database.name)


@pytest.fixture
def cluster(
    replica_set: LocalReplicaSet, client: Client, observers: list[Client], database: Database
) -> Cluster:
    """The replica set, its clients and the database in one object."""
    return Cluster(replica_set, client, observers, database)

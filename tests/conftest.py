"""The fixtures of the pytest plugin under the names that these tests use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import Phase, settings
from mongomock_motor import AsyncMongoMockClient
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditConfig, CreditLedger
from tests.any_driver import pymongo_client
from tests.ready_databases import ReadyDatabases

# For the planted bugs: a failure is enough, whatever the shortest example is.
settings.register_profile("any-example", phases=[Phase.explicit, Phase.generate])

pytest_plugins = ["pytester", "tests.quick", "tests.run_summary"]


@pytest.fixture(scope="session")
def credit_mongod_parameters() -> dict[str, str]:
    """Start servers on which fail points can be set."""
    return {"enableTestCommands": "1"}


@pytest.fixture(scope="session")
def replica_set_uri(credit_replica_set: str) -> str:
    """The URI of a replica set."""
    return credit_replica_set


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of these tests."""
    config.addinivalue_line("markers", "drivers(*names): run with each of these drivers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test, or all tests of a marked module, with each of the drivers named."""
    mark = metafunc.definition.get_closest_marker("drivers")
    if mark is not None and "driver" in metafunc.fixturenames:
        metafunc.parametrize("driver", mark.args, indirect=True, scope="session")


@pytest.fixture(scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    """The name of the driver that the application uses."""
    driver: str = getattr(request, "param", "pymongo")
    return driver


@pytest.fixture(scope="session")
def driver_uri(driver: str, request: pytest.FixtureRequest) -> str | None:
    """The replica set's URI, if the driver needs one."""
    return None if driver == "mongomock" else request.getfixturevalue("replica_set_uri")


@pytest_asyncio.fixture(scope="session")
async def client(
    driver: str, driver_uri: str | None
) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """An application's own client, with PyMongo's interface whatever the driver."""
    opened: Any = {
        "pymongo": AsyncMongoClient[dict[str, Any]],
        "motor": AsyncIOMotorClient[dict[str, Any]],
        "mongomock": AsyncMongoMockClient,
    }[driver](driver_uri, tz_aware=True)
    client: AsyncMongoClient[dict[str, Any]] = pymongo_client(opened)
    yield client
    await client.close()


@pytest.fixture
def credit_client(
    client: AsyncMongoClient[dict[str, Any]],
) -> AsyncMongoClient[dict[str, Any]]:
    """The plugin's client is the tests' client."""
    return client


@pytest_asyncio.fixture(scope="session")
async def ready_databases(
    client: AsyncMongoClient[dict[str, Any]],
) -> AsyncIterator[ReadyDatabases]:
    """The databases that tests with a ledger take turns with."""
    databases = ReadyDatabases(client)
    yield databases
    await databases.drop()


@pytest_asyncio.fixture
async def credit_database(
    request: pytest.FixtureRequest,
    client: AsyncMongoClient[dict[str, Any]],
    ready_databases: ReadyDatabases,
) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """An empty database. For a test with a ledger, it has the ledger's collections and indexes."""
    if "credit_ledger" in request.fixturenames:
        async with ready_databases.lend(request.getfixturevalue("credit_config")) as database:
            yield database
    else:
        database = client[f"test_{uuid4().hex[:12]}"]
        yield database
        await client.drop_database(database.name)


@pytest.fixture
def database(credit_database: AsyncDatabase[dict[str, Any]]) -> AsyncDatabase[dict[str, Any]]:
    """An empty database."""
    return credit_database


@pytest.fixture
def credit_clock() -> Callable[[], datetime]:
    """The real time: these ledgers work beside ledgers in other processes."""
    return lambda: datetime.now(timezone.utc)


@pytest.fixture(scope="session")
def config() -> CreditConfig:
    """The README's prices and tiers."""
    return CreditConfig(
        costs={
            "generate-post": {"default": 10, "premium": 8, "enterprise": 5},
            "ai-completion": {
                "default": "{token} * 0.001 + 10",
                "premium": "{token} * 0.0008 + 8",
            },
            "generate-image": {"premium": 20, "enterprise": 15},
            "translate": {"default": 3, "premium": "{words} / 100"},
        },
        membership={
            "tiers": {"free": 0, "premium": 1, "enterprise": 2},
            "requirements": {"generate-image": "premium", "view-reports": "enterprise"},
            "credits_caps": {"free": 100, "premium": 2000, "enterprise": 10000},
        },
    )


@pytest.fixture
def credit_config(config: CreditConfig) -> CreditConfig:
    """The plugin's configuration is the tests' configuration."""
    return config


@pytest_asyncio.fixture
async def credit_ledger(
    credit_database: AsyncDatabase[dict[str, Any]],
    credit_config: CreditConfig,
    credit_clock: Callable[[], datetime],
) -> AsyncIterator[CreditLedger]:
    """A ledger on ``database``, which has its indexes already."""
    async with CreditLedger(credit_database, credit_config, clock=credit_clock) as ledger:
        yield ledger


@pytest.fixture
def ledger(credit_ledger: CreditLedger) -> CreditLedger:
    """A ledger on ``database``, with its indexes."""
    return credit_ledger

"""A real replica set for all tests, and a database of its own for each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from mongomock_motor import AsyncMongoMockClient
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.drivers import as_database
from credit_mongo.local import LocalReplicaSet


def pytest_report_header() -> str:
    """Say which replica set the tests run on."""
    given = "MONGODB_URI" in os.environ
    return f"replica set: {'MONGODB_URI' if given else 'a local mongod'}"


@pytest_asyncio.fixture(scope="session")
async def replica_set_uri() -> AsyncIterator[str]:
    """The URI of a replica set: MONGODB_URI, or one that is started here."""
    given = os.environ.get("MONGODB_URI")
    if given:
        yield given
        return
    async with LocalReplicaSet(members=1, parameters={"enableTestCommands": "1"}) as replica_set:
        yield replica_set.uri


def pytest_configure(config: pytest.Config) -> None:
    """Say what our own mark means."""
    config.addinivalue_line("markers", "drivers(*names): run with each of these drivers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with each of the drivers that it, or else its module, is marked with."""
    mark = metafunc.definition.get_closest_marker("drivers")
    if mark is not None and "driver" in metafunc.fixturenames:
        metafunc.parametrize("driver", mark.args, indirect=True, scope="session")


@pytest.fixture(scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    """What the application reaches MongoDB with."""
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
    """An application's own client, as PyMongo's whatever the driver."""
    opened: Any = {
        "pymongo": AsyncMongoClient[dict[str, Any]],
        "motor": AsyncIOMotorClient[dict[str, Any]],
        "mongomock": AsyncMongoMockClient,
    }[driver](driver_uri, tz_aware=True)
    client = as_database(opened["admin"]).client
    yield client
    await client.close()


@pytest_asyncio.fixture
async def database(
    client: AsyncMongoClient[dict[str, Any]],
) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """An empty database."""
    database = client[f"test_{uuid4().hex[:12]}"]
    yield database
    await client.drop_database(database.name)


@pytest.fixture(scope="session")
def config() -> CreditConfig:
    """Prices and tiers as in the README."""
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


@pytest_asyncio.fixture
async def ledger(
    database: AsyncDatabase[dict[str, Any]], config: CreditConfig
) -> AsyncIterator[CreditLedger]:
    """A ledger on an empty database, with its indexes."""
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        yield ledger

"""A real replica set for all tests, and a database of its own for each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditConfig, CreditLedger
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


@pytest_asyncio.fixture(scope="session")
async def client(replica_set_uri: str) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """An application's own client."""
    async with AsyncMongoClient[dict[str, Any]](replica_set_uri, tz_aware=True) as client:
        yield client


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

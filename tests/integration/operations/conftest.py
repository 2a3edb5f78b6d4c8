"""A database for all tests of a file, with a ledger and a user for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from credit_mongo import (
    CreditLedger,
)
from tests.integration.operations.accounts import Clock, prices
from tests.integration.promises import Client, Database


@pytest.fixture
def clock() -> Clock:
    """The time by which the ledgers work."""
    return Clock()


@pytest_asyncio.fixture(scope="module")
async def shared(client: Client) -> AsyncIterator[Database]:
    """One database for the tests of this file. Each test has its own users."""
    database = client[f"test_{uuid4().hex[:12]}"]
    async with CreditLedger(database, prices()) as ledger:
        await ledger.ensure_indexes()
    yield database
    await client.drop_database(database.name)


@pytest_asyncio.fixture
async def books(shared: Database, clock: Clock) -> AsyncIterator[CreditLedger]:
    """A ledger on this test's own clock."""
    async with CreditLedger(shared, prices(), clock=clock) as ledger:
        yield ledger


@pytest.fixture
def user() -> str:
    """A user id that no other test has."""
    return f"user-{uuid4().hex[:12]}"

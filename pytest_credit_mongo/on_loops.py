"""Set-up and tear-down on the test's event loop. The modules beside make fixtures of these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.database import AsyncDatabase

    from credit_mongo import CreditConfig, CreditLedger


async def credit_client(credit_replica_set: str) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """A client that is closed after the test."""
    from pymongo import AsyncMongoClient  # noqa: PLC0415

    async with AsyncMongoClient[dict[str, Any]](credit_replica_set, tz_aware=True) as client:
        yield client


async def credit_database(
    credit_client: AsyncMongoClient[dict[str, Any]],
) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
    """A database with a new name, dropped after the test."""
    database = credit_client[f"test_{uuid4().hex[:12]}"]
    yield database
    await credit_client.drop_database(database.name)


async def credit_ledger(
    credit_database: AsyncDatabase[dict[str, Any]],
    credit_config: CreditConfig,
    credit_clock: Callable[[], datetime],
) -> AsyncIterator[CreditLedger]:
    """A ledger with its indexes."""
    from credit_mongo import CreditLedger  # noqa: PLC0415

    async with CreditLedger(credit_database, credit_config, clock=credit_clock) as ledger:
        await ledger.ensure_indexes()
        yield ledger


EVERY = (credit_client, credit_database, credit_ledger)

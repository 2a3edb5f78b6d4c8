"""Databases with a ledger's collections and indexes, emptied after a test for the next one.

To make and drop them takes the server ten times as long as most tests need it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.config import SETTINGS_COLLECTION

Database: TypeAlias = AsyncDatabase[dict[str, Any]]


@dataclass(frozen=True)
class Ready:
    """A database, and what is in it between tests."""

    database: Database
    collections: dict[str, Any]


class ReadyDatabases:
    """The databases of one client that no test uses at the moment, by configuration."""

    def __init__(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        self._client = client
        self._free: dict[str, list[Ready]] = defaultdict(list)

    @asynccontextmanager
    async def lend(self, config: CreditConfig) -> AsyncIterator[Database]:
        """Yield an empty database with the indexes of a ledger with this configuration."""
        free = self._free[config.to_json()]
        ready = free.pop() if free else await self._make(config)
        yield ready.database
        if await _empty(ready):
            free.append(ready)
        else:
            await self._client.drop_database(ready.database.name)

    async def _make(self, config: CreditConfig) -> Ready:
        database = self._client[f"test_{uuid4().hex[:12]}"]
        async with CreditLedger(database, config) as ledger:
            await ledger.ensure_indexes()
        return Ready(database, await _collections_of(database))

    async def drop(self) -> None:
        """Drop all of them."""
        for free in self._free.values():
            for ready in free:
                await self._client.drop_database(ready.database.name)


async def _collections_of(database: Database) -> dict[str, Any]:
    """Return all collections with their options and indexes, and the ledger's settings."""
    listed = await database.list_collections()
    options = {each["name"]: each["options"] for each in await listed.to_list(None)}
    names = sorted(options)
    indexes = await asyncio.gather(*(database[name].index_information() for name in names))
    settings = await database[SETTINGS_COLLECTION].find().to_list(None)
    return {
        "options": options,
        "indexes": dict(zip(names, indexes, strict=True)),
        SETTINGS_COLLECTION: settings,
    }


async def _empty(ready: Ready) -> bool:
    """Remove all documents but the settings. Returns whether the database is as it was made."""
    if await _collections_of(ready.database) != ready.collections:
        return False
    names = ready.collections["indexes"].keys() - {SETTINGS_COLLECTION}
    await asyncio.gather(*(ready.database[name].delete_many({}) for name in names))
    return True

"""Ledgers to back up, and what must be the same after a restore."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.config import BACKUPS_COLLECTION
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.backup.making import make_backup
from tests.integration.promises import Client, Database, Row

__all__ = ["PRICES", "chain", "contents", "copy", "empty_database", "fill", "use"]

UTC = timezone.utc
PRICES: Final = CreditConfig(costs={"post": {"default": 1}, "image": {"premium": 5}})


async def fill(
    database: Database, config: CreditConfig = PRICES, users: int = 6, opening_credits: int = 100
) -> CreditLedger:
    """Make a ledger that has rows of every kind in every collection."""
    ledger = CreditLedger(database, config)
    assert not (await ledger.ensure_indexes()).conflicts
    ends = datetime.now(UTC) + timedelta(days=1)
    for number in range(users):
        name = f"user-{number}"
        await ledger.create_user(name, credits=opening_credits, idempotency_key=f"open-{number}")
    await ledger.grant("user-1", 50, action="gift", expires_at=ends, source="campaign")
    await ledger.set_overdraft("user-2", 20)
    await ledger.place_hold("user-3", "post", amount=10, metadata={"a.b": {"$c": 1}})
    charge = await ledger.charge("user-0", "post", idempotency_key="first", metadata={"n": [1]})
    await asyncio.sleep(0.01)
    await archive(database, older_than=datetime.now(UTC), collections=config.collections)
    await ledger.refund("user-0", 1, action="sorry", transaction_id=charge.transaction_id)
    return ledger


async def use(ledger: CreditLedger, users: int = 6, rounds: int = 1, prefix: str = "") -> None:
    """Charge everybody, and do some of everything else."""
    for number in range(rounds):
        key = f"{prefix or uuid4().hex}-{number}"
        await asyncio.gather(
            *(
                ledger.charge(f"user-{each}", "post", idempotency_key=f"{key}-{each}")
                for each in range(users)
            )
        )
        hold = await ledger.place_hold("user-4", "post", amount=3)
        await ledger.capture_hold(hold.hold_id, amount=2)
        grant = await ledger.grant(
            "user-5", 5, action="gift", expires_at=datetime.now(UTC) + timedelta(hours=1 + number)
        )
        await ledger.revoke(grant.transaction_id, action="chargeback")


async def contents(database: Database) -> dict[str, Any]:
    """Return all documents, options and indexes of all collections but the backups' own."""
    found: dict[str, Any] = {}
    for listed in await (await database.list_collections()).to_list():
        name = listed["name"]
        if name == BACKUPS_COLLECTION or name.startswith("system."):
            continue
        documents: list[Row] = await database[name].find().sort("_id", 1).to_list()
        indexes = await database[name].index_information()
        if documents or listed["options"]:
            found[name] = (documents, listed["options"], indexes)
    return found


@asynccontextmanager
async def empty_database(client: Client) -> AsyncIterator[Database]:
    """Yield a database to restore into."""
    database = client[f"test_{uuid4().hex[:12]}"]
    try:
        yield database
    finally:
        await client.drop_database(database.name)


@pytest_asyncio.fixture(scope="module")
async def chain(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Database, Path]]:
    """A ledger, and a chain of three backups of it that no test changes."""
    database = client[f"test_{uuid4().hex[:12]}"]
    ledger = await fill(database)
    place = tmp_path_factory.mktemp("chain")
    await make_backup(database, place)
    for _ in range(2):
        await use(ledger)
        await make_backup(database, place, incremental=True)
    yield database, place
    await client.drop_database(database.name)


@pytest.fixture
def copy(chain: tuple[Database, Path], tmp_path: Path) -> Path:
    """A copy of the chain to damage."""
    return Path(shutil.copytree(chain[1], tmp_path / "copy"))

"""The drill: a database that is charged all the time is lost at a random moment, and restored.

``BACKUP_DRILLS`` says how often (1), ``BACKUP_SECONDS`` how many seconds lie between backups (2).
The guide's figures are those of BACKUP_DRILLS=10 BACKUP_SECONDS=60.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from pymongo.errors import PyMongoError

from credit_mongo import CreditConfig, CreditError, CreditLedger
from credit_mongo.engine import tasks
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.reconciling import missing_since
from credit_mongo.maintenance.backup.restoring import restore
from tests.faults.cluster import Cluster
from tests.faults.faults import client_of
from tests.faults.settings import seeded_random
from tests.integration.promises import Database, check_promises

DRILLS: Final = int(os.environ.get("BACKUP_DRILLS", "1"))
SECONDS: Final = float(os.environ.get("BACKUP_SECONDS", "2"))
UTC = timezone.utc
PRICES: Final = CreditConfig(costs={"post": {"default": 1}})
USERS: Final = 20


class Charging:
    """Charges everybody all the time, and remembers when each charge was acknowledged."""

    def __init__(self, database: Database) -> None:
        self.acknowledged: dict[str, datetime] = {}
        self._ledger = CreditLedger(database, PRICES)
        self._is_over = False

    async def open(self) -> None:
        await self._ledger.ensure_indexes()
        for number in range(USERS):
            await self._ledger.create_user(f"u{number}", credits=1_000_000)

    async def run(self) -> None:
        await asyncio.gather(*(self._charge(f"u{number}") for number in range(USERS)))

    def stop(self) -> None:
        self._is_over = True

    async def _charge(self, user_id: str) -> None:
        number = 0
        while not self._is_over:
            key = f"{user_id}-{number}"
            number += 1
            with contextlib.suppress(CreditError, PyMongoError):
                await self._ledger.charge(user_id, "post", idempotency_key=key)
                self.acknowledged[key] = datetime.now(UTC)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("drill", range(DRILLS))
async def test_a_lost_database_is_restored_with_the_loss_told_to_the_second(
    tmp_path: Path, drill: int
) -> None:
    """The loss is no longer than the time between backups; nothing older is lost."""
    place, random = tmp_path / "backups", seeded_random(f"drill {drill}")
    data = tmp_path / "data"
    async with LocalReplicaSet(data_directory=data) as lost, client_of(lost.uri) as client:
        charging = Charging(client["app"])
        await charging.open()
        await make_backup(client["app"], place)
        work = tasks.start(charging.run())

        async def back_up() -> None:
            while True:
                await asyncio.sleep(SECONDS)
                await make_backup(client["app"], place, incremental=True, lease_seconds=1)

        backing_up = tasks.start(back_up())
        await asyncio.sleep(SECONDS * (2 + 2 * random.random()))
        backing_up.cancel()
        await asyncio.gather(backing_up, return_exceptions=True)
        charging.stop()
        await lost.members[0].kill()
        await asyncio.to_thread(shutil.rmtree, data)
        ended = datetime.now(UTC)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    async with LocalReplicaSet() as fresh, client_of(fresh.uri) as client:
        restored = await restore(client["app"], place)
        assert restored.verification.findings == ()
        missing = await missing_since(client["app"], charging.acknowledged)
        await check_promises(client["app"])
    assert len(charging.acknowledged) > len(missing)
    # Everything before the moment is there. Cluster time is told in whole seconds.
    for key in missing:
        assert charging.acknowledged[key] >= restored.moment, key
    assert ended - restored.moment <= timedelta(seconds=SECONDS + 10)


@pytest_asyncio.fixture
async def charged(cluster: Cluster) -> AsyncIterator[tuple[Charging, Cluster]]:
    """A ledger on three members that is charged all the time."""
    charging = Charging(cluster.database)
    await charging.open()
    work = tasks.start(charging.run())
    yield charging, cluster
    charging.stop()
    await asyncio.gather(work, return_exceptions=True)


async def test_increments_are_exact_across_elections_and_kills(
    charged: tuple[Charging, Cluster], tmp_path: Path
) -> None:
    """A primary that steps down or is killed in the middle adds and removes no change."""
    charging, cluster = charged
    database = cluster.database
    await make_backup(database, tmp_path)

    for disturb in (step_down, kill_primary, step_down):
        making = tasks.start(back_up_through(database, tmp_path))
        await asyncio.sleep(0.2)
        await disturb(cluster)
        await making
        await cluster.replica_set.wait_until_ready()
    charging.stop()
    await asyncio.sleep(1)
    await make_backup(database, tmp_path, incremental=True, lease_seconds=0.5)
    other = cluster.client[f"{database.name}_restored"]
    try:
        restored = await restore(other, tmp_path)
        assert restored.verification.findings == ()
        for name in ("users", "transactions", "audit_logs", "idempotency_records"):
            expected = await database[name].find().sort("_id", 1).to_list()
            assert await other[name].find().sort("_id", 1).to_list() == expected
    finally:
        await cluster.client.drop_database(other.name)


async def step_down(cluster: Cluster) -> None:
    """Let another member be elected."""
    with contextlib.suppress(PyMongoError):
        await cluster.client.admin.command({"replSetStepDown": 10, "force": True})


async def kill_primary(cluster: Cluster) -> None:
    """Kill the primary, and start it again when another one has been elected."""
    address = await cluster.client.address
    assert address is not None
    [primary] = [each for each in cluster.replica_set.members if each.port == address[1]]
    await primary.kill()
    await asyncio.sleep(4)
    await primary.restart()


async def back_up_through(database: Database, place: Path) -> None:
    """Make an incremental backup. If a write of its own is disturbed, cron repeats it."""
    for _ in range(60):
        try:
            await make_backup(database, place, incremental=True, lease_seconds=0.5)
        except PyMongoError:
            await asyncio.sleep(0.5)
        else:
            return
    raise AssertionError("no backup succeeds")

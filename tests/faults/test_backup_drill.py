"""The drill: a database that is charged all the time is lost at a random moment, and restored.

    make drill ROUNDS=10 SECONDS=60

In other runs, ``BACKUP_DRILLS`` says how often (1), and ``BACKUP_SECONDS`` how many seconds lie
between the beginnings of two backups (2).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from pymongo.errors import PyMongoError

from credit_mongo import CreditConfig, CreditError, CreditLedger
from credit_mongo.engine import tasks
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.restoring import restore
from credit_mongo.printing import moment_to_milliseconds
from tests.faults.cluster import Cluster
from tests.faults.faults import client_of
from tests.faults.settings import COUNTS, seeded_random
from tests.integration.commands import run, where
from tests.integration.promises import Database, check_promises

DRILLS: Final = int(os.environ.get("BACKUP_DRILLS", "1"))
SECONDS: Final = float(os.environ.get("BACKUP_SECONDS", "2"))
UTC = timezone.utc
PRICES: Final = CreditConfig(costs={"post": {"default": 1}})
USERS: Final = 20


class Charge(NamedTuple):
    """When an acknowledged charge was sent, and when its answer came."""

    sent: datetime
    acknowledged: datetime


class Charging:
    """Charges everybody all the time, and remembers each charge that was acknowledged."""

    def __init__(self, database: Database) -> None:
        self.charges: dict[str, Charge] = {}
        """By idempotency key."""
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
            sent = datetime.now(UTC)
            with contextlib.suppress(CreditError, PyMongoError):
                await self._ledger.charge(user_id, "post", idempotency_key=key)
                self.charges[key] = Charge(sent, datetime.now(UTC))
            await asyncio.sleep(0.002)


class BackingUp:
    """Makes an incremental backup every so many seconds, as cron does."""

    def __init__(self, database: Database, place: Path) -> None:
        self._longest = 0.0
        self._begun: float | None = None
        self._database = database
        self._place = place

    def longest(self) -> float:
        """How many seconds the slowest one took, the one at work included."""
        current = 0.0 if self._begun is None else time.monotonic() - self._begun
        return max(self._longest, current)

    async def run(self) -> None:
        while True:
            self._begun = begun = time.monotonic()
            await make_backup(self._database, self._place, incremental=True, lease_seconds=1)
            self._longest, self._begun = self.longest(), None
            await asyncio.sleep(max(SECONDS - (time.monotonic() - begun), 0))


@pytest.mark.parametrize("drill", range(DRILLS))
async def test_drill_a_lost_database_is_restored_and_the_loss_is_told_to_the_second(
    tmp_path: Path, drill: int
) -> None:
    """The newest backup lacks at most what came between two backups, and while one was made."""
    place, data = tmp_path / "backups", tmp_path / "data"
    random = seeded_random(f"drill {drill}")
    async with (
        LocalReplicaSet(data_directory=data) as lost,
        client_of(lost.uri, serverSelectionTimeoutMS=2000) as client,
    ):
        charging = Charging(client["app"])
        await charging.open()
        await make_backup(client["app"], place)
        backups = BackingUp(client["app"], place)
        charging_task, backup_task = tasks.start(charging.run()), tasks.start(backups.run())
        await asyncio.sleep(SECONDS * (1 + 2 * random.random()))
        assert not charging_task.done()
        assert not backup_task.done()
        await lost.members[0].kill()
        lost_at, longest = datetime.now(UTC), backups.longest()
        await asyncio.to_thread(shutil.rmtree, data)
        for task in (charging_task, backup_task):
            task.cancel()
        await asyncio.gather(charging_task, backup_task, return_exceptions=True)
    keys = tmp_path / "acknowledged"
    keys.write_text("\n".join(charging.charges))
    async with LocalReplicaSet() as fresh, client_of(fresh.uri) as client:
        code, output, errors = await run(
            *("restore", str(place), "--lost-at", moment_to_milliseconds(lost_at)),
            *("--reconcile", str(keys), "--json", *where(fresh.uri, client["app"])),
        )
        told = json.loads(output)
        assert (code, errors) == (1 if told["missing"] else 0, "")
        assert told["verification"]["findings_total"] == 0
        await check_promises(client["app"])
    check_loss(told, charging.charges, lost_at, longest)


def check_loss(
    told: dict[str, Any], charges: dict[str, Charge], lost_at: datetime, longest: float
) -> None:
    """Check that the loss began in the second that was told, and is as short as was promised."""
    second = timedelta(seconds=1)
    moment = datetime.fromisoformat(told["moment"].replace("Z", "+00:00"))
    missing = set(told["missing"])
    assert missing < set(charges)
    for key, charge in charges.items():
        if key in missing:
            assert charge.acknowledged >= moment, key
        else:
            assert charge.sent < moment + second, key
    assert told["gap_seconds"] == pytest.approx((lost_at - moment).total_seconds(), abs=0.002)
    # What came before a backup began is in it. It counts once it is whole.
    most = max(SECONDS, longest) + longest
    assert told["gap_seconds"] <= most + second.total_seconds()
    COUNTS["databases lost and restored"] += 1
    COUNTS["charges acknowledged before a database was lost"] += len(charges)
    COUNTS["of these, charges that were lost"] += len(missing)
    name = "milliseconds of loss at most"
    COUNTS[name] = max(COUNTS[name], int(told["gap_seconds"] * 1000))
    name = "milliseconds that the slowest backup beside charges took"
    COUNTS[name] = max(COUNTS[name], int(longest * 1000))


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

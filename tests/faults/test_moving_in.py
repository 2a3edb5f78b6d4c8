"""Imports and the opening of accounts while the network breaks, servers step down or die.

After whatever happened, the books are right. Another run comes to the same end as an undisturbed
one. ``tests/integration/test_import_kills.py`` kills the jobs themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
from pymongo.errors import PyMongoError

from credit_mongo import CreditError
from credit_mongo.engine import tasks
from credit_mongo.maintenance import open_accounts as opening_of_accounts
from credit_mongo.maintenance.verification.verify import verify
from tests.faults.cluster import Cluster
from tests.faults.commands import Command
from tests.faults.faults import FAULTS, client_of
from tests.faults.settings import COUNTS, seeded_random
from tests.faults.test_backup_drill import kill_primary, step_down
from tests.integration import test_import_kills as imports
from tests.integration import test_open_accounts as openings
from tests.integration.deployments import SqliteFile, check_books
from tests.integration.killed_process import CommandCounter
from tests.integration.promises import Database, rows

USERS: Final = 40


class Importing:
    """An import of a deployment into an empty ledger."""

    def __init__(self, directory: Path) -> None:
        self._file = SqliteFile(directory / "sdk.db")
        self._file.save(imports.busy(users=USERS, charges=3))

    async def prepare(self, database: Database) -> None:
        await imports.open_ledger(database)

    async def run(self, database: Database) -> None:
        report = await imports.import_to_the_end(database, self._file.url)
        assert report.agrees, report.to_dict()

    async def check_half_done(self, database: Database) -> None:
        assert (await verify(database)).findings == ()

    async def check(self, database: Database) -> None:
        await check_books(database)
        assert len(await rows(database, "users")) == USERS


class Opening:
    """Accounts for documents, some of which have a balance."""

    def __init__(self, _directory: Path) -> None:
        pass

    async def prepare(self, database: Database) -> None:
        await openings.set_up(database, [{"_id": f"u{number}"} for number in range(USERS)])

    async def run(self, database: Database) -> None:
        done = await openings.open_all(database, full_speed=True)
        assert not done.left

    async def check_half_done(self, database: Database) -> None:
        opened = {row["_id"] for row in await rows(database, "members") if "seq" in row}
        assert opened == {row["userId"] for row in await rows(database, "transactions")}

    async def check(self, database: Database) -> None:
        await openings.check_opened_once(database, USERS)


KINDS: Final[dict[str, type[Importing | Opening]]] = {
    "import": Importing,
    "open-accounts": Opening,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small pages, so that there are several of them."""
    for module, name, value in imports.SMALL:
        monkeypatch.setattr(module, name, value * 4)
    monkeypatch.setattr(opening_of_accounts, "_PAGE", 8)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
async def test_each_failure_at_some_command(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    """The run goes on or ends with an error, and the next one completes it."""
    job, random = KINDS[kind](tmp_path), seeded_random(f"moving in {kind}")
    counter, app = CommandCounter(), f"moving-{uuid4().hex[:8]}"
    uri, violations = cluster.replica_set.uri, []
    async with client_of(uri, event_listeners=[counter]) as client:
        whole = client[f"{cluster.database.name}_whole"]
        await job.prepare(cluster.client[whole.name])
        await job.run(whole)
        await client.drop_database(whole.name)
    async with client_of(uri, app) as client:
        for number, fault in enumerate(FAULTS):
            own = client[f"{cluster.database.name}_{number}"]
            calm = cluster.client[own.name]
            await job.prepare(calm)
            place = random.randrange(len(counter.sent))
            name = counter.sent[place]
            command = Command(name, "", counter.sent[:place].count(name))
            if not fault.fits(command):
                command = Command("commitTransaction", "", 0)
            await cluster.primary.fail(command, app, own.name, fault.data)
            running = tasks.start(job.run(own))
            await asyncio.wait([running], timeout=1)
            await cluster.primary.heal()
            try:
                with contextlib.suppress(PyMongoError, CreditError):
                    await running
                await job.check_half_done(calm)
                await job.run(own)
                await job.check(calm)
            except AssertionError as error:
                violations.append(f"{command}: {fault.name}: {error}")
            COUNTS["cases: moving in by command by failure"] += 1
            await cluster.client.drop_database(own.name)
    assert not violations, "\n".join(violations)


DISTURBANCES: Final = {"stepped down": step_down, "killed": kill_primary}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_primary_that_goes_in_the_middle(
    cluster: Cluster, tmp_path: Path, kind: str, disturbance: str
) -> None:
    """What was committed stays, and the same command completes it."""
    job, database = KINDS[kind](tmp_path), cluster.database
    await job.prepare(database)
    running = tasks.start(job.run(database))
    await asyncio.sleep(0.1)
    await DISTURBANCES[disturbance](cluster)
    with contextlib.suppress(PyMongoError, CreditError):
        await running
    await cluster.replica_set.wait_until_ready()
    await job.check_half_done(database)
    for _ in range(20):
        try:
            await job.run(database)
            break
        except (PyMongoError, CreditError):
            await asyncio.sleep(0.5)
    await job.check(database)

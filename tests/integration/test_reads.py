"""What reads and commits ask of the servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent, CommandSucceededEvent

from credit_mongo import CollectionNames, CreditConfig, CreditLedger
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.erase_preview import preview_erasure
from credit_mongo.maintenance.indexes import ensure_indexes
from credit_mongo.maintenance.roles import ensure_roles
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.usage.measuring import usage_of
from tests.integration.motor_application import MotorApplication, begun
from tests.integration.promises import Client, Database, failing, with_options


class Times(CommandListener):
    """The time of the last commit by the servers' clock, and the time that each read asked for.

    The first read of a snapshot asks for none. Later ones ask for the time that it was given.
    """

    def __init__(self) -> None:
        self.committed: Timestamp | None = None
        self.read_after: list[tuple[str, Timestamp]] = []
        self.began_snapshots = 0

    def started(self, event: CommandStartedEvent) -> None:
        concern = event.command.get("readConcern", {})
        if event.command_name == "find" and "txnNumber" not in event.command:
            after = concern.get("afterClusterTime") or concern.get("atClusterTime")
            if after is None:
                assert concern == {"level": "snapshot"}
                self.began_snapshots += 1
            else:
                self.read_after.append((concern["level"], after))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        if event.command_name == "commitTransaction":
            self.committed = event.reply["operationTime"]

    def failed(self, event: object) -> None:
        """Ignore failures."""


async def test_a_read_asks_for_the_state_after_the_latest_commit(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """A new primary does not know at once what a majority has, and could show an older state."""
    times = Times()
    async with (
        AsyncMongoClient[dict[str, Any]](replica_set_uri, event_listeners=[times]) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.create_user("ann", credits=100)
        for _ in range(2):
            await ledger.charge("ann", "generate-post")
            times.read_after.clear()
            times.began_snapshots = 0
            await ledger.get_balance("ann")
            await ledger.get_history("ann")
            await ledger.get_audit_log("ann")
            assert times.committed is not None
            assert all(after >= times.committed for _, after in times.read_after)
            levels = [level for level, _ in times.read_after]
            assert levels == ["majority", *["snapshot"] * 4]
            assert times.began_snapshots == 2


class Commits(CommandListener):
    """How each transaction began, and what its commit waited for."""

    def __init__(self) -> None:
        self.read_concerns: list[object] = []
        self.write_concerns: list[object] = []

    def started(self, event: CommandStartedEvent) -> None:
        if "startTransaction" in event.command:
            self.read_concerns.append(event.command["readConcern"]["level"])
        if event.command_name == "commitTransaction":
            self.write_concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: object) -> None:
        """Ignore answers."""

    def failed(self, event: object) -> None:
        """Ignore failures."""


async def test_a_commit_waits_for_the_journals_of_a_majority(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """This holds whatever the application's client has as its default."""
    commits = Commits()
    async with (
        AsyncMongoClient[dict[str, Any]](replica_set_uri, event_listeners=[commits], w=1) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.create_user("ann", credits=100)
        await ledger.charge("ann", "generate-post")
    assert commits.read_concerns == ["snapshot"] * 2
    assert commits.write_concerns == [{"w": "majority", "j": True}] * 2


class Destinations(CommandListener):
    """The commands that may go to a member other than the primary."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.astray: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.add(event.command_name)
        # The driver ends its sessions on any member.
        if "$readPreference" in event.command and event.command_name != "endSessions":
            self.astray.append(event.command_name)

    def succeeded(self, event: object) -> None:
        """Ignore answers."""

    def failed(self, event: object) -> None:
        """Ignore failures."""


async def test_nothing_is_read_from_a_secondary(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """The application's URI may prefer secondaries, but these may lag."""
    destinations = Destinations()
    async with (
        AsyncMongoClient[dict[str, Any]](
            replica_set_uri, event_listeners=[destinations], readPreference="secondaryPreferred"
        ) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        charge = await ledger.charge("ann", "generate-post")
        await ledger.refund("ann", 1, action="sorry", transaction_id=charge.transaction_id)
        await ledger.get_balance("ann")
        await ledger.get_history("ann", include_archived=True)
        await ledger.get_audit_log("ann", include_archived=True)
        await ledger.quote("ann", "generate-post")
        paid_requests = PaidRequests(ledger, config, lease_seconds=1)
        await paid_requests.settle_abandoned()
        await paid_requests.close()
        await ledger.delete_user("ann")
    assert destinations.astray == []
    assert {"find", "aggregate"} <= destinations.sent


@pytest.mark.parametrize("driver", ["pymongo", "motor"], indirect=True)
async def test_an_application_that_commits_with_w1_reads_what_it_committed(
    *, driver: str, replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """The ledger's reads wait until a majority has the commit."""
    opened: Any = MotorApplication if driver == "motor" else AsyncMongoClient[dict[str, Any]]
    async with (
        opened(replica_set_uri, w=1, tz_aware=True) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.create_user("ann", credits=1000)
        for number in range(1, 21):
            async with client.start_session() as session, await begun(session):
                await ledger.charge("ann", "generate-post", session=session)
            assert await ledger.get_balance("ann") == 1000 - 10 * number


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.18, 0.26, 0.34, 0.42])
async def test_a_page_reads_one_snapshot_while_rows_move_to_the_archive(
    replica_set_uri: str,
    client: Client,
    database: Database,
    ledger: CreditLedger,
    config: CreditConfig,
    *,
    moment: float,
) -> None:
    """No row is missing or doubled, wherever the archive comes between the page's reads."""
    await ledger.create_user("ann", credits=1000)
    for _ in range(11):
        await ledger.charge("ann", "translate")
    uri = with_options(replica_set_uri, appName="slow-reader")
    slow = {"failCommands": ["find", "aggregate"], "blockConnection": True, "blockTimeMS": 80}
    async with (
        CreditLedger.connect(uri, database=database.name, config=config) as reader,
        failing(client, "slow-reader", **slow) as failure,
    ):
        pages = [
            asyncio.create_task(
                reader.get_history("ann", offset=offset, limit=limit, include_archived=True)
            )
            for offset, limit in ((0, 12), (2, 5), (7, 3), (11, 1))
        ]
        await asyncio.sleep(moment)
        moved = await archive(database, older_than=datetime.now(timezone.utc))
        seqs = [[row.seq for row in await page] for page in pages]
    assert moved.transactions == 12
    assert failure.hits
    assert seqs == [list(range(12, 0, -1)), [10, 9, 8, 7, 6], [5, 4, 3], [1]]


# --- Lost snapshots and broken connections --------------------------------------------------------

NOW = datetime.now(timezone.utc)
IN_ONE_SNAPSHOT: dict[str, Callable[[CreditLedger, Database], Awaitable[Any]]] = {
    "get_history": lambda ledger, _: ledger.get_history("ann", limit=500, include_archived=True),
    "get_audit_log": lambda ledger, _: ledger.get_audit_log("ann", limit=500),
    "usage_of": lambda _, own: usage_of(own, NOW - timedelta(days=1), NOW + timedelta(days=1)),
    "preview_erasure": lambda _, own: preview_erasure(own, "ann"),
}


@pytest.mark.parametrize("name", IN_ONE_SNAPSHOT)
async def test_what_is_read_in_one_snapshot_survives_its_loss(
    name: str, client: Client, database: Database, ledger: CreditLedger, replica_set_uri: str
) -> None:
    """It starts over in another, and shows the same."""
    await ledger.create_user("ann", credits=1000)
    await asyncio.gather(*(ledger.charge("ann", "post", amount=1) for _ in range(250)))
    read = IN_ONE_SNAPSHOT[name]
    app, commands = f"loses-{name}", ["find", "aggregate", "getMore"]
    async with (
        AsyncMongoClient[Any](with_options(replica_set_uri, appname=app), tz_aware=True) as other,
        CreditLedger(other[database.name], ledger._config) as own,
    ):
        shown = _shown(await read(own, other[database.name]))
        for times, failure in (
            (1, {"errorCode": 246}),  # SnapshotUnavailable
            (2, {"errorCode": 239}),  # SnapshotTooOld
            (2, {"closeConnection": True}),
        ):
            data = {"failCommands": commands, **failure}
            async with failing(client, app, {"times": times}, **data) as failed:
                assert _shown(await read(own, other[database.name])) == shown
            assert failed.hits == times
        # The first 101 rows of a page come with its first reply.
        if name.startswith("get_"):
            broken = {"failCommands": ["getMore"], "closeConnection": True}
            async with failing(client, app, {"times": 1}, **broken) as failed:
                assert _shown(await read(own, other[database.name])) == shown
            assert failed.hits == 1


def _shown(answer: Any) -> Any:
    return answer.items if hasattr(answer, "next_cursor") else answer


@pytest.mark.parametrize(
    "command",
    ["createIndexes", "create", "collMod", "createRole", "updateRole", "replSetGetStatus"],
)
async def test_commands_with_one_effect_survive_a_broken_connection(
    command: str, client: Client, database: Database, replica_set_uri: str
) -> None:
    """The driver repeats no command, so the ledger repeats those that it can."""
    app = f"breaks-{command}"
    names = CollectionNames()
    if command == "collMod":
        await ensure_indexes(database, names, validators=False)
    if command == "updateRole":
        await ensure_roles(database, names)
        await database.command({"updateRole": "creditReader", "privileges": []})
    async with AsyncMongoClient[Any](with_options(replica_set_uri, appname=app)) as other:
        own = other[database.name]
        broken = {"failCommands": [command], "closeConnection": True}
        async with failing(client, app, {"times": 1}, **broken) as failed:
            await ensure_indexes(own, names, decimal_places=0)
            await ensure_roles(own, names)
            status = await status_of(own)
        assert failed.hits == 1
        assert status.indexes is not None
        assert not status.indexes.created
        assert not (await ensure_roles(own, names)).changed
        assert all(member.lag_seconds is not None for member in status.members)
    await database.command({"dropAllRolesFromDatabase": 1})

"""What reads and commits ask the servers for."""

from __future__ import annotations

from typing import Any

from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent, CommandSucceededEvent

from credit_mongo import CreditConfig, CreditLedger
from tests.integration.promises import Database


class Times(CommandListener):
    """When the last commit was, by the servers' clock, and what each read outside of one asked.

    The first read of a snapshot asks for no time; those after it, for the time it was given.
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
        """Nothing fails here."""


async def test_a_read_asks_for_the_state_after_the_latest_commit(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """A new primary does not know at once what a majority has, and would show less."""
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
    """How each transaction was begun, and what its commit waited for."""

    def __init__(self) -> None:
        self.read_concerns: list[object] = []
        self.write_concerns: list[object] = []

    def started(self, event: CommandStartedEvent) -> None:
        if "startTransaction" in event.command:
            self.read_concerns.append(event.command["readConcern"]["level"])
        if event.command_name == "commitTransaction":
            self.write_concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: object) -> None:
        """Only what is asked for counts."""

    def failed(self, event: object) -> None:
        """Nothing fails here."""


async def test_a_commit_waits_for_the_journals_of_a_majority(
    replica_set_uri: str, database: Database, config: CreditConfig
) -> None:
    """Whatever the application's client would ask for by itself."""
    commits = Commits()
    async with (
        AsyncMongoClient[dict[str, Any]](replica_set_uri, event_listeners=[commits], w=1) as client,
        CreditLedger(client[database.name], config) as ledger,
    ):
        await ledger.create_user("ann", credits=100)
        await ledger.charge("ann", "generate-post")
    assert commits.read_concerns == ["snapshot"] * 2
    assert commits.write_concerns == [{"w": "majority", "j": True}] * 2

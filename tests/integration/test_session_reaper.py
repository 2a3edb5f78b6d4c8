"""Transactions whose end was not seen are ended on the server, and a busy server isn't flooded."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest
from pymongo import AsyncMongoClient, monitoring

from credit_mongo import CreditLedger
from credit_mongo.engine import session_reaper
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.session_reaper import SessionReaper
from tests.integration.commands import PROGRAM, ROOT, environment, run, where
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_that_no_transaction_stays_open,
    failing,
    open_transactions,
    with_options,
)

APP_NAME = "reaped"
ERASE_ADA = ("erase", "--user", "ada", "--requested-by", "ticket 7", "--yes")


class _Kills(monitoring.CommandListener):
    """Counts calls that ask the server to end sessions."""

    def __init__(self) -> None:
        self.sent = 0
        self.pending = 0
        self.most_pending = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "killSessions":
            self.sent += 1
            self.pending += 1
            self.most_pending = max(self.most_pending, self.pending)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self.pending -= event.command_name == "killSessions"

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self.pending -= event.command_name == "killSessions"


async def test_a_server_that_does_not_answer_gets_one_call_a_session_at_a_time(
    client: Client, replica_set_uri: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call is sent only after the driver has ended the one before."""
    monkeypatch.setattr(session_reaper, "_FIRST_CALL_SECONDS", 0.3)
    await database.create_collection("rows")
    kills = _Kills()
    async with AsyncMongoClient[Row](
        with_options(replica_set_uri, appName=APP_NAME), event_listeners=[kills]
    ) as own:
        reaper = SessionReaper(own, Deadlines(own))
        session = own.start_session()
        await session.start_transaction()
        await own[database.name]["rows"].insert_one({"_id": 1}, session=session)
        async with failing(
            client,
            APP_NAME,
            failCommands=["killSessions"],
            blockConnection=True,
            blockTimeMS=3000,
        ):
            reaper.end(session, [])
            await asyncio.sleep(2)
            assert kills.sent > 1, "the server has not answered the first call yet"
        await reaper.close(10)
        assert (kills.most_pending, kills.pending) == (1, 0)
    await database["rows"].insert_one({"_id": 1})


async def test_sigterm_ends_a_command_with_its_transaction(
    ledger: CreditLedger, client: Client, replica_set_uri: str, database: Database
) -> None:
    """The same command can be run again at once."""
    await ledger.create_user("ada", credits=10)
    here = where(with_options(replica_set_uri, appName=APP_NAME), database)
    blocked = {"failCommands": ["findAndModify"], "blockConnection": True, "blockTimeMS": 1000}
    async with failing(client, APP_NAME, **blocked):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *PROGRAM,
            *(*ERASE_ADA, *here),
            cwd=ROOT,
            env=environment(),
            stderr=asyncio.subprocess.PIPE,
        )
        while process.returncode is None and not await open_transactions(client):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert process.returncode is None, "it has ended before"
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert await process.wait() == 130, errors
    assert errors.decode().splitlines()[-1].startswith("interrupted: ")
    await check_that_no_transaction_stays_open(client)
    code, _, error = await run(*ERASE_ADA, *where(replica_set_uri, database))
    assert (code, error) == (0, "")


async def test_a_command_says_that_another_transaction_holds_its_documents(
    ledger: CreditLedger, client: Client, replica_set_uri: str, database: Database
) -> None:
    """After a kill, the transaction of the killed process stays open for up to a minute."""
    await ledger.create_user("ada", credits=10)
    here = where(replica_set_uri, database)
    async with client.start_session() as session, await session.start_transaction():
        await ledger.charge("ada", "translate", session=session)
        code, output, errors = await run(*ERASE_ADA, "--timeout", "5", *here)
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
    assert "another transaction has held the same documents" in errors
    assert "the server ends it within a minute" in errors

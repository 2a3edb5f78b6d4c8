"""``credit-mongo watch``: what it sees of a live ledger, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, InsufficientCreditsError
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.roles import ensure_roles
from credit_mongo.maintenance.watching.watcher import Look, Watcher
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.access_control import ADMINISTRATOR, GuardedReplicaSet, create_user_with
from tests.integration.commands import PROGRAM, ROOT, environment, run, where
from tests.integration.promises import Client, Database, Row, failing, with_options

CONFIG = CreditConfig(costs={"post": {"default": 1}, "image": {"default": 5}})
PATIENCE_SECONDS = 60.0


async def until(watcher: Watcher, holds: Callable[[Look], bool]) -> Look:
    """The first look for which it holds."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + PATIENCE_SECONDS
    async for look in watcher.looks():
        if holds(look):
            return look
        assert clock() < deadline, look
    raise AssertionError


@asynccontextmanager
async def charging(ledger: CreditLedger, user: str, action: str) -> AsyncIterator[None]:
    """Charge a user all the time."""

    async def charge() -> None:
        while True:
            with contextlib.suppress(InsufficientCreditsError):
                await ledger.charge(user, action)
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(charge())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_it_sees_charges_refusals_and_who_is_busiest(
    ledger: CreditLedger, database: Database
) -> None:
    """By change streams, whatever the client's clock says, with or without a charge's key."""
    await ledger.create_user("rich", credits=10**6)
    await ledger.create_user("poor", credits=3)
    async with Watcher(LedgerDatabase.of(database)) as watcher:
        first = await watcher.look()
        assert first.refusals == {}
        await until(watcher, lambda look: look.latencies is not None)
        async with (
            charging(ledger, "rich", "generate-post"),
            charging(ledger, "poor", "generate-post"),
            ledger.hold("rich", "generate-post", ttl=60),
        ):
            look = await until(
                watcher,
                lambda look: (
                    (look.charges_per_second or 0) > 1
                    and bool(look.refusals)
                    and look.active_holds == 1
                ),
            )
    assert look.unseen == {}
    assert set(look.refusals or {}) == {"INSUFFICIENT_CREDITS"}
    assert dict(look.busiest_users).keys() == {"rich", "poor"}
    assert [name for name, _ in look.busiest_actions] == ["generate-post"]
    assert sum(look.charges_by_second) > 1
    assert look.ttl_lag_seconds == 0
    [primary] = look.members or ()
    assert (primary.state, primary.lag_seconds) == ("PRIMARY", 0)
    found = json.loads(json.dumps(look.to_dict()))
    assert found["busiest_users"]["rich"] == dict(look.busiest_users)["rich"]
    assert found["latencies"]["connections"] >= found["latencies"]["active"] >= 0


async def test_it_sees_transactions_that_stay_open(
    ledger: CreditLedger, client: Client, database: Database
) -> None:
    """With the client whose they are; others' short ones are not listed."""
    await ledger.create_user("ann", credits=100)
    async with (
        Watcher(LedgerDatabase.of(database)) as watcher,
        client.start_session() as session,
        await session.start_transaction(),
    ):
        await ledger.charge("ann", "generate-post", session=session)
        look = await until(watcher, lambda look: bool(look.open_transactions))
    assert look.open_transactions is not None
    assert look.open_transactions[0].seconds >= 1
    assert look.open_transactions[0].client.startswith("127.0.0.1:")


async def test_nothing_is_scanned(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """The server's profile of what it was asked has no scan of a collection."""
    await ledger.create_user("ann", credits=100)
    await ledger.place_hold("ann", "generate-post", ttl=60)
    await ledger.charge("ann", "generate-post", idempotency_key="1")
    app = "watched"
    before = await database.command({"profile": 2, "filter": {"appName": app}})
    assert before["ok"]
    try:
        uri = with_options(replica_set_uri, appName=app)
        async with (
            AsyncMongoClient[Row](uri, tz_aware=True) as own,
            Watcher(LedgerDatabase.of(own[database.name])) as watcher,
        ):
            await until(watcher, lambda look: look.active_holds == 1)
        asked = await database["system.profile"].find({"appName": app}).to_list()
    finally:
        await database.command({"profile": 0, "filter": "unset"})
        await database["system.profile"].drop()
    of_ledger = [each for each in asked if "$changeStream" not in str(each["command"])]
    assert {each["ns"].partition(".")[2] for each in of_ledger} >= {"holds", "idempotency_records"}
    assert [each for each in of_ledger if "COLLSCAN" in each.get("planSummary", "")] == []


async def test_what_is_charged_while_a_connection_is_broken_is_counted_once(
    ledger: CreditLedger, client: Client, database: Database, replica_set_uri: str
) -> None:
    """The stream goes on from where it was."""
    await ledger.create_user("ann", credits=1000)
    app = "broken"
    uri = with_options(replica_set_uri, appName=app)
    async with (
        AsyncMongoClient[Row](uri, tz_aware=True) as own,
        Watcher(LedgerDatabase.of(own[database.name])) as watcher,
    ):
        # The first charge that is seen shows that the stream is open.
        while not (await watcher.look()).busiest_users:
            await ledger.charge("ann", "generate-post", amount=1)
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)
        seen = dict((await watcher.look()).busiest_users)["ann"]
        async with failing(client, app, failCommands=["getMore"], closeConnection=True) as failure:
            await asyncio.sleep(2.5)
            for _ in range(20):
                await ledger.charge("ann", "generate-post", amount=1)
        assert failure.hits > 0
        await until(watcher, lambda look: dict(look.busiest_users)["ann"] >= seen + 20)
        await asyncio.sleep(1)
        assert dict((await watcher.look()).busiest_users)["ann"] == seen + 20


async def test_an_election_does_not_end_it() -> None:
    """It says that there is no primary, and then goes on counting where it was."""
    async with (
        LocalReplicaSet(1) as replica_set,
        AsyncMongoClient[Row](
            replica_set.uri, tz_aware=True, serverSelectionTimeoutMS=1000
        ) as client,
    ):
        config = CONFIG.model_copy(update={"operation_timeout_seconds": 60})
        async with CreditLedger(client["app"], config) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user("ann", credits=10**6)
            async with Watcher(LedgerDatabase.of(client["app"])) as watcher:
                async with charging(ledger, "ann", "post"):
                    await until(watcher, lambda look: (look.charges_per_second or 0) > 1)
                await client.admin.command({"replSetStepDown": 5, "force": True})
                await until(watcher, lambda look: "servers" in look.unseen)
                await until(watcher, lambda look: "servers" not in look.unseen)
                async with charging(ledger, "ann", "image"):
                    await until(watcher, lambda look: "image" in dict(look.busiest_actions))


async def test_rights_that_are_missing_are_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """And all else is shown. The reader sees the ledger, clusterMonitor the servers."""
    async with GuardedReplicaSet(tmp_path_factory.mktemp("watched")) as server:
        await server.create_administrator()
        async with server.client_of(ADMINISTRATOR) as administrator:
            async with CreditLedger(administrator["app"], CONFIG) as ledger:
                await ledger.ensure_indexes()
            await ensure_roles(administrator["app"], CollectionNames())
            for role in ("creditReader", "creditRuntime"):
                await create_user_with(administrator, "app", role, [role], server.password)
            await administrator.admin.command(
                {
                    "createUser": "monitor",
                    "pwd": server.password,
                    "roles": ["clusterMonitor", {"role": "creditReader", "db": "app"}],
                }
            )
        servers = {"latencies", "open transactions"}
        for user, database, unseen in (
            ("creditReader", "app", servers),
            ("creditRuntime", "app", {*servers, "operations", "refusals"}),
            ("monitor", "admin", set[str]()),
        ):
            async with (
                server.client_of(user, database) as own,
                Watcher(LedgerDatabase.of(own["app"])) as watcher,
            ):
                await watcher.look()
                await asyncio.sleep(1)
                look = await watcher.look()
            assert look.unseen.keys() == unseen, user
            reasons = {look.unseen[name] for name in servers & unseen}
            assert all("clusterMonitor" in reason for reason in reasons)
            assert ("creditReader" in str(look.unseen)) == ("operations" in unseen)
            assert look.ttl_lag_seconds == 0


async def _watch_on_terminal(
    arguments: tuple[str, ...], seen: bytes, signal_number: int, columns: int = 90
) -> tuple[int, str]:
    """Run it on a terminal, send a signal once the bytes were seen. Exit code, output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    settings = {**environment(TERM="xterm")}
    del settings["COLUMNS"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PROGRAM, "watch", *arguments, cwd=ROOT, env=settings, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)

    def read() -> bytes:
        sent, signalled = b"", False
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                return sent
            if not part:
                return sent
            sent += part
            if seen in sent and not signalled:
                signalled = True
                process.send_signal(signal_number)

    output = await asyncio.wait_for(asyncio.to_thread(read), PATIENCE_SECONDS)
    os.close(ours)
    return await process.wait(), output.decode()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_on_a_terminal_it_draws_and_ends_cleanly(
    ledger: CreditLedger, database: Database, replica_set_uri: str, signal_number: int
) -> None:
    """It gives the screen back as it was, with exit code 0 and no traceback."""
    await ledger.create_user("ann@example.com", credits=10**6)
    async with charging(ledger, "ann@example.com", "generate-post"):
        code, output = await _watch_on_terminal(
            where(replica_set_uri, database), b"ann@example.com", signal_number
        )
    assert code == 0, output
    assert "Traceback" not in output
    # The alternate screen was entered and left, and the cursor is shown again.
    assert output.count("\x1b[?1049h") == output.count("\x1b[?1049l") == 1
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    page = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    for word in ("charges", "latency", "PRIMARY", "users, last minute", "generate-post"):
        assert word in page


async def test_json_is_one_object_a_line_until_ctrl_c(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """Each line comes at once, so that a script can follow."""
    await ledger.create_user("ann", credits=10**6)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PROGRAM, "watch", "--json", *where(replica_set_uri, database),
        cwd=ROOT, env=environment(), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    async with charging(ledger, "ann", "generate-post"):
        while not lines or not lines[-1]["charges_per_second"]:
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)
            lines.append(json.loads(line))
            assert len(lines) < 60
    process.send_signal(signal.SIGINT)
    rest, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert (process.returncode, errors.decode()) == (0, "")
    assert all(json.loads(line) for line in rest.splitlines())
    assert lines[-1]["unseen"] == {}
    assert lines[-1]["busiest_users"]["ann"] > 0


async def test_without_a_terminal_it_asks_for_json(
    database: Database, replica_set_uri: str
) -> None:
    """Instead of filling a file with pages."""
    code, output, errors = await run("watch", *where(replica_set_uri, database))
    assert (code, output) == (2, "")
    assert "needs a terminal: give --json" in errors


async def test_a_reader_that_goes_away_ends_it(database: Database, replica_set_uri: str) -> None:
    """As in ``credit-mongo watch --json | head -1``."""
    command = (sys.executable, *PROGRAM, "watch", "--json", *where(replica_set_uri, database))
    process = await asyncio.create_subprocess_shell(
        f"{' '.join(map(_quoted, command))} | head -1",
        cwd=ROOT,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert errors.decode() == ""
    assert len(output.splitlines()) == 1


def _quoted(part: str) -> str:
    return "'" + part.replace("'", "'\\''") + "'"

"""Books with a past, checks of all their rows wherever they are kept, and runs that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from bson import Int64, ObjectId, decode, decode_all
from pymongo import AsyncMongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from credit_mongo import CreditConfig, CreditError, CreditLedger
from credit_mongo.errors import ArchiveRunningError
from credit_mongo.maintenance.archive import archiving
from credit_mongo.maintenance.archive.archiving import Archive, archive
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Database, Row, end_all_transactions, rows

UTC = timezone.utc
CHILD_SECONDS: Final = 60
PROCESSES = multiprocessing.get_context("forkserver")
# The shortest lease there is: a killed run keeps others out no longer.
LEASE_SECONDS: Final = 0.05
PLACES: Final = ("collections", "bson", "parquet")
PRICES: Final = CreditConfig(costs={"post": {"default": 3}, "none": {"premium": 1}})


def make_small_slices(set_attribute: Callable[[Any, str, int], None] = setattr) -> None:
    """Make slices so small that a few rows fill several."""
    set_attribute(archiving, "_ROWS_PER_SLICE", 4)
    set_attribute(archiving, "_ROWS_OF_A_USER", 1)


class Past:
    """A clock that starts 20 hours ago and moves when it is told to."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.now = now.replace(microsecond=0) - timedelta(hours=20)

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Books:
    """A ledger with a past, half of it older than ``cut_off``."""

    ledger: CreditLedger
    clock: Past
    cut_off: datetime
    old_charges: dict[str, list[str]]
    """By user, the ids of charges from before."""


async def open_books(
    database: Database, users: int = 4, charges: int = 12, config: CreditConfig = PRICES
) -> Books:
    """Create users with all kinds of rows, before and after the cut-off."""
    clock = Past()
    ledger = CreditLedger(database, config, clock=clock)
    await ledger.ensure_indexes()
    names = [f"user-{number}" for number in range(users)]
    books = Books(ledger, clock, clock.now + timedelta(hours=9), {name: [] for name in names})
    await asyncio.gather(
        *(ledger.create_user(n, credits=1000, idempotency_key=f"open-{n}") for n in names)
    )
    for number in range(charges):
        clock.now += timedelta(hours=18) / charges
        await asyncio.gather(*(_charge(books, name, number) for name in names))
        if number in (1, charges - 2):
            # Two refunds of the very first charge. The second lies after the cut-off.
            first = books.old_charges[names[0]][0]
            await ledger.refund(names[0], 1, action="sorry", transaction_id=first)
    return books


async def _charge(books: Books, name: str, number: int) -> None:
    result = await books.ledger.charge(
        name, "post", idempotency_key=f"{name}-{number}", metadata={"n": number}
    )
    if books.clock.now < books.cut_off:
        books.old_charges[name].append(result.transaction_id)
    with contextlib.suppress(CreditError):
        await books.ledger.charge(name, "none")


async def kept(database: Database) -> dict[str, dict[Any, Row]]:
    """Return all rows by kind and id, wherever they are kept. Checks that each exists once."""
    found: dict[str, dict[Any, Row]] = {}
    for kind in ("transactions", "audit_logs"):
        everywhere = await rows(database, kind) + await rows(database, f"{kind}_archive")
        for manifest in await rows(database, "archive_manifests", **{"destination.kind": "files"}):
            directory = Path(manifest["destination"]["directory"])
            wanted = {"transactions": "transactions", "audit_logs": "auditLogs"}[kind]
            for file in manifest["files"]:
                if file["kind"] == wanted:
                    everywhere += file_rows(directory / file["name"])
        by_id = {row["_id"]: row for row in everywhere}
        assert len(by_id) == len(everywhere), f"{kind}: something is there twice"
        found[kind] = by_id
    for name in ("users", "idempotency_records"):
        found[name] = {row["_id"]: row for row in await rows(database, name)}
    return found


def file_rows(path: Path) -> list[Row]:
    """Read an archive file's documents without the library."""
    options: Any = {"codec_options": AsyncMongoClient(tz_aware=True, connect=False).codec_options}
    if path.suffix == ".parquet":
        from pyarrow import parquet

        column = parquet.read_table(path).column("document")
        return [decode(document.as_py(), **options) for document in column]
    return decode_all(gzip.decompress(path.read_bytes()), **options)


async def check_whole(
    database: Database, before: dict[str, dict[Any, Row]], directory: Path | None = None
) -> None:
    """Check that no row is lost, doubled or unlisted, and that the books are sound."""
    assert await kept(database) == before
    manifests = [m for m in await rows(database, "archive_manifests") if m["_id"] != "lease"]
    if directory is not None:
        recorded = {file["name"] for manifest in manifests for file in manifest["files"]}
        assert names_in(directory) == recorded
    for kind, name in (("transactions", "transactions"), ("auditLogs", "audit_logs")):
        moved = sum(manifest[kind]["count"] for manifest in manifests)
        left = await database[name].count_documents({})
        assert moved + left == len(before[name])
    found = await verify(database)
    assert found.findings == ()
    assert found.users == len(before["users"])


def names_in(directory: Path) -> set[str]:
    """Return the names of everything in a directory."""
    return {path.name for path in directory.iterdir()}


async def is_archived(database: Database, cut_off: datetime) -> bool:
    """Whether no row older than the cut-off is left."""
    old = {"createdAt": {"$lt": cut_off}}
    return not (
        await database["transactions"].count_documents(old)
        + await database["audit_logs"].count_documents(old)
    )


# --- Runs in processes of their own ---------------------------------------------------------------


@dataclass(frozen=True)
class RunTask:
    """A run of the archive, and the number of the command at which it dies (-1: at none)."""

    uri: str
    database: str
    options: dict[str, Any]
    number: int
    when_answered: bool = False


class Commands(CommandListener):
    """Counts the commands sent, except those that the driver sends for itself."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.when_sent: Callable[[int], None] = _nothing
        self.when_answered: Callable[[int], None] = _nothing
        self._numbers: dict[int, int] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """Count a command about to be sent."""
        # How often the run renews its lease depends on the time.
        of_lease = "lease" in str(event.command.get("updates", ""))
        if event.command_name in ("hello", "endSessions", "killSessions") or (
            of_lease and not event.command.get("txnNumber")
        ):
            return
        number = len(self.sent)
        self._numbers[event.request_id] = number
        self.sent.append(event.command_name)
        self.when_sent(number)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Report an answer."""
        self._answered(event.request_id)

    def failed(self, event: CommandFailedEvent) -> None:
        """Report a failed command as an answer, too."""
        self._answered(event.request_id)

    def _answered(self, request_id: int) -> None:
        number = self._numbers.pop(request_id, None)
        if number is not None:
            self.when_answered(number)


def _nothing(_number: int) -> None:
    pass


def run(task: RunTask) -> None:
    """Run the archive in the child process."""
    make_small_slices()
    asyncio.run(_run(task))


async def _run(task: RunTask) -> None:
    commands = Commands()

    def die_at(number: int) -> None:
        if number == task.number:
            os.kill(os.getpid(), signal.SIGKILL)

    if task.when_answered:
        commands.when_answered = die_at
    else:
        commands.when_sent = die_at
    async with AsyncMongoClient[Row](task.uri, event_listeners=[commands]) as client:
        await archive(client[task.database], **task.options)


async def exit_code_of(task: RunTask) -> int | None:
    """Run a task in its own process, and return the exit code."""
    PROCESSES.set_forkserver_preload([__name__])
    process = PROCESSES.Process(target=run, args=(task,))
    process.start()
    try:
        await asyncio.to_thread(process.join, CHILD_SECONDS)
        return process.exitcode
    finally:
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()


async def commands_of(uri: str, database: str, options: dict[str, Any]) -> list[str]:
    """Return the names of the commands that a run sends."""
    commands = Commands()
    async with AsyncMongoClient[Row](uri, event_listeners=[commands]) as client:
        await archive(client[database], **options)
    return commands.sent


def options(place: str, directory: Path, cut_off: datetime, **more: Any) -> dict[str, Any]:
    """Return the arguments that archive to this kind of storage."""
    facts: dict[str, Any] = {"older_than": cut_off, "lease_seconds": LEASE_SECONDS, **more}
    if place != "collections":
        facts |= {"directory": str(directory), "file_format": place}
    return facts


async def dump(database: Database) -> dict[str, list[Row]]:
    """Return all documents of all collections."""
    names = sorted(await database.list_collection_names())
    return {name: await database[name].find().sort("_id", 1).to_list(None) for name in names}


async def insert_chain(
    database: Database, user_id: str, count: int, moment: datetime, **fields: Any
) -> None:
    """Insert this many old transactions of a user directly."""
    chain = [
        {
            "_id": ObjectId(),
            "userId": user_id,
            "seq": Int64(seq),
            "operation": "grant",
            "action": "gift",
            "amount": Int64(2),
            "balanceBefore": Int64(2 * seq - 2),
            "balanceAfter": Int64(2 * seq),
            "metadata": None,
            "idempotencyKey": None,
            "createdAt": moment + timedelta(milliseconds=seq // 7),
            **fields,
        }
        for seq in range(1, count + 1)
    ]
    await database["transactions"].insert_many(chain)
    await database["users"].insert_one(
        {
            "_id": user_id,
            "credits": Int64(2 * count),
            "seq": Int64(count),
            "createdAt": moment,
            "updatedAt": moment,
        }
    )


async def is_killed(task: RunTask) -> bool:
    """Run a task in its own process, and return whether it died."""
    code = await exit_code_of(task)
    assert code in (0, -signal.SIGKILL)
    return code != 0


async def killed_at(
    uri: str, database: Database, facts: dict[str, Any], number: int, *, when_answered: bool
) -> bool:
    """Kill a run at one of its commands. Returns whether it got that far."""
    killed = await is_killed(RunTask(uri, database.name, facts, number, when_answered))
    # Left alone, the server would end them after a minute.
    await end_all_transactions(database.client)
    return killed


async def run_to_the_end(database: Database, facts: dict[str, Any]) -> Archive:
    """Run the archive, and repeat while a dead run's lease lasts."""
    for _ in range(100):
        try:
            return await archive(database, **facts)
        except ArchiveRunningError:
            await asyncio.sleep(LEASE_SECONDS)
    raise AssertionError("the lease does not end")

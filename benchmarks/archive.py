"""The archive and the export at work: ``python -m benchmarks.archive [--rows 1000000]``.

Years of transactions with their audit logs are inserted, then the commands move and export them, as
processes of their own: rows a second from their start to their end, and their peak memory. Before
that, what charges meet while the archive works: windows of the same load with and without it take
turns. At the end, verification looks at all that was moved.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import ACTION, charge_rows
from benchmarks.load import COST, OPENING_CREDITS, Load, drive, user_ids
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_ROWS_AT_ONCE: Final = 5_000
# All rows lie between these ages, and the cut-off after both.
_OLDEST: Final = timedelta(days=700)
_NEWEST: Final = timedelta(days=200)
_CUT_OFF: Final = ("--older-than", "6mo")
_WARM_UP_SECONDS: Final = 3.0

_Database = AsyncDatabase[dict[str, Any]]


@dataclass(frozen=True)
class _Cost:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Of the client."""
    server_seconds: float
    """Processor time of the server. Neither grows as the wall clock does on a busy machine."""
    megabytes: float

    def tell(self, what: str, rows: int) -> None:
        rate = rows / self.seconds
        print(
            f"{what:38} {rows:>9,} rows in {self.seconds:6.1f} s: {rate:>7,.0f}/s, "
            f"{self.megabytes:4.0f} MB; processor time {self.cpu_seconds:.1f} s here, "
            f"{self.server_seconds:.1f} s of the server",
            flush=True,
        )


async def _fill(database: _Database, users: tuple[str, ...], rows: int) -> None:
    """Chains of old charges, each after a grant; the users take turns."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
    begin = datetime.now(timezone.utc) - _OLDEST
    step = (_OLDEST - _NEWEST) / rows
    for first in range(0, rows, _ROWS_AT_ONCE):
        made = [
            _row(users, number, begin + step * number)
            for number in range(first, min(first + _ROWS_AT_ONCE, rows))
        ]
        for name, documents in zip(
            ("transactions", "audit_logs"), zip(*made, strict=True), strict=True
        ):
            await database.command(
                {"insert": name, "documents": list(documents), "writeConcern": {"w": 1}}
            )
    now = datetime.now(timezone.utc)
    accounts = []
    for number, user_id in enumerate(users):
        seq = rows // len(users) + (number < rows % len(users))
        credits_left = OPENING_CREDITS - COST * (seq - 1)
        accounts.append(
            {"_id": user_id, "credits": credits_left, "seq": seq, "createdAt": begin}
            | {"membershipTier": None, "membershipExpiresAt": None, "updatedAt": now - _NEWEST}
        )
    await database["users"].insert_many(accounts)
    await database.client.admin.command("fsync")


def _row(
    users: tuple[str, ...], number: int, now: datetime
) -> tuple[dict[str, Any], dict[str, Any]]:
    earlier, user = divmod(number, len(users))
    balance = OPENING_CREDITS - COST * (earlier - 1) if earlier else 0
    cost = COST if earlier else -OPENING_CREDITS
    transaction, audit_log, _ = charge_rows(
        users[user], earlier + 1, balance, cost=cost, key=f"{number:032x}", now=now
    )
    if not earlier:
        transaction["operation"] = audit_log["operation"] = "grant"
    audit_log["details"] = {
        name: transaction[name] for name in ("amount", "balanceBefore", "balanceAfter")
    }
    return transaction, audit_log


async def _start(*command: str, uri: str, database: str) -> asyncio.subprocess.Process:
    name, *arguments = command
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(_ROOT / "scripts" / f"{name}.py"),
        *arguments,
        *("--uri", uri, "--database", database),
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
    )


async def _run(*command: str, database: _Database, uri: str) -> _Cost:
    """To its end; the memory is the highest that the system saw."""
    begun, cpu_begun = time.perf_counter(), _cpu_of_children()
    server_begun = await _cpu_of_server(database)
    process = await _start(*command, uri=uri, database=database.name)
    highest = 0
    try:
        while process.returncode is None:
            highest = max(highest, _resident_bytes(process.pid))
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.1)
    finally:
        if process.returncode is None:
            # As by Ctrl-C: killed, it would leave a lease that outlasts the next window.
            process.send_signal(signal.SIGINT)
            await process.wait()
    assert process.returncode == 0, command
    return _Cost(
        time.perf_counter() - begun,
        _cpu_of_children() - cpu_begun,
        await _cpu_of_server(database) - server_begun,
        highest / 1e6,
    )


async def _cpu_of_server(database: _Database) -> float:
    used = (await database.command("serverStatus"))["extra_info"]
    return float(used["user_time_us"] + used["system_time_us"]) / 1e6


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident_bytes(pid: int) -> int:
    """The peak so far; 0 where the system does not tell, or the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else 0


async def _charge_beside(uri: str, database: _Database, options: argparse.Namespace) -> None:
    """Windows of the same load, by turns without the archive and with it."""
    users = user_ids(options.users)
    await _fill(database, users, options.rows // 2)
    load = Load(options.callers, users, options.seconds, _WARM_UP_SECONDS)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    async with CreditLedger(database, CONFIG) as ledger:

        async def charge(user_id: str, _cost: int, key: str) -> None:
            await ledger.charge(user_id, ACTION, idempotency_key=key)

        for number in range(2 * options.rounds):
            beside = number % 2 == 1
            outcome = await (
                _with_archive(uri, database, drive, charge, load) if beside else drive(charge, load)
            )
            assert not outcome.errors, outcome.errors
            found[beside].append((outcome.p99_ms, outcome.rate))
            print(
                f"{options.callers} callers {'beside the archive' if beside else 'alone':19}"
                f"p99 {outcome.p99_ms:6.1f} ms, median {outcome.median_ms:6.1f} ms, "
                f"{outcome.rate:,.0f} charges/s",
                flush=True,
            )
    alone, with_it = (statistics.median(p99 for p99, _ in found[beside]) for beside in found)
    moved = await database["transactions_archive"].estimated_document_count()
    print(f"p99 beside the archive: {with_it / alone:.2f} of alone; {moved:,} transactions moved")


async def _with_archive(
    uri: str,
    database: _Database,
    drive_load: Callable[..., Awaitable[Any]],
    charge: Callable[[str, int, str], Awaitable[None]],
    load: Load,
) -> Any:
    """The archive is interrupted at the end, and goes on in the next window."""
    process = await _start("archive", *_CUT_OFF, uri=uri, database=database.name)
    try:
        outcome = await drive_load(charge, load)
        assert process.returncode is None, "the archive came to its end: more rows are needed"
        return outcome
    finally:
        if process.returncode is None:
            # As by Ctrl-C: killed, it would leave a lease that outlasts the next window.
            process.send_signal(signal.SIGINT)
        await process.wait()


async def _measure(options: argparse.Namespace) -> int:
    async with (
        LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        uri = replica_set.uri
        if options.rounds:
            await _charge_beside(uri, client["beside"], options)
            await client.drop_database("beside")
        if options.only_beside:
            return 0
        database, users = client["archive"], user_ids(options.users)
        await _fill(database, users, options.rows)
        with tempfile.TemporaryDirectory() as directory:
            for ending in ("csv", "jsonl", "parquet"):
                output = Path(directory, f"all.{ending}")
                cost = await _run("export", "--output", str(output), database=database, uri=uri)
                cost.tell(f"export as {ending}", options.rows)
                await asyncio.to_thread(output.unlink)
            for kind in ("transactions", "audit-logs"):
                cost = await _run(
                    "archive", *_CUT_OFF, "--only", kind, *options.to, database=database, uri=uri
                )
                cost.tell(f"archive of {kind} {' '.join(options.to[2:])}", options.rows)
        left = await database["transactions"].estimated_document_count()
        found = await verify(database)
        print(f"{left} transactions left; {len(found.findings)} findings of the verification")
        return 1 if left or found.findings else 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="windows beside the archive")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--only-beside", action="store_true")
    parser.add_argument("--format", choices=("bson", "parquet"), help="archive to files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        to_files = ["--to", f"{directory}/archive", "--format", options.format]
        options.to = to_files if options.format else []
        return asyncio.run(_measure(options))


if __name__ == "__main__":
    sys.exit(main())

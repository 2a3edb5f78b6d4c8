"""Commands at work: each runs as a process of its own, and is measured from start to end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import ACTION
from benchmarks.load import Load, Outcome, drive
from credit_mongo import CreditConfig, CreditLedger

__all__ = ["Cost", "charge_beside", "run_command"]

_ROOT: Final = Path(__file__).parents[1]
_COMMAND: Final = "import sys; from credit_mongo.cli import main; sys.exit(main(sys.argv[1:]))"

_Database = AsyncDatabase[dict[str, Any]]


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """Of the client."""
    server_seconds: float
    """Processor time of the server. Neither grows as the wall clock does on a busy machine."""
    megabytes: float

    def tell(self, what: str, rows: int, kind: str = "rows") -> None:
        """Print it."""
        rate = rows / self.seconds
        print(
            f"{what:38} {rows:>9,} {kind} in {self.seconds:6.1f} s: {rate:>7,.0f}/s, "
            f"{self.megabytes:4.0f} MB; processor time {self.cpu_seconds:.1f} s here, "
            f"{self.server_seconds:.1f} s of the server",
            flush=True,
        )


async def _start(command: Sequence[str], uri: str, database: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _COMMAND),
        *command,
        *("--uri", uri, "--database", database),
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
    )


async def run_command(*command: str, database: _Database, uri: str) -> Cost:
    """Run ``credit-mongo …`` to its end. The memory is the highest that the system saw."""
    begun, cpu_begun = time.perf_counter(), _cpu_of_children()
    server_begun = await _cpu_of_server(database)
    process = await _start(command, uri, database.name)
    highest = 0
    try:
        while process.returncode is None:
            highest = max(highest, _resident_bytes(process.pid))
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.1)
    finally:
        await _interrupt(process)
    assert process.returncode == 0, command
    return Cost(
        time.perf_counter() - begun,
        _cpu_of_children() - cpu_begun,
        await _cpu_of_server(database) - server_begun,
        highest / 1e6,
    )


async def _interrupt(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # As by Ctrl-C: killed, it would leave a lease that outlasts the next window.
        process.send_signal(signal.SIGINT)
        await process.wait()


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


async def _until_it_grows(database: _Database, collection: str) -> None:
    """Wait for a command that has to start first, and reads before it writes."""
    before = await database[collection].estimated_document_count()
    while await database[collection].estimated_document_count() == before:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def charge_beside(
    *command: str,
    grows: str | None = None,
    database: _Database,
    uri: str,
    config: CreditConfig,
    load: Load,
    rounds: int,
    repeats: bool = False,
) -> None:
    """Print what the same load meets in windows without the command and with it, by turns.

    A window begins when the command has begun to fill the collection ``grows`` (None: at once). At
    its end the command is interrupted, and it goes on in the next, or begins anew. A command that
    ends within a window is called again if it ``repeats``.
    """
    found: dict[bool, list[float]] = {False: [], True: []}
    async with CreditLedger(database, config) as ledger:

        async def charge(user_id: str, _cost: int, key: str) -> None:
            await ledger.charge(user_id, ACTION, idempotency_key=key)

        async def beside_each() -> Outcome:
            async def call_again() -> None:
                while True:
                    process = await _start(command, uri, database.name)
                    try:
                        assert await process.wait() == 0
                    finally:
                        await _interrupt(process)

            calling = asyncio.ensure_future(call_again())
            try:
                outcome = await drive(charge, load)
                assert not calling.done(), "the command has failed"
                return outcome
            finally:
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)

        async def beside() -> Outcome:
            process = await _start(command, uri, database.name)
            try:
                if grows is not None:
                    await asyncio.wait_for(_until_it_grows(database, grows), 60)
                outcome = await drive(charge, load)
                assert process.returncode is None, "it came to its end: more rows are needed"
                return outcome
            finally:
                await _interrupt(process)

        for number in range(2 * rounds):
            is_beside = number % 2 == 1
            with_command = beside_each if repeats else beside
            outcome = await (with_command() if is_beside else drive(charge, load))
            assert not outcome.errors, outcome.errors
            found[is_beside].append(outcome.p99_ms)
            print(
                f"{load.callers} callers {'beside the command' if is_beside else 'alone':19}"
                f"p99 {outcome.p99_ms:6.1f} ms, median {outcome.median_ms:6.1f} ms, "
                f"{outcome.rate:,.0f} charges/s",
                flush=True,
            )
    alone, with_it = (statistics.median(found[is_beside]) for is_beside in found)
    print(f"p99 beside the command: {with_it / alone:.2f} of alone", flush=True)

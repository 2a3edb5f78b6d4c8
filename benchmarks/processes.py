"""This library in several processes at once, on the same users: each with its own client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import Load, Outcome
from benchmarks.peers.ledger import LedgerPeer

__all__ = ["run_processes", "together"]


async def run_processes(
    peer: LedgerPeer, load: Load, *, processes: int, loop_name: str
) -> list[Outcome]:
    """Let so many processes take the load each, beginning at one moment."""
    job = {"uri": peer.uri, "database": peer.database_name, "load": asdict(load)}
    children = [await _start(loop_name) for _ in range(processes)]
    try:
        for child in children:
            _write(child, json.dumps(job))
        for child in children:
            if await _read(child) != "ready":
                raise RuntimeError("a process of the benchmark did not start")
        for child in children:
            _write(child, "go")
        answers = await asyncio.gather(*(_read(child) for child in children))
        return [Outcome(**json.loads(answer)) for answer in answers]
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        await asyncio.gather(*(child.wait() for child in children))


def together(outcomes: list[Outcome]) -> Outcome:
    """All processes as one: rates add up, the tail is that of the process with the longest."""
    counts: dict[str, Counter[str]] = {
        name: sum((Counter(getattr(outcome, name)) for outcome in outcomes), Counter())
        for name in ("errors", "acknowledged", "unknown")
    }
    seconds = max(outcome.seconds for outcome in outcomes)
    return Outcome(
        charges=round(sum(outcome.rate for outcome in outcomes) * seconds),
        seconds=seconds,
        cpu_seconds=sum(outcome.cpu_seconds for outcome in outcomes),
        median_ms=max(outcome.median_ms for outcome in outcomes),
        p99_ms=max(outcome.p99_ms for outcome in outcomes),
        **{name: dict(counted) for name, counted in counts.items()},
    )


async def _start(loop_name: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.child", loop_name),
        stdin=PIPE,
        stdout=PIPE,
        cwd=Path(__file__).parents[1],
        limit=2**24,
        start_new_session=True,  # Ctrl-C in a terminal is ours to handle
    )


def _write(child: Process, line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n".encode())


async def _read(child: Process) -> str:
    assert child.stdout is not None
    return (await child.stdout.readline()).decode().strip()

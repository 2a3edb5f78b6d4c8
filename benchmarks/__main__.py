"""Measure this library beside its peers: ``python -m benchmarks --help``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from benchmarks.chart import MissingChartError, draw
from benchmarks.documents import publish
from benchmarks.figures import figures
from benchmarks.loops import cancel_on_signals, run
from benchmarks.machine import describe_machine
from benchmarks.options import Options, read_options
from benchmarks.peers.medici import PACKAGES, MediciPeer
from benchmarks.report import data_of, show, write_json
from benchmarks.results import Results
from benchmarks.servers import Servers
from benchmarks.work import Works

__all__ = ["main"]

# Of tables that go to a file or a pipe.
_FILE_COLUMNS: Final = 150


async def _measure(options: Options, console: Console) -> int:
    cancel_on_signals()
    interrupted = False
    began = time.monotonic()

    def tell(line: str) -> None:
        seconds = time.monotonic() - began
        console.print(f"{seconds:5.0f} s {line}", highlight=False, soft_wrap=True)

    async with Servers(options) as servers:
        works = Works(options, servers, tell)
        try:
            await works.do()
        except asyncio.CancelledError:
            interrupted = True
    results = works.results
    is_good = not (interrupted or results.off or results.failed)
    _report(options, console, results, servers, may_publish=is_good)
    if interrupted:
        console.print("Interrupted. This is what was measured; what was started is stopped.")
        return 130
    return 0 if is_good else 1


def _report(
    options: Options, console: Console, results: Results, servers: Servers, *, may_publish: bool
) -> None:
    used_medici = any(run.kind == MediciPeer.kind for run in results.runs)
    machine = describe_machine(
        options.loop,
        servers.mongod_version,
        servers.postgresql_version,
        PACKAGES["medici"] if used_medici else "",
    )
    found = figures(results)
    show(console, results, found, machine)
    data = data_of(results, found, machine)
    if options.json is not None:
        write_json(data, options.json)
    try:
        if options.charts is not None:
            draw(data, options.charts)
        if options.publish and may_publish:
            publish(data)
    except MissingChartError as reason:
        console.print(str(reason))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks`` and return its exit code."""
    options = read_options(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_COLUMNS)
    return run(_measure(options, console), options.loop)


if __name__ == "__main__":
    sys.exit(main())

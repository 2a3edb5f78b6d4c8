"""Measure this library beside its peers: ``python -m benchmarks --help``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from benchmarks.chart import MissingChartError, draw
from benchmarks.figures import figures
from benchmarks.loops import cancel_on_signals, run
from benchmarks.machine import describe_machine
from benchmarks.options import Options, read_options
from benchmarks.peers.medici import PACKAGES, MediciPeer
from benchmarks.report import show, write_json
from benchmarks.results import Results
from benchmarks.servers import Servers
from benchmarks.work import ORDER, Works

__all__ = ["main"]

# Of tables that go to a file or a pipe.
_FILE_COLUMNS: Final = 150


async def _measure(options: Options, console: Console) -> int:
    cancel_on_signals()
    interrupted = False
    async with Servers(options) as servers:
        works = Works(
            options,
            servers,
            lambda line: console.print(line, highlight=False, soft_wrap=True),
        )
        try:
            for number in ORDER:
                if number in options.only:
                    await works.do(number)
        except asyncio.CancelledError:
            interrupted = True
    _report(options, console, works.results, servers)
    if interrupted:
        console.print("Interrupted. This is what was measured; what was started is stopped.")
        return 130
    return 1 if works.results.off or works.results.failed else 0


def _report(options: Options, console: Console, results: Results, servers: Servers) -> None:
    used_medici = any(run.kind == MediciPeer.kind for run in results.runs)
    machine = describe_machine(
        options.loop,
        servers.mongod_version,
        servers.postgresql_version,
        PACKAGES["medici"] if used_medici else "",
    )
    found = figures(results, options.only)
    show(console, results, found, machine)
    if options.json is not None:
        write_json(options.json, results, found, machine)
    if options.chart is not None and 9 in options.only:
        try:
            draw(results, options.sweep_callers, options.chart)
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

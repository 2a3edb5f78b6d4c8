"""The options of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.loops import LOOPS, is_there

__all__ = ["PUBLISHED", "WORKS", "Options", "read_options"]

WORKS: Final = {
    "callers": "1 to 1000 callers, 1000 users, on 1 and 3 members, without and with 1 ms of delay",
    "batches": "1000 callers, 1000 users, beside the same batches by hand",
    "one-user": "1000 callers, one user",
    "latency": "1 caller, beside the smallest transaction by hand",
    "processes": "4 processes of 100 callers, on one user, and a tenth on one user",
    "medici": "1000 callers, 1000 users, beside Medici, on 3 members",
    "lanes": "1 to 1000 callers, beside 1, 2 and 4 lanes that stay open",
    "growth": "1000 callers, 1000 users, with 5 million charges behind them",
}
PUBLISHED: Final = ("callers", "batches", "one-user", "latency", "processes", "medici")
"""What `make bench` runs. The other works take long, and concern who develops the library."""
_QUICK: Final = {
    "seconds": 0.5,
    "warm_up_seconds": 0.2,
    "rounds": 1,
    "callers": (1, 64),
    "pools": (16,),
    "latency_charges": 20,
    "growth_rows": 20_000,
    "growth_charges": 2_000,
}


@dataclass(frozen=True)
class Options:
    """What was asked. Times are in seconds."""

    only: tuple[str, ...]
    seconds: float
    warm_up_seconds: float
    rounds: int
    callers: tuple[int, ...]
    pools: tuple[int, ...]
    latency_charges: int
    growth_rows: int
    growth_charges: int
    cache_gigabytes: float
    loop: str
    json: Path | None
    charts: Path | None
    publish: bool


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line. ``--quick`` makes the defaults shorter."""
    parser = _parser()
    quick = parser.parse_known_args(arguments)[0].quick
    parser.set_defaults(**(_QUICK if quick else {}))
    values = vars(parser.parse_args(arguments))
    del values["quick"]
    if wrong := [name for name in values["only"] if name not in WORKS]:
        parser.error(f"--only: there is no work {wrong[0]!r:.40}; choose from {', '.join(WORKS)}")
    if values["publish"] and (quick or values["only"] != PUBLISHED):
        parser.error("--publish: the whole run is published, so leave out --quick and --only")
    if not is_there(values["loop"]):
        parser.error("--loop: uvloop is not installed: install the extra `bench`, or use asyncio")
    return Options(**values)


def _parser() -> argparse.ArgumentParser:
    works = "\n".join(f"  {name:10} {title}" for name, title in WORKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library and its peers under the same load on this machine,\n"
        "in turns. Exit code 0: measured; 1: some books are off, or a peer failed;\n"
        "130: interrupted.",
        epilog=f"works (without --only, all but lanes and growth, in about 18 minutes):\n{works}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="short runs: they show that all works, not how fast")
    add("--only", type=_names, default=PUBLISHED, help="these works, as in callers,latency")
    add("--publish", action="store_true", help="write results, charts and the README's tables")
    add("--seconds", type=_positive, default=1.5, help="measured in each run (%(default)s)")
    add("--warm-up-seconds", type=_positive, default=0.7, help="before that (%(default)s)")
    add("--rounds", type=_whole, default=2, help="whose median counts (%(default)s)")
    add("--callers", type=_numbers, default=(1, 4, 16, 64, 256, 1000), help="how many at once")
    add("--pools", type=_numbers, default=(16, 64), help="PostgreSQL's pool sizes to try")
    add("--latency-charges", type=_whole, default=500, help="of latency, a round (%(default)s)")
    add("--growth-rows", type=_whole, default=5_000_000, help="of growth (%(default)s)")
    add("--growth-charges", type=_whole, default=20_000, help="of growth (%(default)s)")
    add("--cache-gigabytes", type=_positive, default=1.0, help="of each server (%(default)s)")
    add("--loop", choices=LOOPS, default=LOOPS[0] if is_there(LOOPS[0]) else LOOPS[1])
    add("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    add("--charts", type=Path, metavar="DIR", help="draw the charts of callers there")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_whole(part) for part in text.split(","))


def _whole(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError
    return number

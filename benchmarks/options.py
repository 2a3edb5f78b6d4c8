"""What can be asked of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.loops import LOOPS, is_there

__all__ = ["WORKS", "Options", "read_options"]

WORKS: Final = {
    1: "1000 callers, 1000 users, 1 member",
    2: "1000 callers, one user, 1 member",
    3: "64 callers, 1000 users, 3 members",
    4: "1000 callers, 1000 users, 3 members",
    5: "1 caller, one user, 1 member",
    6: "4 processes of 100 callers, one user, 1 member",
    7: "4 processes of 100 callers, a tenth on one user, the rest on 1000, 1 member",
    8: "growth: 1000 callers, 1000 users, 1 member",
    9: "the chart: 1 to 1000 callers, 1000 users and one user, 1 member",
}
_CHART: Final = Path(__file__).with_name("results.png")
_QUICK: Final = {
    "seconds": 1.5,
    "warm_up_seconds": 0.5,
    "rounds": 1,
    "pools": (32,),
    "latency_charges": 100,
    "growth_rows": 100_000,
    "growth_charges": 5_000,
    "sweep_callers": (1, 64, 1000),
    "chart": None,
}


@dataclass(frozen=True)
class Options:
    """What was asked. Times are in seconds."""

    only: tuple[int, ...]
    seconds: float
    warm_up_seconds: float
    rounds: int
    pools: tuple[int, ...]
    latency_charges: int
    growth_rows: int
    growth_charges: int
    sweep_callers: tuple[int, ...]
    cache_gigabytes: float
    loop: str
    json: Path | None
    chart: Path | None


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line. What is not given is the default, shorter with ``--quick``."""
    parser = _parser()
    quick = parser.parse_known_args(arguments)[0].quick
    parser.set_defaults(**(_QUICK if quick else {}))
    values = vars(parser.parse_args(arguments))
    del values["quick"]
    if not set(values["only"]) <= set(WORKS):
        parser.error(f"--only takes numbers from 1 to {len(WORKS)}")
    if not is_there(values["loop"]):
        parser.error("uvloop is not installed: install the extra `bench`, or use --loop asyncio")
    return Options(**values)


def _parser() -> argparse.ArgumentParser:
    works = "\n".join(f"  {number}  {title}" for number, title in WORKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library beside its peers: the same load, on this machine, in\n"
        "turns. Exit code 0: measured; 1: some books are off; 130: interrupted.",
        epilog=f"works:\n{works}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="short runs, one round: only to see that it works")
    add("--only", type=_numbers, default=tuple(WORKS), help="these works, as in 1,6,7 (else: all)")
    add("--seconds", type=_positive, default=2.0, help="of each run, as measured (%(default)s)")
    add("--warm-up-seconds", type=_positive, default=1.0, help="before that (%(default)s)")
    add("--rounds", type=_whole, default=3, help="of which the median is taken (%(default)s)")
    add("--pools", type=_numbers, default=(16, 32, 64), help="PostgreSQL's sizes to try")
    add("--latency-charges", type=_whole, default=500, help="of work 5, a round (%(default)s)")
    add("--growth-rows", type=_whole, default=5_000_000, help="of work 8 (%(default)s)")
    add("--growth-charges", type=_whole, default=20_000, help="of work 8 (%(default)s)")
    add("--sweep-callers", type=_numbers, default=(1, 16, 64, 256, 1000), help="of work 9")
    add("--cache-gigabytes", type=_positive, default=1.0, help="of each server (%(default)s)")
    add("--loop", choices=LOOPS, default=LOOPS[0] if is_there(LOOPS[0]) else LOOPS[1])
    add("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    add(
        "--chart",
        type=Path,
        metavar="FILE",
        default=_CHART,
        help="write the PNG of work 9 there (else: beside this program; not if --quick)",
    )
    return parser


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

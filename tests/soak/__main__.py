"""``python -m tests.soak --seconds N --seed S``.

On a violation, prints the seed and exits with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys

from tests.soak.run import Options, soak


def _positive(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main() -> int:
    """Read the options, soak, and print the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Request a ledger on three members under random faults, and check the history.",
    )
    parser.add_argument("--seconds", type=_positive, default=180.0, help="under faults (180)")
    parser.add_argument(
        "--operations", type=int, default=0, help="go on until so many are acknowledged (0)"
    )
    parser.add_argument("--seed", type=int, help="of the schedule and the work (else: random)")
    parser.add_argument(
        "--clients", type=int, choices=(1, 2, 3), default=1, help="processes beside the first (1)"
    )
    given = parser.parse_args()
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    summary = asyncio.run(
        soak(
            Options(given.seconds, seed, given.operations, children=given.clients),
            lambda line: print(line, flush=True),
        )
    )
    print("\n".join(summary.lines()))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())

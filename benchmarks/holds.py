"""What lots and holds cost beside plain charges: ``python -m benchmarks.holds [--seconds 4]``.

The same callers do three kinds of work in turns, several rounds each: a charge of a user without
lots, a charge of a user with 64 lots, and a hold with its capture. Each round's times are compared
with the plain charges of the same round. At the end, verification looks at all accounts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient

from benchmarks.hand_written import ACTION
from benchmarks.load import OPENING_CREDITS
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify

__all__ = ["main"]

_USERS: Final = 1000
_LOTS: Final = 64
_WARM_UP_SECONDS: Final = 0.5
# So that nothing of the preparations fails on a busy machine.
_CONFIG: Final = CONFIG.model_copy(update={"operation_timeout_seconds": 120.0})
_Work = Callable[[CreditLedger, str], Awaitable[object]]


async def _charge(ledger: CreditLedger, user: str) -> object:
    return await ledger.charge(user, ACTION, idempotency_key=uuid4().hex)


async def _hold(ledger: CreditLedger, user: str) -> object:
    hold = await ledger.place_hold(user, ACTION, idempotency_key=uuid4().hex)
    return await ledger.capture_hold(hold.hold_id)


_WORKS: Final[dict[str, tuple[_Work, str]]] = {
    "a charge": (_charge, "plain"),
    f"a charge with {_LOTS} lots": (_charge, "lots"),
    "a hold with its capture": (_hold, "holds"),
}


async def _fill(ledger: CreditLedger) -> None:
    await ledger.ensure_indexes()
    kinds = {kind for _, kind in _WORKS.values()}
    await asyncio.gather(
        *(
            ledger.create_user(f"{kind}-{number}", credits=OPENING_CREDITS)
            for kind in sorted(kinds)
            for number in range(_USERS)
        )
    )
    end = datetime.now(timezone.utc) + timedelta(days=1)
    for lot in range(_LOTS):
        await asyncio.gather(
            *(
                ledger.grant(
                    f"lots-{number}",
                    OPENING_CREDITS,
                    action="bonus",
                    expires_at=end,
                    source=f"{lot}",
                )
                for number in range(_USERS)
            )
        )


async def _run(
    ledger: CreditLedger, callers: int, seconds: float, work: _Work, kind: str
) -> tuple[float, float]:
    """Return the time and the processor time of one piece of work, in microseconds."""
    done = 0

    async def call(number: int, until: float) -> None:
        nonlocal done
        while time.monotonic() < until:
            await work(ledger, f"{kind}-{number % _USERS}")
            number += callers
            done += 1

    async def all_call(seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(call(number, until) for number in range(callers)))

    await all_call(_WARM_UP_SECONDS)
    done = 0
    began, processor = time.monotonic(), time.process_time()
    await all_call(seconds)
    times = time.monotonic() - began, time.process_time() - processor
    return times[0] / done * 1e6, times[1] / done * 1e6


async def _measure(seconds: float, rounds: int, callers: Sequence[int]) -> int:
    async with (
        LocalReplicaSet(1) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        database = client["holds"]
        async with CreditLedger(database, _CONFIG) as ledger:
            await _fill(ledger)
            for count in callers:
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in _WORKS}
                for _ in range(rounds):
                    for name, (work, kind) in _WORKS.items():
                        found[name].append(await _run(ledger, count, seconds, work, kind))
                _tell(count, found)
        findings = (await verify(database)).findings_total
    print(f"{findings} findings of verification")
    return 1 if findings else 0


def _tell(callers: int, found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{callers} callers, median of {len(found['a charge'])} rounds")
    for name, rounds in found.items():
        beside = [
            (mine[0] / plain[0], mine[1] / plain[1])
            for mine, plain in zip(rounds, found["a charge"], strict=True)
        ]
        micros = statistics.median(each[0] for each in rounds)
        processor = statistics.median(each[1] for each in rounds)
        times, of_processor = (statistics.median(ratio) for ratio in zip(*beside, strict=True))
        print(
            f"  {name:24} {1e6 / micros:>7,.0f}/s, {times:.2f} times a charge; "
            f"processor {processor:.0f} us, {of_processor:.2f} times",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.holds`` and return its exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.holds", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, nargs="+", default=[64, 1000])
    options = parser.parse_args(arguments)
    return asyncio.run(_measure(options.seconds, options.rounds, options.callers))


if __name__ == "__main__":
    sys.exit(main())

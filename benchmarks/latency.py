"""One charge, alone: this library beside the smallest hand-written transaction, in one run.

    python -m benchmarks.latency [--rounds 1000] [--members 1]

The two take turns, charge by charge, so that whatever else the machine does meets both. Prints each
one's median and the ratio of the medians, and checks that every charge of both is there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo import AsyncMongoClient

from benchmarks.hand_written import ACTION, charge_by_hand
from benchmarks.load import COST
from benchmarks.peers.mongodb import CONFIG, open_books
from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet

WARM_UP_ROUNDS = 100


async def measure(
    client: AsyncMongoClient[dict[str, Any]], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each charge: by the library, by hand. Both on databases with all indexes.

    The two databases are made and, when all charges of both were found in them, removed.
    """
    ours, theirs = client["latency_ledger"], client["latency_by_hand"]
    charges = WARM_UP_ROUNDS + rounds
    for database in (ours, theirs):
        await client.drop_database(database)
        await open_books(database, ["user"], COST * charges)
    async with CreditLedger(ours, CONFIG) as ledger:

        async def by_library(number: int) -> None:
            await ledger.charge("user", ACTION, idempotency_key=f"request-{number}")

        async def by_hand(number: int) -> None:
            assert await charge_by_hand(client, theirs, "user", COST, f"request-{number}")

        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(charges):
            for times, charge in zip(seconds, (by_library, by_hand), strict=True):
                times.append(await _timed(charge, number))
    for database in (ours, theirs):
        user = await database["users"].find_one({"_id": "user"})
        assert user is not None
        assert (user["credits"], user["seq"]) == (0, charges + 1)
        for collection in ("transactions", "audit_logs"):
            assert await database[collection].count_documents({}) == charges + 1
        assert await database["idempotency_records"].count_documents({}) == charges
        await client.drop_database(database)
    return seconds[0][WARM_UP_ROUNDS:], seconds[1][WARM_UP_ROUNDS:]


def median_ms(seconds: list[float]) -> float:
    """The median of some times, in milliseconds."""
    return statistics.median(seconds) * 1000


async def _timed(charge: Callable[[int], Awaitable[None]], number: int) -> float:
    begun = time.perf_counter()
    await charge(number)
    return time.perf_counter() - begun


async def main() -> None:
    """Start a replica set, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--members", type=int, choices=(1, 3), default=1)
    arguments = parser.parse_args()
    async with (
        LocalReplicaSet(members=arguments.members) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        ours, theirs = await measure(client, arguments.rounds)
    for name, times in (("credit_mongo", ours), ("hand-written", theirs)):
        nine_tenths = statistics.quantiles(times, n=10)[-1]
        print(
            f"{name:13} median {median_ms(times):6.2f} ms, "
            f"nine of ten within {nine_tenths * 1000:6.2f} ms, {len(times)} charges"
        )
    print(f"ratio of the medians: {median_ms(ours) / median_ms(theirs):.2f}")


if __name__ == "__main__":
    asyncio.run(main())

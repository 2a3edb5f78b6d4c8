"""One charge alone: this library beside the smallest hand-written transaction.

The two take turns, charge by charge, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pymongo import AsyncMongoClient

from benchmarks.hand_written import ACTION, charge_by_hand
from benchmarks.load import COST
from benchmarks.peers.mongodb import CONFIG, open_books
from credit_mongo import CreditLedger

__all__ = ["measure", "median_ms"]

_WARM_UP_CHARGES: Final = 50


async def measure(
    client: AsyncMongoClient[dict[str, Any]], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each charge: by the library, by hand. Both on databases with all indexes.

    The two databases are made and, when all charges of both were found in them, removed.
    """
    ours, theirs = client["latency_ledger"], client["latency_by_hand"]
    charges = _WARM_UP_CHARGES + rounds
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
    return seconds[0][_WARM_UP_CHARGES:], seconds[1][_WARM_UP_CHARGES:]


def median_ms(seconds: list[float]) -> float:
    """The median of some times, in milliseconds."""
    return statistics.median(seconds) * 1000


async def _timed(charge: Callable[[int], Awaitable[None]], number: int) -> float:
    begun = time.perf_counter()
    await charge(number)
    return time.perf_counter() - begun

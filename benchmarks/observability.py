"""What observing costs: ``python -m benchmarks.observability [--rounds 40]``.

The same callers charge through a ledger with nothing beside it, and through others with a
`CommandLog`, with `Telemetry`, with both, and with `Telemetry` that also makes spans, of which a
hundredth is sampled and exported. Prometheus reads the metrics every five seconds during all of
this. The ledgers take turns, in many short rounds of one run, and each run is compared with the
plain one of the same round. The figure is the median of these pairs, with the interval in which it
lies in 95 of 100 such measurements. At the end, verification looks at all accounts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import generate_latest
from pymongo import AsyncMongoClient

from benchmarks.hand_written import ACTION
from benchmarks.load import OPENING_CREDITS, Load, Outcome, drive, user_ids
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.observability import CommandLog
from credit_mongo.observability.telemetry import Telemetry

__all__ = ["main"]

_USERS: Final = 1000
_DATABASE: Final = "observed"
_PLAIN: Final = "nothing"
_BETWEEN_SCRAPES_SECONDS: Final = 5.0
# So that nothing fails on a busy machine.
_CONFIG: Final = CONFIG.model_copy(update={"operation_timeout_seconds": 120.0})


@contextlib.asynccontextmanager
async def _ledgers(uri: str) -> AsyncIterator[dict[str, CreditLedger]]:
    """One for each way to observe, on a client of its own."""
    metrics = MeterProvider([PrometheusMetricReader()])
    sampled = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.01)))
    sampled.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    unread = MeterProvider([InMemoryMetricReader()])
    async with contextlib.AsyncExitStack() as stack:

        async def opened(**options: Any) -> CreditLedger:
            ledger = CreditLedger.connect(uri, database=_DATABASE, config=_CONFIG, **options)
            return await stack.enter_async_context(ledger)

        log: dict[str, Any] = {"event_listeners": [CommandLog()]}
        kept: dict[str, Any] = {"observer": Telemetry(meter_provider=metrics)}
        traced = Telemetry(spans=True, meter_provider=unread, tracer_provider=sampled)
        yield {
            _PLAIN: await opened(),
            "command log": await opened(**log),
            "metrics": await opened(**kept),
            "log and metrics": await opened(**log, **kept),
            "metrics and spans": await opened(observer=traced),
        }


@contextlib.asynccontextmanager
async def _scraped() -> AsyncIterator[None]:
    """Meanwhile, the metrics are read as Prometheus does, which all runs pay for alike."""

    async def scrape() -> None:
        while True:
            await asyncio.sleep(_BETWEEN_SCRAPES_SECONDS)
            await asyncio.to_thread(generate_latest)

    scraping = asyncio.create_task(scrape())
    try:
        yield
    finally:
        scraping.cancel()


async def _run(ledger: CreditLedger, load: Load) -> Outcome:
    async def charge(user_id: str, cost: int, key: str) -> object:
        return await ledger.charge(user_id, ACTION, amount=cost, idempotency_key=key)

    return await drive(charge, load)


async def _measure(seconds: float, rounds: int, callers: int) -> int:
    load = Load(callers, user_ids(_USERS), seconds, warm_up_seconds=0.25)
    async with (
        LocalReplicaSet(1) as replica_set,
        _ledgers(replica_set.uri) as ledgers,
        _scraped(),
    ):
        first = ledgers[_PLAIN]
        await first.ensure_indexes()
        opening = (first.create_user(user, credits=OPENING_CREDITS) for user in load.users)
        await asyncio.gather(*opening)
        found: dict[str, list[Outcome]] = {name: [] for name in ledgers}
        for number in range(rounds + 1):
            # Whoever comes later in a round meets a larger database: they take turns.
            names = list(ledgers)
            for name in names if number % 2 else reversed(names):
                outcome = await _run(ledgers[name], load)
                if number:  # the first round warms up
                    found[name].append(outcome)
        async with AsyncMongoClient[Any](replica_set.uri, tz_aware=True) as client:
            findings = (await verify(client[_DATABASE])).findings_total
    _tell(callers, found)
    errors = sum(sum(each.errors.values()) for outcomes in found.values() for each in outcomes)
    print(f"{findings} findings of verification, {errors} errors")
    return 1 if findings or errors else 0


def _tell(callers: int, found: dict[str, list[Outcome]]) -> None:
    plain = found[_PLAIN]
    print(f"{callers} callers, median of {len(plain)} rounds")
    for name, outcomes in found.items():
        rate = statistics.median(each.rate for each in outcomes)
        processor = statistics.median(each.cpu_microseconds for each in outcomes)
        print(f"  {name:17} {rate:>7,.0f}/s, processor {processor:.1f} us a charge", end="")
        if outcomes is not plain:
            pairs = list(zip(outcomes, plain, strict=True))
            rates = _interval([mine.rate / other.rate for mine, other in pairs], ".3f")
            more = [mine.cpu_microseconds - other.cpu_microseconds for mine, other in pairs]
            print(f": {rates} times the rate of nothing, {_interval(more, '+.1f')} us", end="")
        print()


def _interval(values: list[float], form: str) -> str:
    """The median, and where it lies with a confidence of 95 %, by the order of the values."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    low = ordered[max(math.floor(len(values) / 2 - half), 0)]
    high = ordered[min(math.ceil(len(values) / 2 + half), len(values)) - 1]
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.observability`` and return its exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.observability", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--callers", type=int, default=1000)
    options = parser.parse_args(arguments)
    return asyncio.run(_measure(options.seconds, options.rounds, options.callers))


if __name__ == "__main__":
    sys.exit(main())

"""What observing costs: ``python -m benchmarks.observability [--rounds 60]``.

The same callers charge through a ledger with nothing beside it, and through others with a
`CommandLog`, with `Telemetry`, with both, and with `Telemetry` that also makes spans, of which a
hundredth is sampled and exported. Prometheus reads the metrics every five seconds during all of
this. The callers never stop: they change from ledger to ledger, in many short rounds, and each
window is compared with the plain one of the same round. The figure is the median of these pairs,
with the interval in which it lies in 95 of 100 such measurements. Each ledger has its own users, so
that none waits for another's commit. At the end, verification looks at all accounts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
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
from benchmarks.load import COST, OPENING_CREDITS, user_ids
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditError, CreditLedger
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


@dataclass(frozen=True)
class _Window:
    """What was done in a window, and the client's processor time for it."""

    charges: int
    seconds: float
    processor_seconds: float

    @property
    def rate(self) -> float:
        """Charges a second."""
        return self.charges / self.seconds

    @property
    def microseconds(self) -> float:
        """Processor time of the client a charge."""
        return self.processor_seconds / self.charges * 1e6


class _Callers:
    """Callers that charge one time after the other, all through the ledger of the moment."""

    def __init__(self, ledger: CreditLedger, users: tuple[str, ...]) -> None:
        self._ledger, self._users = ledger, users
        self._done = 0
        self._has_ended = False
        self.errors = 0

    async def call(self) -> None:
        """Be one of them."""
        chance = random.Random()
        while not self._has_ended:
            user, key = chance.choice(self._users), f"{chance.getrandbits(128):032x}"
            try:
                await self._ledger.charge(user, ACTION, amount=COST, idempotency_key=key)
            except CreditError:
                self.errors += 1
            self._done += 1

    async def window(
        self, ledger: CreditLedger, users: tuple[str, ...], seconds: float, callers: int
    ) -> _Window:
        """Let all of them change to a ledger, and measure what it does from then on."""
        self._ledger, self._users = ledger, users
        await self._answers(2 * callers)
        began, processor, done = time.perf_counter(), time.process_time(), self._done
        await asyncio.sleep(seconds)
        await self._answers(callers, since=done)
        return _Window(
            self._done - done, time.perf_counter() - began, time.process_time() - processor
        )

    async def _answers(self, count: int, since: int | None = None) -> None:
        enough = count + (self._done if since is None else since)
        while self._done < enough:  # noqa: ASYNC110 - an event would cost each call something
            await asyncio.sleep(0.01)

    def end(self) -> None:
        """Let each have its last answer."""
        self._has_ended = True


class _Order:
    """By chance, but no ledger twice in a row: whoever has no callers to take over is faster."""

    def __init__(self) -> None:
        self._chance = random.Random(17)
        self._last = ""

    def round(self, names: list[str]) -> list[str]:
        """Each of the names once."""
        while True:
            self._chance.shuffle(names)
            if names[0] != self._last:
                self._last = names[-1]
                return names


async def _measure(seconds: float, rounds: int, callers: int) -> int:
    async with (
        LocalReplicaSet(1) as replica_set,
        _ledgers(replica_set.uri) as ledgers,
        _scraped(),
    ):
        first = ledgers[_PLAIN]
        await first.ensure_indexes()
        users = {name: tuple(f"{name} {each}" for each in user_ids(_USERS)) for name in ledgers}
        opening = (
            first.create_user(user, credits=OPENING_CREDITS)
            for each in users.values()
            for user in each
        )
        await asyncio.gather(*opening)
        found: dict[str, list[_Window]] = {name: [] for name in ledgers}
        charging, order = _Callers(first, users[_PLAIN]), _Order()
        calling = [asyncio.create_task(charging.call()) for _ in range(callers)]
        for number in range(rounds + 1):
            for name in order.round(list(ledgers)):
                window = await charging.window(ledgers[name], users[name], seconds, callers)
                if number:  # the first round warms up
                    found[name].append(window)
        charging.end()
        await asyncio.gather(*calling)
        async with AsyncMongoClient[Any](replica_set.uri, tz_aware=True) as client:
            findings = (await verify(client[_DATABASE])).findings_total
    _tell(callers, found)
    print(f"{findings} findings of verification, {charging.errors} errors")
    return 1 if findings or charging.errors else 0


def _tell(callers: int, found: dict[str, list[_Window]]) -> None:
    plain = found[_PLAIN]
    print(f"{callers} callers, median of {len(plain)} rounds")
    for name, outcomes in found.items():
        rate = statistics.median(each.rate for each in outcomes)
        processor = statistics.median(each.microseconds for each in outcomes)
        print(f"  {name:17} {rate:>7,.0f}/s, processor {processor:.1f} us a charge", end="")
        if outcomes is not plain:
            pairs = list(zip(outcomes, plain, strict=True))
            rates = _interval([mine.rate / other.rate for mine, other in pairs], ".3f")
            more = [mine.microseconds - other.microseconds for mine, other in pairs]
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
    parser.add_argument("--seconds", type=float, default=0.3, help="of each window")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--callers", type=int, default=1000)
    options = parser.parse_args(arguments)
    return asyncio.run(_measure(options.seconds, options.rounds, options.callers))


if __name__ == "__main__":
    sys.exit(main())

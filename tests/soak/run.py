"""A soak: rounds on empty databases, until the time is over or a check finds a violation."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import check_promises, rows, with_options
from tests.soak.callers import Callers, Share
from tests.soak.check import violations
from tests.soak.children import Children
from tests.soak.clock import jumping_clock
from tests.soak.disturbances import APP_NAME, SHORT_LIFETIME_SECONDS, Disturbances
from tests.soak.journal import Call, Journal, read_journals
from tests.soak.tariff import configuration

__all__ = ["Options", "Summary", "soak"]

_OPENING_SECONDS: Final = 2.0
_LATEST_SECONDS: Final = 10.0
_TIMEOUT_SECONDS: Final = 8.0
_MOST_SHOWN: Final = 20
_SETTLING: Final = 400
_SETTLING_SECONDS: Final = 60.0
_CROSSING: Final = (1.0, 0.0005)


@dataclass(frozen=True)
class Options:
    """How long to soak (seconds under faults), with how many callers, and the seed.

    ``operations``: go on until this many are acknowledged, however long that takes.
    """

    seconds: float
    seed: int
    operations: int = 0
    # Many callers share each commit's cost on three members.
    callers: int = 1000
    children: int = 1
    child_callers: int = 600
    # The check's memory grows with it.
    round_seconds: float = 120.0


@dataclass
class Summary:
    """What happened, and which checks failed."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    checking_seconds: float = 0.0
    longest_overrun: float = 0.0
    violations: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the lines to print."""
        rate = self.counts["operations acknowledged"] / max(self.seconds, 0.001)
        return [
            *(f"{number:>12,} {name}" for name, number in sorted(self.counts.items())),
            f"{rate:>12,.0f} operations acknowledged a second",
            f"{self.seconds:>12,.0f} seconds under faults",
            f"{self.checking_seconds:>12,.0f} seconds to check",
            f"{self.longest_overrun:>12.1f} seconds after its deadline the latest answer",
            f"{len(self.violations):>12,} violations, seed {self.seed}",
            *(f"VIOLATION {text}" for text in self.violations[:_MOST_SHOWN]),
        ]


async def soak(options: Options, report: Callable[[str], None]) -> Summary:
    """Soak and return the summary. ``report`` gets the progress, a line at a time."""
    summary = Summary(options.seed)
    parameters = {
        "enableTestCommands": "1",
        "ttlMonitorEnabled": "false",
        "transactionLifetimeLimitSeconds": str(SHORT_LIFETIME_SECONDS),
    }
    async with LocalReplicaSet(
        members=3, parameters=parameters, cache_gigabytes=1.0
    ) as replica_set:
        number = 0
        while not summary.violations:
            left = options.seconds - summary.seconds
            if left <= 0 and summary.counts["operations acknowledged"] >= options.operations:
                break
            number += 1
            seconds = min(options.round_seconds, left if left > 0 else options.round_seconds)
            with tempfile.TemporaryDirectory() as directory:
                await _Round(options, replica_set, Path(directory), number).run(seconds, summary)
            report(
                f"round {number}: {summary.seconds:,.0f} s, "
                f"{summary.counts['operations acknowledged']:,} operations acknowledged, "
                f"{len(summary.violations)} violations"
            )
    return summary


class _Round:
    """One database, from its first user to its check."""

    def __init__(
        self, options: Options, replica_set: LocalReplicaSet, directory: Path, number: int
    ) -> None:
        self.options = options
        self.directory = directory
        self.seed = f"{options.seed} {number}"
        self.name = f"soak_{uuid4().hex[:12]}"
        self.uri = with_options(replica_set.uri, appName=APP_NAME, heartbeatFrequencyMS=500)
        # Rounds alternate: processes compete for all users, or each mostly keeps to its own.
        share = Share(0, options.children + 1, _CROSSING[number % len(_CROSSING)])
        settings: dict[str, Any] = {
            "uri": self.uri,
            "database": self.name,
            "directory": str(directory),
            "seed": self.seed,
            "callers": options.child_callers,
            "count": share.count,
            "crossing": share.crossing,
            # Shorter than the first process's: some give up while others still try.
            "timeout_seconds": _TIMEOUT_SECONDS / 2,
            "clock_start": time.time(),
        }
        clock = jumping_clock(settings["clock_start"])
        self.children = Children(options.children, settings, _TIMEOUT_SECONDS + 30)
        self.disturbances = Disturbances(replica_set, self.children, f"{self.seed} faults")
        self.journal = Journal(directory, "first")
        self.ledger = CreditLedger.connect(
            self.uri, database=self.name, config=configuration(_TIMEOUT_SECONDS), clock=clock
        )
        self.calls: dict[str, Call] = {}
        self.callers = Callers(
            self.ledger, self.journal, self.seed, _TIMEOUT_SECONDS, share, clock=clock
        )

    async def run(self, seconds: float, summary: Summary) -> None:
        """Open, disturb, stop, settle unknown outcomes, and check."""
        try:
            await self.ledger.ensure_indexes()
            await self.callers.open_accounts()
            terms = await self.disturbances.elections()
            began = time.monotonic()
            await self._disturb(seconds)
            summary.seconds += time.monotonic() - began
            began = time.monotonic()
            summary.counts["elections"] += await self.disturbances.elections() - terms
            summary.counts["unknown, settled afterwards"] += await self._settle(summary)
            await self.ledger.close()
            await self._check(summary)
            summary.checking_seconds += time.monotonic() - began
        finally:
            self.children.abandon()
            await self.ledger.close()
            await self.disturbances.close()
            self.journal.close()
        self._add_up(summary)

    async def _disturb(self, seconds: float) -> None:
        work = asyncio.create_task(self.callers.run(self.options.callers))
        try:
            await self.children.start()
            await asyncio.sleep(min(_OPENING_SECONDS, seconds / 4))
            await self.disturbances.run(seconds)
            # A while without faults, after which nothing may be left open.
            await asyncio.sleep(min(_OPENING_SECONDS, seconds / 4))
        finally:
            self.callers.stopping.set()
            await asyncio.gather(work, self.children.stop())

    async def _settle(self, summary: Summary) -> int:
        """Repeat each call whose outcome is unknown, with its key."""
        calls = read_journals(self.directory.glob("*.jsonl")).values()
        settled = {
            call.request.key
            for call in calls
            if call.outcome == "done" or (call.outcome == "refused" and call.request.is_write)
        }
        open_requests = {
            call.request.key: call.request
            for call in calls
            if call.outcome == "unknown" and call.request.key is not None
        }
        # A refusal does not settle an earlier call: that one may still have come after it.
        requests = [request for key, request in open_requests.items() if request.is_write]
        waiting = asyncio.Semaphore(_SETTLING)

        async def settle(key: str, request: Any) -> None:
            async with waiting:
                until = time.monotonic() + _SETTLING_SECONDS
                while await self.callers.call(request) not in ("done", "refused"):
                    if time.monotonic() > until:
                        summary.violations.append(f"could not be settled: {request}")
                        break

        await asyncio.gather(*(settle(request.key or "", request) for request in requests))
        return len([request for request in requests if request.key not in settled])

    async def _check(self, summary: Summary) -> None:
        await self._check_endings(summary)
        async with AsyncMongoClient[dict[str, Any]](self.uri, tz_aware=True) as client:
            database = client[self.name]
            summary.violations += await self._violations(database, summary)
            await client.drop_database(self.name)

    async def _violations(
        self, database: AsyncDatabase[dict[str, Any]], summary: Summary
    ) -> list[str]:
        found: list[str] = []
        try:
            await check_promises(database)
        except AssertionError as error:
            found.append(f"a promise is broken: {error!r}")
        verification = await verify(database)
        found += [f"verify: {finding}" for finding in verification.findings]
        self.calls = read_journals(self.directory.glob("*.jsonl"))
        transactions = await rows(database, "transactions")
        audit_logs, holds = await rows(database, "audit_logs"), await rows(database, "holds")
        summary.counts["holds placed"] += len(holds)
        due = [row["operation"] for row in transactions if row.get("writtenAt") is not None]
        summary.counts["ends of lots posted"] += due.count("expire")
        summary.counts["ends of holds posted"] += due.count("capture")
        return found + violations(self.calls, transactions, audit_logs, holds)

    async def _check_endings(self, summary: Summary) -> None:
        deadline = time.monotonic() + _LATEST_SECONDS
        while still_open := await self.disturbances.open_transactions():
            if time.monotonic() > deadline:
                summary.violations.append(f"{still_open} transactions are left open")
                return
            await asyncio.sleep(0.1)

    def _add_up(self, summary: Summary) -> None:
        names = {"done": "operations acknowledged", "failed": "told that nothing was written"}
        for call in self.calls.values():
            name = names.get(call.outcome, f"operations {call.outcome}")
            summary.counts[name if call.request.is_write else "reads"] += 1
        summary.counts += self.disturbances.counts
        summary.violations += self.children.violations
        overrun = max(self.callers.longest_overrun, self.children.longest_overrun)
        summary.longest_overrun = max(summary.longest_overrun, overrun)
        if overrun > _LATEST_SECONDS:
            summary.violations.append(f"an answer came {overrun:.1f} s after its deadline")

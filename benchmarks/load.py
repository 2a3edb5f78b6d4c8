"""The load that a peer gets, and what came of it: callers that charge one after the other.

A caller sends its next charge as soon as the last is answered, to a user taken by chance. What is
measured is a window of time in the middle: callers start before it and end after it, so that a
window has neither the first connections nor idle callers in it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

__all__ = [
    "COST",
    "DRAIN_SECONDS",
    "LONGEST_WINDOW_SECONDS",
    "OPENING_CREDITS",
    "Charge",
    "Load",
    "Outcome",
    "drive",
    "user_ids",
]

COST: Final = 10
"""What every charge costs, in credits."""
OPENING_CREDITS: Final = 10**12
"""What every user has in the beginning: no charge is refused."""
LONGEST_WINDOW_SECONDS: Final = 30.0
"""How long a window may get. It is longer than asked for until it has seen an answer a caller: with
a thousand transactions at once, some peers need more than ten seconds for their first."""
DRAIN_SECONDS: Final = 10.0
"""How long callers may still wait for their answers after the window; then they are cancelled. A
transaction a charge on one user would otherwise go on for minutes."""
# After an error, so that callers of a server that is gone do not spin.
_PAUSE_SECONDS: Final = 0.01

Charge: TypeAlias = Callable[[str, int, str], Awaitable[object]]
"""User, cost, key. Whatever it raises counts as an error."""


@dataclass(frozen=True)
class Load:
    """Who charges whom, and for how long."""

    callers: int
    users: tuple[str, ...]
    seconds: float
    """The length of the window that is measured."""
    warm_up_seconds: float
    """How long callers run before it."""
    hot_share: float = 0.0
    """The share of the charges that goes to the first user; the rest goes to all others alike."""
    charges: int | None = None
    """If given, the load ends after so many charges, and all of them are measured."""

    def choose(self) -> Callable[[], str]:
        """A function that says whom to charge next."""
        users, hot_share = self.users, self.hot_share
        if len(users) == 1:
            return lambda: users[0]
        chance = random.Random().random
        if hot_share == 0:
            count = len(users)
            return lambda: users[int(chance() * count)]
        others = len(users) - 1
        return lambda: users[0 if chance() < hot_share else 1 + int(chance() * others)]


@dataclass
class Outcome:
    """What came of a load. Times are in seconds, latencies in milliseconds."""

    charges: int
    """Charges that were acknowledged within the window."""
    seconds: float
    """The length of the window."""
    cpu_seconds: float
    """Processor time of the client's process in the window, the callers' own included."""
    median_ms: float
    p99_ms: float
    errors: dict[str, int] = field(default_factory=dict)
    """How many charges raised, by the name of the error, in all of the run."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Charges by user, in all of the run."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Charges by user that may have happened: they raised, or were cut off at the end."""

    @property
    def rate(self) -> float:
        """Charges a second."""
        return self.charges / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """Processor time of the client a charge, in microseconds."""
        return self.cpu_seconds / max(self.charges, 1) * 1e6

    def to_dict(self) -> dict[str, Any]:
        """What is reported of it."""
        return {
            "charges": self.charges,
            "seconds": round(self.seconds, 4),
            "charges_per_second": round(self.rate, 1),
            "client_cpu_microseconds_per_charge": round(self.cpu_microseconds, 2),
            "median_ms": round(self.median_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "errors": self.errors,
            "cut_off_at_the_end": sum(self.unknown.values()) - sum(self.errors.values()),
        }


@dataclass(frozen=True)
class _Sample:
    moment: float
    cpu: float

    @classmethod
    def take(cls) -> _Sample:
        return cls(time.perf_counter(), time.process_time())


class _Meter:
    """Counts for all callers of a load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.stopped = False
        self.begun = 0
        self.moments = array("d")
        self.latencies = array("d")
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def goes_on(self) -> bool:
        self.begun += 1
        return not self.stopped and (self.load.charges is None or self.begun <= self.load.charges)

    def acknowledge(self, user_id: str, begun: float) -> None:
        now = time.perf_counter()
        self.acknowledged[user_id] += 1
        self.moments.append(now)
        self.latencies.append(now - begun)

    def outcome(self, first: _Sample, last: _Sample) -> Outcome:
        latencies = [
            latency * 1000
            for moment, latency in zip(self.moments, self.latencies, strict=True)
            if first.moment <= moment < last.moment
        ]
        return Outcome(
            charges=len(latencies),
            seconds=last.moment - first.moment,
            cpu_seconds=last.cpu - first.cpu,
            median_ms=statistics.median(latencies) if latencies else 0.0,
            p99_ms=statistics.quantiles(latencies, n=100)[98] if len(latencies) > 1 else 0.0,
            errors=dict(self.errors),
            acknowledged=dict(self.acknowledged),
            unknown=dict(self.unknown),
        )


def user_ids(count: int) -> tuple[str, ...]:
    """The users of a load."""
    return tuple(f"user-{number:05}" for number in range(count))


class _NotBegunError(Exception):
    """The load ended while a caller waited for its turn, so it charged nobody."""


async def drive(charge: Charge, load: Load, at_a_time: int = 0) -> Outcome:
    """Let the callers of a load charge, and measure.

    With ``at_a_time``, at most so many charges are under way at once, and the others wait.
    """
    meter = _Meter(load)
    if at_a_time:
        charge = _in_turn(charge, meter, at_a_time)
    first = _Sample.take()
    callers = [asyncio.create_task(_call(charge, load, meter)) for _ in range(load.callers)]
    try:
        if load.charges is None:
            await asyncio.sleep(load.warm_up_seconds)
            first = _Sample.take()
            await _window(meter, load)
            last = _Sample.take()
            meter.stopped = True
            await asyncio.wait(callers, timeout=DRAIN_SECONDS)
        else:
            await asyncio.wait(callers)
            last = _Sample.take()
    finally:
        for caller in callers:
            caller.cancel()
        ended = await asyncio.gather(*callers, return_exceptions=True)
    for result in ended:
        if isinstance(result, Exception):  # not a charge's error: those are counted
            raise result
    return meter.outcome(first, last)


def _in_turn(charge: Charge, meter: _Meter, at_a_time: int) -> Charge:
    gate = asyncio.Semaphore(at_a_time)

    async def charge_in_turn(user_id: str, cost: int, key: str) -> None:
        async with gate:
            if meter.stopped:
                raise _NotBegunError
            await charge(user_id, cost, key)

    return charge_in_turn


async def _window(meter: _Meter, load: Load) -> None:
    loop = asyncio.get_running_loop()
    begun, enough = loop.time(), len(meter.moments) + load.callers
    await asyncio.sleep(load.seconds)
    while len(meter.moments) < enough and loop.time() - begun < LONGEST_WINDOW_SECONDS:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _call(charge: Charge, load: Load, meter: _Meter) -> None:
    choose = load.choose()
    bits = random.Random().getrandbits
    while meter.goes_on():
        user_id, key = choose(), f"{bits(128):032x}"
        begun = time.perf_counter()
        try:
            await charge(user_id, COST, key)
        except _NotBegunError:
            return
        except Exception as error:
            meter.unknown[user_id] += 1
            meter.errors[type(error).__name__] += 1
            await asyncio.sleep(_PAUSE_SECONDS)
        except asyncio.CancelledError:
            meter.unknown[user_id] += 1
            raise
        else:
            meter.acknowledge(user_id, begun)

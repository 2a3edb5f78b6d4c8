"""The figures to reach, and whether they were."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.options import WORKS
from benchmarks.results import Results, Run

__all__ = ["Figure", "figures"]

_OURS: Final = "credit_mongo"
_SIGNS: Final = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    work: int
    what: str
    """What is measured, with its unit."""
    value: float | None
    """None if it was not measured."""
    sign: str
    bound: float
    remark: str = ""
    """What it is made of, or why it was not measured."""

    @property
    def reached(self) -> bool | None:
        """None if it was not measured."""
        return None if self.value is None else bool(_SIGNS[self.sign](self.value, self.bound))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "work": self.work,
            "title": WORKS[self.work],
            "what": self.what,
            "measured": self.value,
            "to_reach": f"{self.sign} {self.bound:g}",
            "reached": self.reached,
            "remark": self.remark,
        }


def figures(results: Results, works: tuple[int, ...]) -> list[Figure]:
    """All figures of these works."""
    return [figure for figure in _all(results) if figure.work in works]


def _all(results: Results) -> Iterator[Figure]:
    yield _ratio(results, 1, "PostgreSQL", 2)
    yield _ratio(results, 1, "batches by hand", 0.7)
    cpu = results.median(1, _OURS, lambda run: run.outcome.cpu_microseconds)
    yield Figure(1, "client CPU a charge, µs", cpu, "≤", 40, "callers included")
    yield _ratio(results, 2, "PostgreSQL", 8)
    yield _ratio(results, 3, "a transaction a charge", 4)
    yield from _ratio_as_documented(results, 4, "Medici", 40)
    yield from _ratio_as_documented(results, 4, "Beanie", 30)
    yield _latency(results)
    yield from _processes(results, 6, 8_000)
    yield from _processes(results, 7, 6_000)
    yield _growth(results)


def _ratio(results: Results, work: int, kind: str, bound: float) -> Figure:
    """Our rate by that of the best of a kind."""
    what = f"times {kind}"
    ours, best = results.rate(work, _OURS), results.best(work, kind)
    if best is None or ours is None:
        return Figure(work, what, None, "≥", bound, results.unavailable.get(kind, "not measured"))
    name, theirs = best
    return Figure(work, what, _by(ours, theirs), "≥", bound, _rates(ours, name, theirs))


def _ratio_as_documented(results: Results, work: int, kind: str, bound: float) -> Iterator[Figure]:
    """Our rate by that of a peer as its documentation shows it; the remark has its best, too."""
    what = f"times {kind}"
    ours, best = results.rate(work, _OURS), results.best(work, kind)
    documented = [run for run in results.of(work, kind) if run.peer == kind]
    if ours is None or best is None or not documented:
        reason = results.unavailable.get(kind, "not measured")
        yield Figure(work, what, None, "≥", bound, reason)
        return
    theirs = statistics.median(run.outcome.rate for run in documented)
    remark = _rates(ours, kind, theirs)
    if best[0] != kind:
        remark += f"; {_by(ours, best[1]):.1f} times {best[0]} ({best[1]:,.0f}/s)"
    yield Figure(work, what, _by(ours, theirs), "≥", bound, remark)


def _by(ours: float, theirs: float) -> float:
    # A peer that answered nobody in all of its window gets the benefit of one answer in it.
    return ours / max(theirs, 1 / 30)


def _rates(ours: float, name: str, theirs: float) -> str:
    return f"{ours:,.0f}/s against {theirs:,.0f}/s ({name})"


def _latency(results: Results) -> Figure:
    what = "median latency, times that by hand"
    if not results.latencies:
        return Figure(5, what, None, "≤", 1.25, "not measured")
    ours, by_hand = (statistics.median(times) for times in zip(*results.latencies, strict=True))
    ratio = statistics.median(ours / by_hand for ours, by_hand in results.latencies)
    return Figure(5, what, ratio, "≤", 1.25, f"{ours:.2f} ms against {by_hand:.2f} ms")


def _processes(results: Results, work: int, least_rate: float) -> Iterator[Figure]:
    runs = results.of(work, _OURS)
    yield Figure(
        work, "charges/s together", results.rate(work, _OURS), "≥", least_rate, _apart(runs)
    )
    fairness = results.median(work, _OURS, _fairness)
    yield Figure(work, "slowest by fastest process", fairness, "≥", 0.5)
    tail = results.median(work, _OURS, lambda run: run.outcome.p99_ms)
    yield Figure(work, "p99 of the worst process, ms", tail, "≤", 300)
    errors = sum(sum(run.outcome.errors.values()) for run in runs) if runs else None
    yield Figure(work, "errors, in all rounds", errors, "≤", 0)


def _apart(runs: list[Run]) -> str:
    """The processes of the round in the middle."""
    if not runs:
        return "not measured"
    middle = sorted(runs, key=lambda run: run.outcome.rate)[len(runs) // 2]
    return "apart " + ", ".join(f"{part.rate:,.0f}" for part in middle.processes)


def _fairness(run: Run) -> float:
    rates = [part.rate for part in run.processes]
    return min(rates) / max(rates)


def _growth(results: Results) -> Figure:
    what = "time, times that with little behind it"
    scenarios = list(dict.fromkeys(run.scenario for run in results.runs if run.work == 8))
    if len(scenarios) != 2:
        return Figure(8, what, None, "≤", 1.15, "not measured")
    little, much = (
        statistics.median(run.outcome.seconds for run in results.of(8, _OURS, scenario))
        for scenario in scenarios
    )
    remark = f"{much:.2f} s with {scenarios[1]}, {little:.2f} s with {scenarios[0]}"
    return Figure(8, what, much / little, "≤", 1.15, remark)

"""The figures to reach, and whether they were."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.results import Network, Place, Results, Run

__all__ = ["Figure", "figures"]

_OURS: Final = "credit_mongo"
_SHORT: Final = {
    "PostgreSQL": "PostgreSQL's stored function",
    "a transaction a charge": "a transaction a charge by hand",
    "Beanie": "a transaction a charge with Beanie",
    "Medici": "Medici without snapshots, 64 at a time",
    "batches by hand": "the same batches by hand",
}
_SIGNS: Final = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    place: str
    """Under what load."""
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
        """For the data file."""
        return {
            "place": self.place,
            "what": self.what,
            "measured": self.value,
            "to_reach": f"{self.sign} {self.bound:g}",
            "reached": self.reached,
            "remark": self.remark,
        }


def figures(results: Results) -> list[Figure]:
    """The figures of all that was measured."""
    measured = set(results.places)
    found = [figure for place, figure in _compared(results) if place in measured]
    if results.latencies:
        found.append(_latency(results))
    for place in results.places:
        if place.work == "processes":
            found += _processes(results, place)
        elif place.work == "lanes":
            found.append(_lanes(results, place))
    found += _growth(results)
    return found


def _compared(results: Results) -> Iterator[tuple[Place, Figure]]:
    """Rates and processor time beside those of peers."""
    by_hand, one, three = "a transaction a charge", Network(1), Network(3)
    for place, kind, bound in (
        (Place("callers", 64, network=one), "PostgreSQL", 1.2),
        (Place("callers", 64, network=one), by_hand, 6),
        (Place("callers", 64, network=three), by_hand, 6),
        (Place("callers", 64, network=three), "Beanie", 6),
        (Place("callers", 1000, network=one), "PostgreSQL", 2),
        (Place("batches"), "batches by hand", 0.8),
        (Place("one-user", users="one user"), "PostgreSQL", 6),
        (Place("medici", network=three), "Medici", 10),
    ):
        yield place, _ratio(results, place, kind, bound)
        if place.work == "batches":
            yield place, _processor(results, place, kind)


def _processor(results: Results, place: Place, kind: str) -> Figure:
    ours, theirs = (
        results.median(place, name, lambda run: run.outcome.cpu_microseconds)
        for name in (_OURS, kind)
    )
    ratio = ours / theirs if ours and theirs else None
    remark = f"{ours:.0f} µs against {theirs:.0f} µs a charge" if ours and theirs else ""
    return Figure(place.title, f"client processor, times {kind}", ratio, "≤", 1.5, remark)


def _ratio(results: Results, place: Place, kind: str, bound: float) -> Figure:
    """Our rate by that of the best of a kind."""
    what = f"times {_SHORT.get(kind, kind)}"
    ours, name = results.rate(place, _OURS), results.best(place, kind)
    theirs = None if name is None else results.rate(place, name)
    if ours is None or theirs is None:
        reason = results.unavailable.get(kind, "not measured")
        return Figure(place.title, what, None, "≥", bound, reason)
    # A peer that answered nobody in all of its window gets the benefit of one answer in it.
    value = ours / max(theirs, 1 / 30)
    remark = f"{ours:,.0f}/s against {theirs:,.0f}/s ({name})"
    return Figure(place.title, what, value, "≥", bound, remark)


def _latency(results: Results) -> Figure:
    ours, by_hand = (statistics.median(times) for times in zip(*results.latencies, strict=True))
    ratio = statistics.median(ours / by_hand for ours, by_hand in results.latencies)
    remark = f"{ours:.2f} ms against {by_hand:.2f} ms"
    title = Place("latency", 1, "one user").title
    return Figure(title, "median latency, times that by hand", ratio, "≤", 1.15, remark)


def _processes(results: Results, place: Place) -> Iterator[Figure]:
    title = f"4 processes, {place.title}"
    runs = results.of(place, _OURS)
    if not runs:
        return
    rate = results.rate(place, _OURS) or 0.0
    alone = results.rate(place, "one process")
    whole = rate / alone if alone else None
    remark = f"{rate:,.0f}/s against {alone:,.0f}/s" if alone else ""
    yield Figure(title, "times one process with all the callers", whole, "≥", 0.8, remark)
    fairness = results.median(place, _OURS, _fairness)
    middle = sorted(runs, key=lambda run: run.outcome.rate)[len(runs) // 2]
    remark = "apart " + ", ".join(f"{part.rate:,.0f}" for part in middle.processes)
    yield Figure(title, "slowest by fastest process", fairness, "≥", 0.5, remark)
    # So long must callers wait on average at that rate.
    tail = results.median(
        place, _OURS, lambda run: run.outcome.p99_ms / (1000 * place.callers / run.outcome.rate)
    )
    remark = f"p99 {results.p99_ms(place, _OURS) or 0:,.0f} ms in the worst process"
    yield Figure(title, "p99, times the mean wait", tail, "≤", 3, remark)
    errors = sum(sum(run.outcome.errors.values()) for run in runs)
    yield Figure(title, "errors, in all rounds", errors, "≤", 0)


def _fairness(run: Run) -> float:
    rates = [part.rate for part in run.processes]
    return min(rates) / max(rates)


def _lanes(results: Results, place: Place) -> Figure:
    """The lanes that the ledger chooses, by the best number of lanes that stay open."""
    fixed = [run for run in results.runs if run.place == place and run.peer != _OURS]
    rates = {name: results.rate(place, name) or 0.0 for name in results.names(fixed)}
    ours = results.rate(place, _OURS) or 0.0
    best = max(rates, key=lambda name: rates[name])
    remark = f"{ours:,.0f}/s against {rates[best]:,.0f}/s ({best})"
    return Figure(place.title, "times the best fixed lanes", ours / rates[best], "≥", 0.95, remark)


def _growth(results: Results) -> Iterator[Figure]:
    places = [place for place in results.places if place.work == "growth"]
    if len(places) != 2:
        return
    little, much = (
        results.median(place, _OURS, lambda run: run.outcome.seconds) for place in places
    )
    if little and much:
        what, remark = "time, times that with little before", f"{much:.2f} s against {little:.2f} s"
        yield Figure(places[1].title, what, much / little, "≤", 1.15, remark)

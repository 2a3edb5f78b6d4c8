"""What was measured, run by run, and the medians of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load import Outcome

__all__ = ["Results", "Run"]


@dataclass(frozen=True)
class Run:
    """One load on one peer."""

    work: int
    scenario: str
    """Which of the loads of a work; empty if it has one."""
    kind: str
    peer: str
    outcome: Outcome
    processes: tuple[Outcome, ...] = ()
    """The parts of it, if there were several processes."""

    def to_dict(self) -> dict[str, Any]:
        """What is reported of it."""
        values = {
            "work": self.work,
            "scenario": self.scenario,
            "peer": self.peer,
            **self.outcome.to_dict(),
        }
        if self.processes:
            values["processes"] = [part.to_dict() for part in self.processes]
        return values


@dataclass
class Results:
    """All runs; what was not measured, and what is off."""

    runs: list[Run] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Medians of a round of work 5, in milliseconds: this library's and by hand."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Peers by kind, and why they were not to be had."""
    checked: int = 0
    """After how many runs the books were found to agree with what was acknowledged."""
    off: list[str] = field(default_factory=list)
    """Whose books are off, and how."""
    failed: list[str] = field(default_factory=list)
    """Who ended in an error of another kind."""

    def of(self, work: int, name: str, scenario: str = "") -> list[Run]:
        """The runs of a peer, by its name or its kind."""
        return [
            run
            for run in self.runs
            if (run.work, run.scenario) == (work, scenario) and name in (run.kind, run.peer)
        ]

    def median(
        self, work: int, name: str, value: Callable[[Run], float], scenario: str = ""
    ) -> float | None:
        """The median of a value over the rounds; None if there were none."""
        values = [value(run) for run in self.of(work, name, scenario)]
        return statistics.median(values) if values else None

    def rate(self, work: int, name: str, scenario: str = "") -> float | None:
        """Charges a second: the median of the rounds."""
        return self.median(work, name, lambda run: run.outcome.rate, scenario)

    def best(self, work: int, kind: str, scenario: str = "") -> tuple[str, float] | None:
        """The peer of a kind with the highest median, and that."""
        names = self.names(self.of(work, kind, scenario))
        rates = [(name, self.rate(work, name, scenario) or 0.0) for name in names]
        return max(rates, key=lambda pair: pair[1], default=None)

    @staticmethod
    def names(runs: Iterable[Run]) -> Sequence[str]:
        """The peers of some runs, in the order in which they came."""
        return list(dict.fromkeys(run.peer for run in runs))

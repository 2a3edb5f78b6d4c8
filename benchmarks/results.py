"""What was measured, run by run, and the medians of the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.load import Outcome

__all__ = ["NETWORKS", "Network", "Place", "Results", "Run"]


class Network(NamedTuple):
    """A replica set, and how many milliseconds later than sent each message arrives."""

    members: int = 1
    delay_ms: float = 0.0

    @property
    def title(self) -> str:
        """As in "3 members, 1 ms of delay"."""
        delay = f", {self.delay_ms:g} ms of delay" if self.delay_ms else ""
        return f"{self.members} member{'s' if self.members > 1 else ''}{delay}"


NETWORKS = (Network(1), Network(1, 1.0), Network(3), Network(3, 1.0))
"""Where the works with all networks are done."""


class Place(NamedTuple):
    """Where a peer was measured: peers are compared within one place."""

    work: str
    callers: int = 1000
    users: str = "1000 users"
    network: Network = Network()

    @property
    def title(self) -> str:
        """As in "64 callers, 1000 users, 3 members"."""
        plural = "s" if self.callers > 1 else ""
        return f"{self.callers} caller{plural}, {self.users}, {self.network.title}"


@dataclass(frozen=True)
class Run:
    """One load on one peer."""

    place: Place
    kind: str
    peer: str
    outcome: Outcome
    processes: tuple[Outcome, ...] = ()
    """The parts of it, if there were several processes."""

    def to_dict(self) -> dict[str, Any]:
        """For the data file."""
        values = {
            "work": self.place.work,
            "callers": self.place.callers,
            "users": self.place.users,
            "members": self.place.network.members,
            "delay_ms": self.place.network.delay_ms,
            "kind": self.kind,
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
    """Median milliseconds of a charge by the library and by hand, one pair a round."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Peers by kind, and why they could not be measured."""
    checked: int = 0
    """After how many runs the books agreed with what was acknowledged."""
    off: list[str] = field(default_factory=list)
    """Whose books are off, and how."""
    failed: list[str] = field(default_factory=list)
    """Who ended in an error of another kind."""

    @property
    def places(self) -> Sequence[Place]:
        """All places, in the order in which they were measured."""
        return list(dict.fromkeys(run.place for run in self.runs))

    def of(self, place: Place, name: str) -> list[Run]:
        """The runs of a peer with this name; if there is none, of all peers of this kind."""
        here = [run for run in self.runs if run.place == place]
        named = [run for run in here if run.peer == name]
        return named or [run for run in here if run.kind == name]

    def median(self, place: Place, name: str, value: Callable[[Run], float]) -> float | None:
        """The median of a value over the rounds; None if there were none."""
        values = [value(run) for run in self.of(place, name)]
        return statistics.median(values) if values else None

    def rate(self, place: Place, name: str) -> float | None:
        """Charges a second: the median of the rounds."""
        return self.median(place, name, lambda run: run.outcome.rate)

    def p99_ms(self, place: Place, name: str) -> float | None:
        """The 99th percentile of the latency: the median of the rounds."""
        return self.median(place, name, lambda run: run.outcome.p99_ms)

    def best(self, place: Place, kind: str) -> str | None:
        """The peer of a kind with the highest median rate, or the one that bears its name."""
        names = self.names(self.of(place, kind))
        return max(names, key=lambda name: self.rate(place, name) or 0.0, default=None)

    @staticmethod
    def names(runs: Iterable[Run]) -> Sequence[str]:
        """The peers of some runs, in the order in which they came."""
        return list(dict.fromkeys(run.peer for run in runs))

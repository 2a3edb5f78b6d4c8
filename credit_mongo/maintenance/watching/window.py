"""What has happened in each of the last sixty seconds."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

__all__ = ["WINDOW_SECONDS", "Window"]

WINDOW_SECONDS: Final = 60


@dataclass(slots=True)
class _Counts:
    done: Counter[str] = field(default_factory=Counter)
    """Operations that took effect, by their names."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals, by their codes."""
    users: Counter[str] = field(default_factory=Counter)
    """Both, by user."""
    actions: Counter[str] = field(default_factory=Counter)
    """Both, by action."""

    def all(self) -> tuple[Counter[str], ...]:
        return self.done, self.refused, self.users, self.actions


class Window:
    """Counts by second, and their sums. ``now`` is in seconds of any clock that only goes on."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._seconds: deque[tuple[int, _Counts]] = deque()
        self._sums = _Counts()

    def add(self, now: float, operation: str, action: str, user: str, code: str | None) -> None:
        """Count an operation that took effect (``code`` None), or a refusal."""
        counts = self._current(now)
        for each in (counts, self._sums):
            if code is None:
                each.done[operation] += 1
            else:
                each.refused[code] += 1
            each.users[user] += 1
            each.actions[action] += 1

    def done_a_second(self, now: float, seconds: int) -> dict[str, float]:
        """How often a second each operation took effect, of the last ``seconds`` full seconds."""
        return self._rates(now, seconds, 0)

    def refused_a_second(self, now: float, seconds: int) -> dict[str, float]:
        """The same for refusals, by code."""
        return self._rates(now, seconds, 1)

    def refusals(self, now: float) -> Counter[str]:
        """Refusals of the whole window by code."""
        self._forget(now)
        return self._sums.refused

    def busiest_users(self, now: float, most: int) -> list[tuple[str, int]]:
        """The users with the most operations and refusals in the window."""
        self._forget(now)
        return self._sums.users.most_common(most)

    def busiest_actions(self, now: float, most: int) -> list[tuple[str, int]]:
        """The actions with the most of them."""
        self._forget(now)
        return self._sums.actions.most_common(most)

    def history(self, now: float, operation: str) -> list[int]:
        """How often an operation took effect in each of the full seconds, the oldest first."""
        self._forget(now)
        by_second = {second: counts.done[operation] for second, counts in self._seconds}
        first = int(now) - WINDOW_SECONDS
        return [by_second.get(second, 0) for second in range(first, int(now))]

    def _rates(self, now: float, seconds: int, which: int) -> dict[str, float]:
        found: Counter[str] = Counter()
        for second, counts in self._seconds:
            # Of the second that has not ended, only a part is known.
            if int(now) - seconds <= second < int(now):
                found.update(counts.all()[which])
        seen = min(seconds, max(1, int(now) - int(self._began)))
        return {name: count / seen for name, count in found.items()}

    def _current(self, now: float) -> _Counts:
        second = int(now)
        if not self._seconds or self._seconds[-1][0] < second:
            self._forget(now)
            self._seconds.append((second, _Counts()))
        return self._seconds[-1][1]

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] < int(now) - WINDOW_SECONDS:
            _, old = self._seconds.popleft()
            for total, counts in zip(self._sums.all(), old.all(), strict=True):
                for name, count in counts.items():
                    total[name] -= count
                    if not total[name]:
                        del total[name]

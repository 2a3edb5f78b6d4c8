"""Spells: times in which more care is taken, because it was needed lately."""

from __future__ import annotations

__all__ = ["Spell"]


class Spell:
    """Begins when something was in the way, ends by itself, and lasts longer if it comes back.

    ``now`` is the event loop's clock, in seconds.
    """

    def __init__(self, *, shortest_seconds: float, longest_seconds: float) -> None:
        self._shortest_seconds = shortest_seconds
        self._longest_seconds = longest_seconds
        self._seconds = shortest_seconds
        self._until = float("-inf")

    def is_on(self, now: float) -> bool:
        """Whether care is taken."""
        return now < self._until

    def was_on_lately(self, now: float) -> bool:
        """Whether it has lasted longer than it has been over."""
        return now < self._until + self._seconds

    def begin(self, now: float) -> None:
        """Take care from now on: twice as long as before, if that has ended only just now."""
        if self.is_on(now):
            return
        came_back = self.was_on_lately(now)
        self._seconds = (
            min(2 * self._seconds, self._longest_seconds) if came_back else self._shortest_seconds
        )
        self._until = now + self._seconds

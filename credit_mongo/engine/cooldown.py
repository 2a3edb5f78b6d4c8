"""Cooldown: stay cautious for a while after something was in the way."""

from __future__ import annotations

__all__ = ["Cooldown"]


class Cooldown:
    """Ends by itself, and lasts twice as long each time that its cause comes back soon after.

    ``now`` is the event loop's clock, in seconds.
    """

    def __init__(self, *, shortest_seconds: float, longest_seconds: float) -> None:
        self._shortest_seconds = shortest_seconds
        self._longest_seconds = longest_seconds
        self._seconds = shortest_seconds
        self._until = float("-inf")

    def is_on(self, now: float) -> bool:
        """Whether to be cautious."""
        return now < self._until

    def was_on_lately(self, now: float) -> bool:
        """Whether it is on, or has been over for less time than it lasted."""
        return now < self._until + self._seconds

    def begin(self, now: float) -> None:
        """Be cautious from now on; one that is on already is not made longer."""
        if self.is_on(now):
            return
        came_back = self.was_on_lately(now)
        self._seconds = (
            min(2 * self._seconds, self._longest_seconds) if came_back else self._shortest_seconds
        )
        self._until = now + self._seconds

    def prolong(self, now: float) -> None:
        """Its cause is still there: if it is on, its time begins again."""
        if self.is_on(now):
            self._until = now + self._seconds

"""Tickets: the order in which batches of several processes have the turn.

As at a counter: a batch draws the next number, and goes when all numbers before it were served.

Tickets keep order and nothing else. Two batches that both believe to be next meet at the document
of the turn, where one of them fails. A number that nobody comes for is passed over after a while.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Ticket"]

# A process that died, or a batch that reached its deadline, never comes for its number. A number is
# passed over when nobody was served for this long, or for as long as some turns: a turn of many
# requests on a busy machine takes its time.
_PASSED_OVER_SECONDS: Final = 0.15
_PASSED_OVER_TURNS: Final = 3
# Many processes can have died at once. The order no longer counts then.
_LONGEST_PATIENCE_SECONDS: Final = 1.0
# Each look costs a command. Whoever is next looks often, because nobody works between two turns.
_SHORTEST_LOOK_SECONDS: Final = 0.002
_LONGEST_LOOK_OF_NEXT_SECONDS: Final = 0.005
_LONGEST_LOOK_SECONDS: Final = 0.04


class Ticket:
    """The place of one batch in the queue. ``now`` is the event loop's clock, in seconds."""

    __slots__ = ("_lost_at", "_served", "_since", "had_to_wait", "number")

    def __init__(self) -> None:
        self.number: int = 0
        """0 until one is drawn."""
        self.had_to_wait: bool = False
        """Whether others were served first."""
        self._served = 0
        self._since = 0.0
        self._lost_at: float | None = None

    def draw(self, number: int, served: int, now: float) -> None:
        """Begin to wait with this number, when those up to ``served`` have been served."""
        self.number, self._served, self._since, self._lost_at = number, served, now, None
        self.had_to_wait = self.ahead > 0

    def see(self, served: int, now: float) -> None:
        """All numbers up to ``served`` have been served."""
        if served != self._served:
            self._served, self._since, self._lost_at = served, now, None

    def lose(self, now: float) -> None:
        """Somebody else has the turn, out of order."""
        self._lost_at = now

    @property
    def ahead(self) -> int:
        """How many numbers are served before this one."""
        return max(self.number - 1 - self._served, 0)

    @property
    def is_spent(self) -> bool:
        """Whether this number or a later one was served, or none is drawn."""
        return self.number <= self._served

    def seconds_still(self, now: float) -> float:
        """For how long nobody has been served."""
        return now - self._since

    def seconds_to_look(self, now: float, seconds_a_turn: float) -> float:
        """How long to wait before the next look at who was served; 0 to take the turn now."""
        still = self.seconds_still(now)
        if self._lost_at is not None:
            # The longer somebody keeps the turn, the more seldom it is tried.
            pause = min(max(still / 4, _SHORTEST_LOOK_SECONDS), _LONGEST_LOOK_SECONDS)
            return max(self._lost_at + pause - now, 0.0)
        each = max(_PASSED_OVER_SECONDS, _PASSED_OVER_TURNS * seconds_a_turn)
        if still >= min(self.ahead * each, _LONGEST_PATIENCE_SECONDS):
            return 0.0
        # By halves, so that looks become more frequent towards the expected end. It is not known
        # well: a turn that this ledger has timed also holds its wait for the journal.
        expected = (self.ahead * seconds_a_turn - still) / 2
        longest = _LONGEST_LOOK_SECONDS if self.ahead > 1 else _LONGEST_LOOK_OF_NEXT_SECONDS
        return min(max(expected, _SHORTEST_LOOK_SECONDS), longest)

"""Turns: how several processes that write the same users stay out of each other's way.

Two transactions that write one user conflict, and one of them fails at once, however large it is.
Batches make that worse: with hundreds of users each, any two conflict, and random waits let one
process win for seconds. So when a lane meets a conflict, it begins to take turns with the same lane
of other processes: the first write of its transactions goes to one document that stands for the
lane. Who comes second fails there, before it has read or written anything else, and soon tries
again.

Nothing depends on it but speed. There is no lease, no clock and nothing to clean up: the turn is
part of the transaction and ends with it, however that ends.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Turn", "seconds_to_wait"]

# How long after the last sign of another process a lane goes on taking turns. Taking one costs a
# round trip, a conflict a whole try.
_TAKEN_FOR_SECONDS: Final = 5.0
_SHORTEST_WAIT_SECONDS: Final = 0.001
_LONGEST_WAIT_SECONDS: Final = 0.004


class Turn:
    """One lane's turns, seen from this process."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.is_prepared = False
        self._needed_until = 0.0
        self._last_number = 0

    def is_needed(self, now: float) -> bool:
        """Whether another process was met lately (``now`` of the loop's clock, in seconds)."""
        return now < self._needed_until

    def met_conflict(self, now: float) -> None:
        """Another transaction was writing what we wanted to write."""
        self._needed_until = now + _TAKEN_FOR_SECONDS

    def took(self, number: int, now: float) -> None:
        """We have the turn of this number. If it does not follow our last, others took some."""
        if number != self._last_number + 1:
            self.met_conflict(now)
        self._last_number = number


def seconds_to_wait() -> float:
    """How long to wait for a turn or a user that another transaction holds.

    Short, for the wait of the lane is idle time, and without growth, for who waits longer than the
    others starves.
    """
    return random.uniform(_SHORTEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)  # noqa: S311 - a lottery

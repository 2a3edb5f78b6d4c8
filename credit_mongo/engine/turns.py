"""Turns: how several processes that write the same users stay out of each other's way.

Two transactions that write one user conflict, and one of them fails at once, however large it is.
Batches make that worse: of two with a hundred users each, one nearly always fails, and with random
waits one process can win for seconds. So when a batch has met conflicts twice in a row, its ledger
begins to take turns with other processes: the first write of its transactions goes to one document
that stands for the turn. Who comes second fails right there, before anything was read or written,
and waits on the server until the turn is free. While that lasts, all requests of a process share
one lane: who has the turn uses it for everybody who waits.

Nothing depends on it but speed. There is no lease, no clock and nothing to clean up: the turn is
part of the transaction and ends with it, however that ends.
"""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Turns", "seconds_to_wait"]

# Then it is tried without, for in turns there is one commit at a time for all. Where that meets
# conflicts again at once, the next time is twice as long.
_SHORTEST_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 30.0
_CONFLICTS_IN_A_ROW: Final = 2
# Who waits on the server looks every five milliseconds. Without a pause, who has just had the turn
# would mostly have it again before they look.
_COURTESY_SECONDS: Final = 0.006
_SHORTEST_WAIT_SECONDS: Final = 0.001
_LONGEST_WAIT_SECONDS: Final = 0.004
_MOST_GROWTH: Final = 10


class Turns:
    """Whether this ledger takes turns. ``now`` is the event loop's clock, in seconds."""

    def __init__(self) -> None:
        self._needed_until = 0.0
        self._seconds = _SHORTEST_SECONDS
        self._awaited = 0
        self._not_before = 0.0

    def are_needed(self, now: float) -> bool:
        """Whether other processes were in the way lately."""
        return now < self._needed_until

    def met_conflict(self, in_a_row: int, now: float) -> None:
        """A batch that had no turn has met the ``in_a_row``-th conflict."""
        if in_a_row < _CONFLICTS_IN_A_ROW or now < self._needed_until:
            return
        came_back = now < self._needed_until + self._seconds
        self._seconds = min(2 * self._seconds, _LONGEST_SECONDS) if came_back else _SHORTEST_SECONDS
        self._needed_until = now + self._seconds

    def had_turn(self, awaited: int, now: float) -> None:
        """A commit that had the turn has ended; ``awaited`` is how often others had waited then."""
        if awaited != self._awaited:
            self._not_before = now + _COURTESY_SECONDS
        self._awaited = awaited

    def seconds_to_pause(self, now: float) -> float:
        """How long to leave the turn to those who wait for it."""
        return max(self._not_before - now, 0.0)


def seconds_to_wait(in_a_row: int) -> float:
    """How long to wait, after so many conflicts, for what another transaction holds.

    Short, for meanwhile nothing is done, and hardly growing, for who waits longer starves.
    """
    longest = _LONGEST_WAIT_SECONDS * min(in_a_row, _MOST_GROWTH)
    return random.uniform(_SHORTEST_WAIT_SECONDS, longest)  # noqa: S311 - a lottery

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

A process that is frozen or killed in its turn keeps it until the server ends its transaction, after
a minute. So a ledger waits only for a turn that changes hands. If it stays with one holder for too
long, the ledger goes on without turns for a while. It then conflicts over the users that the holder
has written, as it would have to anyway, and over no others.
"""

from __future__ import annotations

import random
from typing import Final

from credit_mongo.engine.cooldown import Cooldown
from credit_mongo.storage.unit_of_work import Turn

__all__ = ["Turns", "seconds_to_wait"]

# Then it is tried without, for in turns there is one commit at a time for all. A conflict soon
# after is no chance: the next time begins at once, and is twice as long.
_SHORTEST_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
_CONFLICTS_IN_A_ROW: Final = 2
# Far longer than the largest batch has the turn, and a small part of the deadline.
_LONGEST_HELD_SECONDS: Final = 1.0
# Who waits on the server looks every five milliseconds. Without a pause, who has just had the turn
# would mostly have it again before they look.
_COURTESY_SECONDS: Final = 0.006
# One commit after the other without waiting costs least; others wait for as long as this at most.
_LONGEST_RUN_SECONDS: Final = 0.05
_SHORTEST_WAIT_SECONDS: Final = 0.001
_LONGEST_WAIT_SECONDS: Final = 0.004
_MOST_GROWTH: Final = 10


class Turns:
    """Whether this ledger takes turns. ``now`` is the event loop's clock, in seconds."""

    def __init__(self, *, timeout_seconds: float = 10 * _LONGEST_HELD_SECONDS) -> None:
        self._conflicts = _cooldown()
        self._stuck = _cooldown()
        self._held_at: int | None = None
        self._held_since = 0.0
        self._longest_held_seconds = min(_LONGEST_HELD_SECONDS, timeout_seconds / 10)
        self._last = Turn(0, 0)
        self._run_began = 0.0
        self._not_before = 0.0

    def are_needed(self, now: float) -> bool:
        """Whether other processes were in the way lately, and the turn changes hands."""
        return self._conflicts.is_on(now) and not self.are_stuck(now)

    def are_stuck(self, now: float) -> bool:
        """Whether somebody has kept the turn for too long lately."""
        return self._stuck.is_on(now)

    def seen_held(self, taken: int, now: float) -> None:
        """Somebody has the turn. It was taken ``taken`` times, not counting that."""
        if taken != self._held_at:
            self._held_at, self._held_since = taken, now
        elif now - self._held_since >= self._longest_held_seconds:
            self._stuck.begin(now)

    def seen_free(self) -> None:
        """Nobody has the turn."""
        self._held_at = None

    def met_conflict(self, in_a_row: int, now: float) -> None:
        """A batch that had no turn has met the ``in_a_row``-th conflict."""
        if in_a_row >= _CONFLICTS_IN_A_ROW or self._conflicts.was_on_lately(now):
            self._conflicts.begin(now)

    def had_turn(self, turn: Turn, began: float, now: float) -> None:
        """A commit that had a turn since ``began`` has ended."""
        if turn.taken != self._last.taken + 1:  # somebody else had one in between
            self._run_began = began
        if turn.awaited != self._last.awaited and now - self._run_began >= _LONGEST_RUN_SECONDS:
            self._not_before = now + _COURTESY_SECONDS
        self._last = turn

    def seconds_to_pause(self, now: float) -> float:
        """How long to leave the turn to those who wait for it."""
        return max(self._not_before - now, 0.0)


def _cooldown() -> Cooldown:
    return Cooldown(shortest_seconds=_SHORTEST_SECONDS, longest_seconds=_LONGEST_SECONDS)


def seconds_to_wait(in_a_row: int) -> float:
    """How long to wait, after so many conflicts, for what another transaction holds.

    Short, for meanwhile nothing is done, and hardly growing, for who waits longer starves.
    """
    longest = _LONGEST_WAIT_SECONDS * min(in_a_row, _MOST_GROWTH)
    return random.uniform(_SHORTEST_WAIT_SECONDS, longest)  # noqa: S311 - a lottery

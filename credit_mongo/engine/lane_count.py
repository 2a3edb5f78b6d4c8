"""How many lanes are open: as many as pay.

A commit costs the client and the server about the same whatever is in it, so one full batch beats
two that are half empty. The ledger begins with one lane, and opens another when half a full batch
waits for each. But a lane does nothing while its commands are on the network, and another could
work meanwhile. So the farther the server, the fewer waiting requests open a lane: at a round trip
of five milliseconds, a fifth. A lane that runs empty is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["MOST_LANES", "LaneCount"]

MOST_LANES: Final = 4
# Half of a full batch.
_WORTH_A_LANE: Final = 256
# What a command takes of the client and a near server together. A shorter round trip is no loss.
_COMMAND_SECONDS: Final = 0.001
_LOOK_SECONDS: Final = 1.0


class LaneCount:
    """Opens and closes lanes. ``now`` is the event loop's clock, in seconds."""

    def __init__(self, round_trip_seconds: Callable[[], float]) -> None:
        """``round_trip_seconds`` returns how far the server is; 0 if that is not known yet."""
        self._round_trip_seconds = round_trip_seconds
        self._look_again_at = float("-inf")
        self._worth_a_lane = float(_WORTH_A_LANE)
        self.open = 1

    def grow(self, waiting: int, now: float) -> None:
        """Open another lane if so many waiting requests are worth it."""
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_SECONDS
            commands = self._round_trip_seconds() / _COMMAND_SECONDS
            self._worth_a_lane = _WORTH_A_LANE / max(commands, 1.0)
        if waiting >= self.open * self._worth_a_lane and self.open < MOST_LANES:
            self.open += 1

    def shrink(self) -> None:
        """A lane has run empty."""
        self.open = max(self.open - 1, 1)

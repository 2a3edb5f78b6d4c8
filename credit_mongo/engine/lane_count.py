"""How many lanes are open: as many as pay.

A commit costs the client and the server about the same whatever is in it, so one full batch beats
two that are half empty. The ledger begins with one lane, and opens another when 256 requests, half
a full batch, wait for each. But a lane does nothing while its commands are on the network, and
another could work meanwhile: if the server is far, half as many open the second lane. A lane that
runs empty is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["MOST_LANES", "LaneCount"]

MOST_LANES: Final = 4
_WORTH_A_LANE: Final = 256
_WORTH_THE_SECOND_IF_FAR: Final = 128
# A batch waits for about seven round trips. At two milliseconds each, that is longer than the
# client and a near server work for its commands. With less, a second lane was no faster.
_FAR_SECONDS: Final = 0.002
_LOOK_SECONDS: Final = 1.0


class LaneCount:
    """Opens and closes lanes. ``now`` is the event loop's clock, in seconds."""

    def __init__(self, round_trip_seconds: Callable[[], float]) -> None:
        """``round_trip_seconds`` returns how far the server is; 0 if that is not known yet."""
        self._round_trip_seconds = round_trip_seconds
        self._look_again_at = float("-inf")
        self._is_far = False
        self.open: int = 1

    def grow(self, waiting: int, now: float) -> None:
        """Open another lane if so many waiting requests are worth it."""
        if waiting < _WORTH_THE_SECOND_IF_FAR or self.open == MOST_LANES:
            return
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_SECONDS
            self._is_far = self._round_trip_seconds() >= _FAR_SECONDS
        if waiting >= self.open * _WORTH_A_LANE or (self._is_far and self.open == 1):
            self.open += 1

    def shrink(self) -> None:
        """A lane has run empty."""
        self.open = max(self.open - 1, 1)

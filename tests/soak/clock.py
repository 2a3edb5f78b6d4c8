"""The soak's clock: it jumps across the ends of lots and holds, in all processes alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

__all__ = ["jumping_clock"]

# A round takes minutes, so the clock never gets ahead of the server's.
_BEHIND: Final = timedelta(hours=6)
_JUMP: Final = timedelta(seconds=60)
_EVERY_SECONDS: Final = 2.0


def jumping_clock(start: float) -> Callable[[], datetime]:
    """Return a clock that is hours behind at ``start`` and jumps a minute every two seconds.

    ``start`` is in seconds since 1970, by this machine's clock.
    """

    def now() -> datetime:
        real = datetime.now(timezone.utc)
        jumps = (real.timestamp() - start) // _EVERY_SECONDS
        return min(real, real - _BEHIND + jumps * _JUMP)

    return now

"""An account's rare parts: lots, what holds pin, and the overdraft.

An account that has none of them has no ``Extras``, and pays nothing for them.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final, NamedTuple

__all__ = [
    "BASE_PRIORITY",
    "MAX_HOLDS",
    "MAX_LOTS",
    "MAX_PRIORITY",
    "NO_EXTRAS",
    "ActiveHold",
    "Extras",
    "Leg",
    "Lot",
    "LotsUnreadError",
    "Pin",
    "UnreadLots",
    "order_of_use",
]

BASE_PRIORITY: Final = 50
"""The priority of the base, and of a lot for which the caller gives no other."""
MAX_PRIORITY: Final = 100
MAX_LOTS: Final = 64
MAX_HOLDS: Final = 256
_NEVER: Final = datetime.max.replace(tzinfo=timezone.utc)


class Lot(NamedTuple):
    """Credits that are kept apart: they have an end, a priority or a source of their own.

    ``lot_id`` is the id of the grant that opened the lot. ``amount`` is what is left, in smallest
    units.
    """

    lot_id: str
    amount: int
    expires_at: datetime | None
    priority: int
    source: str | None

    def is_like(self, other: Lot) -> bool:
        """Return whether both are one lot to a user: equal priority, end and source."""
        return self[2:] == other[2:]

    def has_ended(self, now: datetime) -> bool:
        """Return whether the lot's end has come. The moment itself counts as past."""
        return self.expires_at is not None and self.expires_at <= now


def order_of_use(lot: Lot) -> tuple[int, datetime, str]:
    """Return the key that sorts lots as they are used.

    The lower priority number comes first, then the sooner end, then the older lot: ids of
    transactions begin with their time.
    """
    return lot.priority, lot.expires_at or _NEVER, lot.lot_id


class Leg(NamedTuple):
    """A part of a transaction's amount: what it changed in one lot or, if that is None, the base.

    ``amount`` has the sign of the change.
    """

    lot: Lot | None
    amount: int

    @property
    def lot_id(self) -> str | None:
        return None if self.lot is None else self.lot.lot_id


class Pin(NamedTuple):
    """Credits that a hold keeps for itself, in a lot or (``lot_id`` None) in the base."""

    lot_id: str | None
    amount: int


class ActiveHold(NamedTuple):
    """What an account knows of one of its active holds. Amounts are in smallest units.

    ``pins`` are what is still held. ``captured`` is what captures took so far, ``uncollected`` what
    they asked for in vain. ``used`` is the total that was last reported. If nobody settles the hold
    by ``expires_at``, ``settles_at_end`` says whether the reported total is charged then.
    """

    hold_id: str
    action: str
    pins: tuple[Pin, ...]
    captured: int
    uncollected: int
    used: int
    expires_at: datetime
    settles_at_end: bool
    overage: str

    @property
    def held(self) -> int:
        """The units that are still held."""
        return sum(pin.amount for pin in self.pins)

    @property
    def claimed(self) -> int:
        """The total of the captures so far, collected or not."""
        return self.captured + self.uncollected


class UnreadLots(NamedTuple):
    """There are more lots than were read. No lot of the account ends before ``next_end``."""

    next_end: datetime | None


class LotsUnreadError(Exception):
    """A decision depends on lots that were not read: read them all, and decide again."""


class Extras(NamedTuple):
    """Lots in the order of their use, active holds in the order of their beginning, overdraft.

    ``overdraft`` is how many units the balance may go below zero. Most charges need only the first
    of many lots. If ``unread`` is not None, ``lots`` are these alone.
    """

    lots: tuple[Lot, ...] = ()
    holds: tuple[ActiveHold, ...] = ()
    overdraft: int = 0
    unread: UnreadLots | None = None

    @property
    def all_lots(self) -> tuple[Lot, ...]:
        """All lots. Raises LotsUnreadError if they were not all read."""
        if self.unread is not None:
            raise LotsUnreadError
        return self.lots

    @property
    def held(self) -> int:
        """The units that active holds keep."""
        return sum(hold.held for hold in self.holds) if self.holds else 0

    def next_due(self) -> datetime | None:
        """Return the earliest end of a lot or hold, or None if nothing ends."""
        if self.unread is not None and not self.holds:
            return self.unread.next_end
        ends = [lot.expires_at for lot in self.lots if lot.expires_at is not None]
        ends += [hold.expires_at for hold in self.holds]
        if self.unread is not None and self.unread.next_end is not None:
            ends.append(self.unread.next_end)
        return min(ends, default=None)


NO_EXTRAS: Final = Extras()

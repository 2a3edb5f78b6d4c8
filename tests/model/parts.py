"""The parts of an account in the model: base, lots, what holds pin, and the overdraft.

Written from the rules alone, without the library's code: credits are places with a number of units
each, and everything is a walk over these places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from tests.model.configurations import Price

Legs = list[tuple["Lot | None", int]]
FOREVER = datetime(9999, 1, 1, tzinfo=timezone.utc)


@dataclass(eq=False)
class Lot:
    """Credits apart from the base. ``number`` is the call that opened the lot."""

    number: int
    units: int
    ends: datetime | None
    priority: int
    source: str | None
    lot_id: str | None = None

    def is_over(self, now: datetime) -> bool:
        """Whether nobody can use the lot any more."""
        return self.ends is not None and now >= self.ends


@dataclass(eq=False)
class Held:
    """A hold, active or over. ``pins`` are the places of what it still keeps, in order."""

    number: int
    user_id: str
    action: str
    amount: int
    ends: datetime
    settles: bool
    overage: str
    price: Price | None
    shown_price: int | str | None
    created_at: datetime
    metadata: dict[str, Any] | None
    pins: Legs = field(default_factory=list)
    captured: int = 0
    uncollected: int = 0
    used: int = 0
    status: str = "active"
    hold_id: str | None = None

    @property
    def claimed(self) -> int:
        """The total of its captures, whether it was there to take or not."""
        return self.captured + self.uncollected

    @property
    def held(self) -> int:
        """The units that it still keeps."""
        return sum(units for _, units in self.pins)


@dataclass(eq=False)
class Parts:
    """Base and lots of an account, its active holds, and how far it may go below zero."""

    base: int = 0
    lots: list[Lot] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)
    overdraft: int = 0

    @property
    def credits(self) -> int:
        """The balance."""
        return self.base + sum(lot.units for lot in self.lots)

    @property
    def held(self) -> int:
        """What active holds keep."""
        return sum(hold.held for hold in self.holds)

    @property
    def available(self) -> int:
        """What a charge can take."""
        return self.credits - self.held + self.overdraft

    def pinned_in(self, place: Lot | None) -> int:
        """What holds keep in one place."""
        return sum(units for hold in self.holds for where, units in hold.pins if where is place)

    def in_order(self) -> list[Lot]:
        """The lots in the order of their use."""
        return sorted(self.lots, key=lambda lot: (lot.priority, lot.ends or FOREVER, lot.number))

    def _places(self) -> Iterator[tuple[Lot | None, int]]:
        """Each place in the order of use, with what is free in it."""
        before = [lot for lot in self.in_order() if lot.priority < 50]
        before += [lot for lot in self.in_order() if lot.priority == 50 and lot.ends is not None]
        after = [lot for lot in self.in_order() if lot not in before]
        for place in (*before, None, *after):
            there = self.base if place is None else place.units
            yield place, there - self.pinned_in(place)

    def find(self, units: int) -> Legs:
        """Where so many units come from. What all places together lack is the base's debt."""
        found: Legs = []
        for place, free in self._places():
            part = max(min(free, units), 0)
            units -= part
            _note(found, place, part)
        _note(found, None, units)
        return found

    def take(self, places: Legs) -> Legs:
        """Take credits from these places. Returns the legs."""
        legs: Legs = []
        for place, units in places:
            self._move(place, -units)
            _note(legs, place, -units)
        return legs

    def move(self, legs: Legs) -> Legs:
        """Change each place by its units, and return the same legs."""
        for place, units in legs:
            self._move(place, units)
        return legs

    def give(self, place: Lot | None, units: int, *, like: Lot | None = None) -> Lot | None:
        """Give credits to a place, or to the lot that is like another. Returns the place."""
        into = place if like is None else self.lot_like(like) or like
        self._move(into, units)
        return into

    def lot_like(self, lot: Lot) -> Lot | None:
        """Return the lot itself if it is there, or one with the same end, priority and source."""
        same = (lot.ends, lot.priority, lot.source)
        alike = [each for each in self.lots if (each.ends, each.priority, each.source) == same]
        return lot if lot in self.lots else next(iter(alike), None)

    def end_lots(self, now: datetime) -> Legs:
        """What must go from lots that are over, one by one: all that no hold pins."""
        legs: Legs = []
        for lot in self.in_order():
            free = lot.units - self.pinned_in(lot)
            if lot.is_over(now) and free > 0:
                legs.append((lot, -free))
        return legs

    def take_for(self, hold: Held, total: int) -> tuple[int, Legs]:
        """Take for a hold until its captures claim ``total``. Returns what was taken, and legs."""
        wanted = max(total - hold.claimed, 0)
        from_pins: Legs = []
        left: Legs = []
        open_units = wanted
        for place, units in hold.pins:
            part = min(units, open_units)
            open_units -= part
            _note(from_pins, place, part)
            if units > part:
                left.append((place, units - part))
        hold.pins = left
        legs = self.take(from_pins)
        more, beyond = self.take_beyond(hold.overage, open_units)
        for place, units in beyond:
            _note(legs, place, units)
        taken = wanted - open_units + more
        hold.captured += taken
        hold.uncollected += wanted - taken
        hold.used = max(hold.used, total)
        return taken, legs

    def take_beyond(self, overage: str, wanted: int) -> tuple[int, Legs]:
        """Take what no hold keeps, as far as the overage goes."""
        free = self.credits - self.held
        most = {"available": free, "debt": free + self.overdraft, "reject": 0}[overage]
        taken = max(min(wanted, most), 0)
        return taken, self.take(self.find(taken))

    def _move(self, place: Lot | None, units: int) -> None:
        if place is None:
            self.base += units
            return
        place.units += units
        assert place.units >= 0, "more was taken from a lot than it had"
        if place not in self.lots:
            self.lots.append(place)
        if not place.units:
            self.lots.remove(place)


def _note(legs: Legs, place: Lot | None, units: int) -> None:
    """Add a leg. Neighbours in the same place are one."""
    if not units:
        return
    if legs and legs[-1][0] is place:
        legs[-1] = (place, legs[-1][1] + units)
    else:
        legs.append((place, units))


def shown_lots(parts: Parts) -> tuple[dict[str, Any], ...]:
    """Lots as a user shows them."""
    return tuple(
        {
            "lot_id": lot.lot_id,
            "amount": lot.units,
            "expires_at": lot.ends,
            "priority": lot.priority,
            "source": lot.source,
        }
        for lot in parts.in_order()
    )


def shown_legs(legs: Legs) -> tuple[dict[str, Any], ...]:
    """Legs as a transaction shows them: none if all is the base's."""
    if all(place is None for place, _ in legs):
        return ()
    return tuple(
        {
            "lot_id": None if place is None else place.lot_id,
            "amount": units,
            "expires_at": None if place is None else place.ends,
            "priority": 50 if place is None else place.priority,
            "source": None if place is None else place.source,
        }
        for place, units in legs
    )

"""Holds: credits kept for work whose cost is known afterwards.

A hold moves no credits. It pins them, in the base and in lots, and captures take them. The account
knows of its active holds what decides (``ActiveHold``). The hold's own document knows the rest
(``HoldRecord``), also after the hold has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.extras import ActiveHold, Pin
from credit_mongo.core.values import check_seconds
from credit_mongo.errors import AccountDataError, HoldClosedError

if TYPE_CHECKING:
    from credit_mongo.core.state import State

__all__ = [
    "OVERAGES",
    "TIMEOUTS",
    "HoldChanged",
    "HoldPlaced",
    "HoldRecord",
    "HoldStatus",
    "Overage",
    "Taken",
    "Timeout",
    "active_part",
    "added_pins",
    "beyond_hold",
    "check_ttl",
    "remove_hold",
    "replace_hold",
    "split_pins",
    "take_for",
]

HoldStatus: TypeAlias = Literal["active", "captured", "released", "expired"]
Overage: TypeAlias = Literal["available", "debt", "reject"]
Timeout: TypeAlias = Literal["settle", "release"]
OVERAGES: Final[tuple[Overage, ...]] = ("available", "debt", "reject")
TIMEOUTS: Final[tuple[Timeout, ...]] = ("settle", "release")


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A hold as it is remembered. Amounts are in smallest units.

    ``amount`` is the total that it may take, what was captured included. ``price`` is the action's
    price when the hold began: units, a formula's text, or None if the action has no price.
    """

    hold_id: str
    user_id: str
    action: str
    amount: int
    captured: int
    uncollected: int
    used: int
    status: HoldStatus
    expires_at: datetime
    on_timeout: Timeout
    overage: Overage
    price: int | str | None
    tier: str | None
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, Any] | None

    @property
    def claimed(self) -> int:
        """The total of the captures so far, collected or not."""
        return self.captured + self.uncollected


class HoldPlaced(NamedTuple):
    """A hold began."""

    record: HoldRecord

    def apply(self, state: State) -> None:
        """Keep the hold, for the requests that follow."""
        state.place_hold(self.record)


class HoldChanged(NamedTuple):
    """Fields of a hold have changed, by the request with this id."""

    hold_id: str
    changed_by: str
    changes: Mapping[str, Any]

    def apply(self, state: State) -> None:
        """Change the hold, for the requests that follow."""
        state.change_hold(self.hold_id, self.changed_by, self.changes)


class Taken(NamedTuple):
    """What a capture took, what of it came from beyond the hold, and what it could not collect."""

    hold: ActiveHold
    cost: int
    uncollected: int


def check_ttl(value: object) -> timedelta:
    """Check how long a hold lives without being extended: 1 second to 30 days."""
    return check_seconds("ttl", value, least=1, most=30 * 24 * 3600)


def take_for(breakdown: Breakdown, hold: ActiveHold, total: int) -> Taken:
    """Take credits for a hold until its captures claim ``total`` units.

    They come from the hold's pins first. Beyond these, ``overage`` decides: ``"available"`` takes
    what no hold pins, ``"debt"`` goes on into the overdraft, and ``"reject"`` takes nothing.
    Returns the hold as it is afterwards, which also replaces it in the breakdown.
    """
    wanted = max(total - hold.claimed, 0)
    taken, left = split_pins(hold.pins, wanted)
    from_pins = sum(pin.amount for pin in taken)
    after = hold._replace(pins=left)
    # First, since what is taken is pinned no longer.
    replace_hold(breakdown, after)
    breakdown.take(taken)
    beyond = beyond_hold(breakdown, hold.overage, wanted - from_pins)
    cost, uncollected = from_pins + beyond, wanted - from_pins - beyond
    after = after._replace(
        captured=hold.captured + cost,
        uncollected=hold.uncollected + uncollected,
        used=max(hold.used, total),
    )
    replace_hold(breakdown, after)
    return Taken(after, cost, uncollected)


def active_part(breakdown: Breakdown, record: HoldRecord) -> ActiveHold:
    """Return what the account knows of the hold. Raises HoldClosedError if the hold is over."""
    if record.status != "active":
        raise HoldClosedError(record.hold_id, record.status)
    for hold in breakdown.holds:
        if hold.hold_id == record.hold_id:
            return hold
    field = "holds"
    raise AccountDataError(record.user_id, field, f"does not contain the hold {record.hold_id!r}")


def beyond_hold(breakdown: Breakdown, overage: str, wanted: int) -> int:
    """Take up to ``wanted`` units that no hold pins. Returns how many were taken."""
    there = {"available": breakdown.free, "debt": breakdown.available, "reject": 0}[overage]
    amount = min(wanted, max(there, 0))
    breakdown.take(breakdown.parts(amount))
    return amount


def replace_hold(breakdown: Breakdown, hold: ActiveHold) -> None:
    """Put the hold in the place of the one with its id, or behind the others."""
    for number, each in enumerate(breakdown.holds):
        if each.hold_id == hold.hold_id:
            breakdown.holds[number] = hold
            return
    breakdown.holds.append(hold)


def remove_hold(breakdown: Breakdown, hold_id: str) -> None:
    """Release what the hold still pins, and forget it."""
    breakdown.holds[:] = [each for each in breakdown.holds if each.hold_id != hold_id]


def added_pins(pins: tuple[Pin, ...], more: Iterable[Pin]) -> tuple[Pin, ...]:
    """Return the pins with more behind them.

    A lot has one pin, so the hold stays small however often it is extended. The base can have
    several, since its credits below zero come after all lots.
    """
    found = list(pins)
    for pin in more:
        last = len(found) - 1
        for number, each in enumerate(found):
            if each.lot_id == pin.lot_id and (pin.lot_id is not None or number == last):
                found[number] = Pin(pin.lot_id, each.amount + pin.amount)
                break
        else:
            found.append(pin)
    return tuple(found)


def split_pins(pins: tuple[Pin, ...], amount: int) -> tuple[tuple[Pin, ...], tuple[Pin, ...]]:
    """Split off the first ``amount`` units of the pins, or as many as there are."""
    first: list[Pin] = []
    rest: list[Pin] = []
    for pin in pins:
        part = min(pin.amount, amount)
        amount -= part
        if part:
            first.append(Pin(pin.lot_id, part))
        if pin.amount > part:
            rest.append(Pin(pin.lot_id, pin.amount - part))
    return tuple(first), tuple(rest)

"""Where an account's credits are: in the base, in lots, and which of them holds pin.

``credits = base + lots``. A ``Breakdown`` is a working copy. It changes the parts, notes each move
as a leg, and returns the changed account at the end. Only the base goes below zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from credit_mongo.core.extras import (
    BASE_PRIORITY,
    NO_EXTRAS,
    ActiveHold,
    Extras,
    Leg,
    Lot,
    Pin,
    order_of_use,
)
from credit_mongo.core.values import Account

__all__ = ["Breakdown", "is_used_after_base", "spend"]

# A lot with the base's priority and without an end is used after the base.
_BASE: Final = order_of_use(Lot("", 0, None, BASE_PRIORITY, None))


def is_used_after_base(lot: Lot) -> bool:
    """Return whether a charge takes the base before this lot."""
    return order_of_use(lot) > _BASE


class Breakdown:
    """A working copy of an account's parts. Raises LotsUnreadError if they were not all read."""

    def __init__(self, account: Account) -> None:
        extras = account.extras or NO_EXTRAS
        self._account = account
        self._lots = list(extras.all_lots)
        self._legs: list[Leg] = []
        self.base: int = account.credits - sum(lot.amount for lot in self._lots)
        self.holds: list[ActiveHold] = list(extras.holds)
        self.overdraft: int = extras.overdraft

    # What there is

    @property
    def lots(self) -> Sequence[Lot]:
        """In the order of their use."""
        return self._lots

    @property
    def free(self) -> int:
        """The units that no hold pins, without the overdraft. Negative if there is a debt."""
        return self.base + sum(lot.amount for lot in self._lots) - self._held()

    @property
    def available(self) -> int:
        """The units that a charge can take."""
        return self.free + self.overdraft

    def pinned(self, lot_id: str | None) -> int:
        """Return the units that holds pin in a lot or (None) in the base."""
        return self._pinned()[lot_id]

    def lot(self, lot_id: str | None) -> Lot | None:
        """Return the lot with this id, or None if there is no such lot now."""
        return next((lot for lot in self._lots if lot.lot_id == lot_id), None)

    def lot_like(self, lot: Lot) -> Lot | None:
        """Return the lot that this lot's credits are in now: itself, or one that is like it."""
        like = (each for each in self._lots if lot.is_like(each))
        return self.lot(lot.lot_id) or next(like, None)

    def parts(self, amount: int) -> list[Pin]:
        """Return where the next ``amount`` units are taken from, in the order of use.

        What other holds pin is left out. ``amount`` is at most what is available.
        """
        found: list[Pin] = []
        pinned = self._pinned()
        base_is_next = True
        for lot in self._lots:
            if base_is_next and is_used_after_base(lot):
                base_is_next = False
                amount -= _part(found, None, amount, self.base - pinned[None])
            if amount == 0:
                break
            amount -= _part(found, lot.lot_id, amount, lot.amount - pinned[lot.lot_id])
        # All that is left is the base's, below zero if need be.
        _part(found, None, amount, amount)
        return found

    def ended_lots(self, now: datetime) -> list[Leg]:
        """Return what must go from lots that have ended: all but what holds pin."""
        pinned = self._pinned()
        ended = [lot for lot in self._lots if lot.has_ended(now)]
        legs = [Leg(lot, pinned[lot.lot_id] - lot.amount) for lot in ended]
        return [leg for leg in legs if leg.amount < 0]

    # Changes

    def take(self, parts: Iterable[Pin]) -> None:
        """Take credits from these lots and the base."""
        for lot_id, amount in parts:
            self._move(self.lot(lot_id) if lot_id is not None else None, -amount)

    def give_base(self, amount: int) -> None:
        """Add credits to the base."""
        self._move(None, amount)

    def give(self, lot: Lot) -> Lot:
        """Add a lot's credits: to the lot with this id or one like it, or else as a new lot.

        Returns the lot that they are in.
        """
        into = self.lot_like(lot) or lot
        self._move(into, lot.amount)
        return into._replace(amount=0)

    def move(self, leg: Leg) -> None:
        """Change one lot or the base."""
        self._move(leg.lot, leg.amount)

    def _move(self, lot: Lot | None, amount: int) -> None:
        if amount == 0:
            return
        if lot is None:
            self.base += amount
        else:
            self._set(lot, amount)
        last = self._legs[-1] if self._legs else None
        leg = Leg(None if lot is None else lot._replace(amount=0), amount)
        if last is not None and last.lot_id == leg.lot_id and (last.amount < 0) == (amount < 0):
            self._legs[-1] = leg._replace(amount=last.amount + amount)
        else:
            self._legs.append(leg)

    def _set(self, lot: Lot, change: int) -> None:
        for number, each in enumerate(self._lots):
            if each.lot_id == lot.lot_id:
                left = each.amount + change
                self._lots[number : number + 1] = [each._replace(amount=left)] if left else []
                return
        self._lots.append(lot._replace(amount=change))
        self._lots.sort(key=order_of_use)

    # The end

    def account(self) -> Account:
        """Return the account with its parts and its credits as they are now."""
        credits_now = self.base + sum(lot.amount for lot in self._lots)
        extras = Extras(tuple(self._lots), tuple(self.holds), self.overdraft)
        # A debt outlives its overdraft, and only an account with extras may be below zero.
        is_plain = extras == NO_EXTRAS and self.base >= 0
        return self._account._replace(credits=credits_now, extras=None if is_plain else extras)

    def legs(self) -> tuple[Leg, ...] | None:
        """Return the moves so far; None if only the base has changed."""
        return tuple(self._legs) if any(leg.lot is not None for leg in self._legs) else None

    def _pinned(self) -> Counter[str | None]:
        """The units that holds pin, by lot. None stands for the base."""
        pinned: Counter[str | None] = Counter()
        for hold in self.holds:
            for pin in hold.pins:
                pinned[pin.lot_id] += pin.amount
        return pinned

    def _held(self) -> int:
        return sum(hold.held for hold in self.holds)


def _part(found: list[Pin], lot_id: str | None, wanted: int, there: int) -> int:
    part = min(wanted, there)
    if part <= 0:
        return 0
    if found and found[-1].lot_id == lot_id:
        found[-1] = Pin(lot_id, found[-1].amount + part)
    else:
        found.append(Pin(lot_id, part))
    return part


def spend(account: Account, amount: int) -> tuple[Account | None, tuple[Leg, ...] | None]:
    """Take credits in the order of use. Returns the changed account and the legs.

    None and None: the account has only the base. ``amount`` is at most what is available.

    Raises LotsUnreadError if lots that were not read decide where the credits come from.
    """
    extras = account.extras
    if extras is None:
        return None, None
    if amount and not extras.holds and (spent := _from_first_lots(extras, amount)) is not None:
        lots, legs = spent
        changed = Extras(lots, (), extras.overdraft, extras.unread)
        return account._replace(credits=account.credits - amount, extras=changed), legs
    breakdown = Breakdown(account)
    breakdown.take(breakdown.parts(amount))
    return breakdown.account(), breakdown.legs()


def _from_first_lots(extras: Extras, amount: int) -> tuple[tuple[Lot, ...], tuple[Leg, ...]] | None:
    """Take all credits from the lots that are used first. Returns the lots left, and the legs.

    None if the base is among what is used, or if no lot would be left that was read. Without holds
    a lot gives all that it has, so this is what ``Breakdown`` comes to, without a look at the rest.
    """
    legs: list[Leg] = []
    for number, lot in enumerate(extras.lots):
        if is_used_after_base(lot):
            return None
        lot_id, there, end, priority, source = lot
        part = min(there, amount)
        legs.append(Leg(Lot(lot_id, 0, end, priority, source), -part))
        amount -= part
        if amount == 0:
            lots = extras.lots[number + 1 :]
            if there > part:
                lots = (Lot(lot_id, there - part, end, priority, source), *lots)
            return (lots, tuple(legs)) if lots else None
    return None

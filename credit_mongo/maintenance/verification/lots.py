"""Replay a user's lots from the legs of the transactions, and compare them with the account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from credit_mongo.core.advance import CAPTURE, EXPIRE
from credit_mongo.core.extras import Extras, Leg, Lot
from credit_mongo.core.operations.correction import CorrectionRequest
from credit_mongo.core.operations.set_overdraft import SetOverdraftRequest
from credit_mongo.maintenance.verification.chain import whole
from credit_mongo.maintenance.verification.findings import Code, Finding
from credit_mongo.storage.extras import ExtrasError, legs_from
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw

__all__ = ["Replay"]

Tell: TypeAlias = Callable[[Finding], None]

_CORRECTION: Final = CorrectionRequest.operation
_SET_OVERDRAFT: Final = SetOverdraftRequest.operation


@dataclass(slots=True)
class _Replayed:
    """What the transactions so far have changed in a lot.

    ``is_whole`` is False if earlier transactions, in files, may have changed it too.
    """

    lot: Lot
    total: int = 0
    lowest: int = 0
    is_whole: bool = True


class Replay:
    """The lots and the limit after the transactions so far, oldest first."""

    def __init__(self, user_id: str, overdraft: int, tell: Tell) -> None:
        self._user_id = user_id
        self._tell_finding = tell
        self._lots: dict[str, _Replayed] = {}
        self._in_lots = 0
        self._is_whole = True
        # In force now, and the highest so far: a hold may still take what it once kept.
        self._overdraft = self._highest = overdraft

    def _tell(self, code: Code, row: Raw, **facts: Any) -> None:
        seq, row_id = whole(row.get("seq")), str(row["_id"])
        self._tell_finding(Finding(self._user_id, code, seq=seq, transaction_id=row_id, **facts))

    def skip(self) -> None:
        """Pass over transactions in files. What they did to lots is not known."""
        self._lots.clear()
        self._in_lots = 0
        self._is_whole = False

    def add(self, row: Raw) -> None:
        """Add the next transaction in the order of ``seq``."""
        amount, after = whole(row.get("amount")), whole(row.get("balanceAfter"))
        if row.get("operation") == _SET_OVERDRAFT:
            self._overdraft = whole(row.get("newOverdraft")) or 0
            self._highest = max(self._highest, self._overdraft)
        try:
            legs = legs_from(row.get("legs"))
        except ExtrasError:
            self._tell("legs-unusable", row)
            return
        if legs and amount is not None and sum(leg.amount for leg in legs) != amount:
            found = sum(leg.amount for leg in legs)
            self._tell("legs-differ", row, expected=amount, found=found)
        for leg in legs:
            if leg.lot is not None:
                self._change(row, leg.lot, leg)
        if amount is not None and after is not None:
            in_lots = sum(leg.amount for leg in legs if leg.lot is not None)
            self._check_limit(row, after, taken_from_base=in_lots - amount)

    def _change(self, row: Raw, lot: Lot, leg: Leg) -> None:
        found = self._lots.get(lot.lot_id)
        if found is None:
            # A lot has the id of the grant that opened it.
            is_whole = self._is_whole or lot.lot_id == str(row["_id"])
            found = self._lots[lot.lot_id] = _Replayed(lot, is_whole=is_whole)
        found.lot = lot
        found.total += leg.amount
        self._in_lots += leg.amount
        found.lowest = min(found.lowest, found.total)
        operation, moment = row.get("operation"), in_utc(row.get("createdAt"))
        if operation == _CORRECTION:
            return
        if leg.amount < 0 and found.total < 0 and found.is_whole:
            self._tell("expiry-doubled" if operation == EXPIRE else "lot-overdrawn", row)
        if (
            leg.amount < 0
            # What a hold keeps outlives the lot's end.
            and operation not in (EXPIRE, CAPTURE)
            and lot.expires_at is not None
            and isinstance(moment, datetime)
            and lot.expires_at < moment
        ):
            self._tell("lot-used-late", row)

    def _check_limit(self, row: Raw, after: int, *, taken_from_base: int) -> None:
        operation = row.get("operation")
        if not self._highest:
            if after < 0:
                self._tell("below-zero", row, found=after)
            return
        limit = self._highest if operation == CAPTURE else self._overdraft
        base = after - self._in_lots if self._is_whole else after
        if taken_from_base > 0 and base < -limit and operation != _CORRECTION:
            self._tell("below-zero", row, expected=-limit, found=after)

    def end(self, extras: Extras) -> tuple[Leg, ...]:
        """Compare the lots with those of the account.

        Returns the legs of a correction that lets both agree.
        """
        legs: list[Leg] = []
        there = {lot.lot_id: lot for lot in extras.lots}
        for lot_id in {**self._lots, **there}:
            lot, replayed = there.get(lot_id), self._lots.get(lot_id)
            found = 0 if lot is None else lot.amount
            expected = self._expected(replayed, found)
            changed = lot is not None and replayed is not None and not lot.is_like(replayed.lot)
            if found != expected:
                self._tell_of_lot("lot-differs", lot_id, expected=expected, found=found)
            if changed:
                self._tell_of_lot("lot-changed", lot_id)
            known = lot if lot is not None else replayed.lot if replayed is not None else None
            if known is not None and (changed or found != expected):
                legs.append(Leg(known._replace(amount=0), found - expected))
        return tuple(legs)

    def _expected(self, replayed: _Replayed | None, found: int) -> int:
        if replayed is None:
            return 0 if self._is_whole else found
        if replayed.is_whole:
            return replayed.total
        # It had something before, but never less than nothing.
        return max(found, replayed.total - replayed.lowest)

    def _tell_of_lot(self, code: Code, lot_id: str, **facts: Any) -> None:
        self._tell_finding(Finding(self._user_id, code, transaction_id=lot_id, **facts))

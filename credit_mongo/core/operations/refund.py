"""Refund: give credits back, freely or for a charge. A charge's refunds never exceed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.advance import Advancing, derived_id
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import (
    NOTHING_MORE,
    Change,
    Decision,
    Needs,
    Operation,
    Request,
    UsageKinds,
    post,
)
from credit_mongo.core.extras import Leg, Lot
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import ChargeRefunded, State
from credit_mongo.core.values import Account, RefundableCharge, refuse_overflow
from credit_mongo.errors import RefundExceedsChargeError

__all__ = ["Refund", "RefundRequest", "RefundResult"]


@dataclass(frozen=True, slots=True)
class RefundResult:
    """What a refund gave back (``amount``) and the balance before and after, in smallest units.

    ``expired_amount`` is the part that went back to lots which had ended, and so ended at once.
    ``balance_after`` no longer contains it.
    """

    transaction_id: str
    user_id: str
    action: str
    amount: int
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    expired_amount: int = 0
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRequest(Request[RefundResult]):
    """Give back ``amount`` units, for the charge ``charge_id`` or freely."""

    operation: ClassVar[str] = "refund"

    amount: int
    charge_id: str | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.action, self.amount, self.charge_id)


class Refund(Operation[RefundRequest, RefundResult]):
    """Give credits back. All refunds of a charge together never exceed it.

    They go back to where the credits came from: what was taken last is given back first.
    """

    request_type: ClassVar[type[RefundRequest]] = RefundRequest
    result_type: ClassVar[type[RefundResult]] = RefundResult
    usage: ClassVar[UsageKinds] = UsageKinds(added="refunded")

    def needs(self, request: RefundRequest) -> Needs:
        return NOTHING_MORE if request.charge_id is None else Needs(charges=(request.charge_id,))

    def decide(
        self, request: RefundRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[RefundResult]:
        account = state.account(request.user_id)
        changes: tuple[Change, ...] = ()
        changed: Account | None = None
        legs: tuple[Leg, ...] | None = None
        if account.extras is not None:
            # To the base, unless the charge says otherwise. It may repay a debt, which was all.
            breakdown = Breakdown(account)
            breakdown.give_base(request.amount)
            changed = breakdown.account()
        if request.charge_id is not None:
            charge = state.charge(request.charge_id, account.user_id)
            if request.amount > charge.refundable:
                raise RefundExceedsChargeError(request.charge_id, charge.refundable, request.amount)
            changes = (ChargeRefunded(charge, request.amount),)
            if charge.legs:
                changed, legs = _give_back(account, request, charge, policy, now)
        refuse_overflow(account, request.amount)
        posting = post(
            request,
            account,
            request.amount,
            now,
            {},
            refund_of=request.charge_id,
            changed=changed,
            legs=legs,
        )
        after = Advancing(posting.account, request.transaction_id, now)
        expired = after.end_lots(now) if legs else 0
        return Decision(
            (posting, *after.postings),
            RefundResult(
                request.transaction_id,
                account.user_id,
                request.action,
                request.amount,
                account.credits,
                after.account.credits,
                now,
                request.metadata,
                expired,
            ),
            changes,
        )


def _give_back(
    account: Account,
    request: RefundRequest,
    charge: RefundableCharge,
    policy: Policy,
    now: datetime,
) -> tuple[Account, tuple[Leg, ...] | None]:
    """Unwind the charge's legs, the last first, beyond what was refunded before."""
    breakdown = Breakdown(account)
    for ordinal, (lot, amount) in enumerate(_unwound(charge, request.amount)):
        if lot is None:
            breakdown.give_base(amount)
            continue
        lot = lot._replace(amount=amount)  # noqa: PLW2901 - the same lot with its credits
        if lot.has_ended(now) and lot.expires_at is not None:
            end = lot.expires_at + policy.refund_grace
            if end > now:
                # A lot of its own: what others pin in the first one keeps its own end.
                lot_id = derived_id(request.transaction_id, -1 - ordinal)
                lot = lot._replace(lot_id=lot_id, expires_at=end)  # noqa: PLW2901
        breakdown.give(lot)
    return breakdown.account(), breakdown.legs()


def _unwound(charge: RefundableCharge, amount: int) -> Iterator[tuple[Lot | None, int]]:
    """Yield where to give the credits back, and how many."""
    skip = charge.refunded
    for leg in reversed(charge.legs):
        taken = -leg.amount
        passed_over = min(skip, taken)
        skip -= passed_over
        part = min(amount, taken - passed_over)
        amount -= part
        if part > 0:
            yield leg.lot, part

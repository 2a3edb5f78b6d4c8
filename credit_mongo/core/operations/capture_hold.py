"""Capture a hold: take what the work cost. The amounts of captures are totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from credit_mongo.core.advance import CAPTURE, Advancing
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Needs, Operation, Request, UsageKinds, post
from credit_mongo.core.holds import (
    HoldChanged,
    HoldRecord,
    active_part,
    beyond_hold,
    remove_hold,
    take_for,
)
from credit_mongo.core.operations.hold_results import cost_at_hold_s_price
from credit_mongo.core.policy import Policy
from credit_mongo.core.pricing import Priced
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import AccountChanged, State
from credit_mongo.core.values import Account
from credit_mongo.core.variables import Variables, numbers_of
from credit_mongo.errors import HoldClosedError, HoldExceededError, InvalidRequestError

__all__ = ["CaptureHold", "CaptureHoldRequest", "CaptureResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureResult:
    """What a capture took (``cost``) and the balance before and after, in smallest units.

    ``transaction_id`` is None if it took nothing. ``captured`` is what all captures of the hold
    took. ``uncollected`` is what this one was to take but could not. ``late`` says whether the hold
    had ended before. ``expired_amount`` is what the hold had kept in lots beyond their end and no
    longer keeps, so it ended at once. ``balance_after`` no longer contains it.
    """

    hold_id: str
    transaction_id: str | None
    user_id: str
    action: str
    cost: int
    captured: int
    uncollected: int
    late: bool
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    expired_amount: int = 0
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureHoldRequest(Request[CaptureResult]):
    """Let the captures of the hold be ``amount`` units in all, or what the variables cost."""

    operation: ClassVar[str] = CAPTURE

    action: str = field(default="capture_hold", init=False)
    hold_id: str
    amount: int | None
    variables: Variables | None
    is_final: bool

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.hold_id, self.amount, numbers_of(self.variables), self.is_final)


class CaptureHold(Operation[CaptureHoldRequest, CaptureResult]):
    """Take the cost of the work from the hold, and beyond it as the hold's overage says."""

    request_type: ClassVar[type[CaptureHoldRequest]] = CaptureHoldRequest
    result_type: ClassVar[type[CaptureResult]] = CaptureResult
    usage: ClassVar[UsageKinds] = UsageKinds(taken="spent")
    is_refundable: ClassVar[bool] = True

    def needs(self, request: CaptureHoldRequest) -> Needs:
        return Needs(holds=(request.hold_id,))

    def decide(
        self, request: CaptureHoldRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[CaptureResult]:
        account = state.account(request.user_id)
        record = state.hold(request.hold_id, account.user_id)
        priced = _priced(request, record, policy)
        if record.status == "active":
            return _capture(request, account, record, priced, now)
        if record.status == "expired" and now <= record.expires_at + policy.hold_late:
            return _capture_late(request, account, record, priced, now)
        if record.status == "captured" and priced.cost == record.claimed:
            result = _result(request, account, account, record, captured=record.captured, now=now)
            return Decision((), result)
        raise HoldClosedError(record.hold_id, record.status)


def _priced(request: CaptureHoldRequest, record: HoldRecord, policy: Policy) -> Priced:
    if request.variables is None:
        return Priced(record.amount if request.amount is None else request.amount)
    return cost_at_hold_s_price(policy, record.action, record.price, request.variables)


def _refuse_smaller(total: int, claimed: int) -> None:
    """Refuse a total that is smaller than the one before."""
    if total < claimed:
        reason = f"is a total, and less than the {claimed} captured before"
        raise InvalidRequestError("amount", reason)


def _capture(
    request: CaptureHoldRequest,
    account: Account,
    record: HoldRecord,
    priced: Priced,
    now: datetime,
) -> Decision[CaptureResult]:
    breakdown = Breakdown(account)
    hold = active_part(breakdown, record)
    _refuse_smaller(priced.cost, hold.claimed)
    if record.overage == "reject" and priced.cost > hold.claimed + hold.held:
        raise HoldExceededError(record.hold_id, hold.claimed + hold.held, priced.cost)
    taken = take_for(breakdown, hold, priced.cost)
    changes: dict[str, Any] = {
        "captured": taken.hold.captured,
        "uncollected": taken.hold.uncollected,
        "used": taken.hold.used,
        "updated_at": now,
    }
    if request.is_final:
        remove_hold(breakdown, hold.hold_id)
        changes["status"] = "captured"
    return _decision(request, account, record, breakdown, changes=changes, priced=priced, now=now)


def _capture_late(
    request: CaptureHoldRequest,
    account: Account,
    record: HoldRecord,
    priced: Priced,
    now: datetime,
) -> Decision[CaptureResult]:
    """Take what goes beyond that which the hold's end took."""
    _refuse_smaller(priced.cost, record.claimed)
    if record.overage == "reject" and priced.cost > record.amount:
        raise HoldExceededError(record.hold_id, record.amount, priced.cost)
    wanted = priced.cost - record.claimed
    breakdown = Breakdown(account)
    overage = "available" if record.overage == "reject" else record.overage
    cost = beyond_hold(breakdown, overage, wanted)
    changes: dict[str, Any] = {
        "captured": record.captured + cost,
        "uncollected": record.uncollected + wanted - cost,
        "used": max(record.used, priced.cost),
        "updated_at": now,
    }
    return _decision(
        request, account, record, breakdown, changes=changes, priced=priced, now=now, is_late=True
    )


def _decision(
    request: CaptureHoldRequest,
    account: Account,
    record: HoldRecord,
    breakdown: Breakdown,
    *,
    changes: dict[str, Any],
    priced: Priced,
    now: datetime,
    is_late: bool = False,
) -> Decision[CaptureResult]:
    """Post what was taken, and the end of lots whose credits the hold has kept beyond it."""
    cost = changes["captured"] - record.captured
    uncollected = changes["uncollected"] - record.uncollected
    details: dict[str, Any] = {"holdId": record.hold_id, "uncollected": uncollected}
    if is_late:
        details["late"] = True
    details |= priced.details
    changed = breakdown.account()
    postings = []
    if cost:
        posting = post(
            request,
            account,
            -cost,
            now,
            details,
            facts={"uncollected": uncollected} if uncollected else None,
            changed=changed,
            legs=breakdown.legs(),
            hold_id=record.hold_id,
        )._replace(action=record.action)
        postings.append(posting)
        changed = posting.account
    after = Advancing(changed, request.transaction_id, now)
    expired = after.end_lots(now)
    result = _result(
        request,
        account,
        after.account,
        record,
        captured=changes["captured"],
        now=now,
        cost=cost,
        uncollected=uncollected,
        expired=expired,
        is_late=is_late,
    )
    return Decision(
        (*postings, *after.postings),
        result,
        (
            AccountChanged(after.account),
            HoldChanged(record.hold_id, request.transaction_id, changes),
        ),
        None if cost else details,
    )


def _result(
    request: CaptureHoldRequest,
    before: Account,
    after: Account,
    record: HoldRecord,
    *,
    captured: int,
    now: datetime,
    cost: int = 0,
    uncollected: int = 0,
    expired: int = 0,
    is_late: bool = False,
) -> CaptureResult:
    return CaptureResult(
        hold_id=request.hold_id,
        transaction_id=request.transaction_id if cost else None,
        user_id=before.user_id,
        action=record.action,
        cost=cost,
        captured=captured,
        uncollected=uncollected,
        late=is_late,
        balance_before=before.credits,
        balance_after=after.credits,
        created_at=now,
        metadata=request.metadata,
        expired_amount=expired,
    )

"""Extend a hold: a later end, another amount, or a report of what was used so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from credit_mongo.core.advance import Advancing
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Needs, Operation, Request
from credit_mongo.core.extras import ActiveHold
from credit_mongo.core.holds import (
    HoldChanged,
    HoldRecord,
    active_part,
    added_pins,
    replace_hold,
    split_pins,
)
from credit_mongo.core.operations.hold_results import Hold, hold_of
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import AccountChanged, State
from credit_mongo.errors import InsufficientCreditsError, InvalidRequestError

__all__ = ["ExtendHold", "ExtendHoldRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendHoldRequest(Request[Hold]):
    """Let the hold live ``ttl`` from now on, be for ``amount`` units, and have used ``used``.

    None leaves each as it is.
    """

    operation: ClassVar[str] = "extend_hold"

    action: str = field(default="extend_hold", init=False)
    hold_id: str
    ttl: timedelta | None
    amount: int | None
    used: int | None

    @property
    def effect(self) -> tuple[object, ...]:
        ttl = None if self.ttl is None else self.ttl.total_seconds()
        return (self.hold_id, ttl, self.amount, self.used)


class ExtendHold(Operation[ExtendHoldRequest, Hold]):
    """Change an active hold. Its end never moves back, so late heartbeats change nothing."""

    request_type: ClassVar[type[ExtendHoldRequest]] = ExtendHoldRequest
    result_type: ClassVar[type[Hold]] = Hold
    moves_credits: ClassVar[bool] = False

    def needs(self, request: ExtendHoldRequest) -> Needs:
        return Needs(holds=(request.hold_id,))

    def decide(
        self,
        request: ExtendHoldRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[Hold]:
        account = state.account(request.user_id)
        record = state.hold(request.hold_id, account.user_id)
        breakdown = Breakdown(account)
        hold = active_part(breakdown, record)
        if request.used is not None:
            if request.used < hold.used:
                raise InvalidRequestError("used", f"is less than the {hold.used} reported before")
            hold = hold._replace(used=request.used)
        if request.ttl is not None:
            hold = hold._replace(expires_at=max(hold.expires_at, now + request.ttl))
        amount = record.amount
        if request.amount is not None:
            amount = request.amount
            hold = _resized(breakdown, hold, record, amount)
        replace_hold(breakdown, hold)
        changes: dict[str, Any] = {
            "amount": amount,
            "used": hold.used,
            "expires_at": hold.expires_at,
            "updated_at": now,
        }
        # What is no longer kept has no life beyond its lot's end.
        after = Advancing(breakdown.account(), request.transaction_id, now)
        after.end_lots(now)
        # Heartbeats, which come by the dozen, leave nothing in the audit log.
        is_heartbeat = request.amount is None and request.metadata is None
        noted = {"holdId": hold.hold_id, "amount": amount, "expiresAt": hold.expires_at}
        return Decision(
            tuple(after.postings),
            hold_of(replace(record, **changes)),
            (
                AccountChanged(after.account),
                HoldChanged(hold.hold_id, request.transaction_id, changes),
            ),
            None if is_heartbeat else noted,
        )


def _resized(breakdown: Breakdown, hold: ActiveHold, record: HoldRecord, amount: int) -> ActiveHold:
    """Pin more credits, or release what was pinned last."""
    if amount < hold.captured:
        raise InvalidRequestError("amount", f"is less than the {hold.captured} captured before")
    more = amount - hold.captured - hold.held
    if more > max(breakdown.available, 0):
        raise InsufficientCreditsError(record.user_id, more, breakdown.available)
    if more >= 0:
        return hold._replace(pins=added_pins(hold.pins, breakdown.parts(more)))
    kept, _ = split_pins(hold.pins, amount - hold.captured)
    return hold._replace(pins=kept)

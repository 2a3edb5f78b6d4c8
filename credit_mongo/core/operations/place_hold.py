"""Place a hold: keep credits for work whose cost is known afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Operation, Request
from credit_mongo.core.extras import MAX_HOLDS, ActiveHold
from credit_mongo.core.holds import HoldPlaced, HoldRecord, Overage, Timeout, replace_hold
from credit_mongo.core.operations.hold_results import Hold, hold_of
from credit_mongo.core.policy import Policy
from credit_mongo.core.pricing import Priced
from credit_mongo.core.state import AccountChanged, State
from credit_mongo.core.variables import Variables, numbers_of
from credit_mongo.errors import AccountLimitError, InsufficientCreditsError

__all__ = ["PlaceHold", "PlaceHoldRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceHoldRequest(Request[Hold]):
    """Keep the price of the action, or ``amount`` units."""

    operation: ClassVar[str] = "place_hold"

    amount: int | None
    variables: Variables | None
    ttl: timedelta
    overage: Overage
    on_timeout: Timeout

    @property
    def effect(self) -> tuple[object, ...]:
        numbers = numbers_of(self.variables)
        ttl = self.ttl.total_seconds()
        return (self.action, self.amount, numbers, ttl, self.overage, self.on_timeout)


class PlaceHold(Operation[PlaceHoldRequest, Hold]):
    """Keep credits. No others can spend them until the hold ends."""

    request_type: ClassVar[type[PlaceHoldRequest]] = PlaceHoldRequest
    result_type: ClassVar[type[Hold]] = Hold
    moves_credits: ClassVar[bool] = False

    def decide(
        self, request: PlaceHoldRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[Hold]:
        account = state.account(request.user_id)
        tier = policy.membership.tier_in_force(account, now)
        price = policy.find_price(account, request.action, tier)
        if request.amount is None:
            priced = policy.price(account, request.action, tier, request.variables)
        else:
            priced = Priced(request.amount)
        if account.lacks(priced.cost):
            raise InsufficientCreditsError(account.user_id, priced.cost, account.available)
        breakdown = Breakdown(account)
        if len(breakdown.holds) >= MAX_HOLDS:
            raise AccountLimitError(account.user_id, "active holds", MAX_HOLDS)
        hold = ActiveHold(
            hold_id=request.transaction_id,
            action=request.action,
            pins=tuple(breakdown.parts(priced.cost)),
            captured=0,
            uncollected=0,
            used=0,
            expires_at=now + request.ttl,
            settles_at_end=request.on_timeout == "settle",
            overage=request.overage,
        )
        replace_hold(breakdown, hold)
        record = HoldRecord(
            hold_id=hold.hold_id,
            user_id=account.user_id,
            action=hold.action,
            amount=priced.cost,
            captured=0,
            uncollected=0,
            used=0,
            status="active",
            expires_at=hold.expires_at,
            on_timeout=request.on_timeout,
            overage=request.overage,
            price=price if price is None or isinstance(price, int) else price.text,
            tier=tier,
            created_at=now,
            updated_at=now,
            metadata=request.metadata,
        )
        noted: dict[str, Any] = {
            "holdId": hold.hold_id,
            "amount": priced.cost,
            "tier": tier,
            "expiresAt": hold.expires_at,
        }
        return Decision(
            (),
            hold_of(record),
            (AccountChanged(breakdown.account()), HoldPlaced(record)),
            noted,
        )

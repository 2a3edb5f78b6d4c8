"""Charge: take the price of an action for the user's tier, or an amount that the caller gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.breakdown import spend
from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds, post
from credit_mongo.core.policy import Policy
from credit_mongo.core.pricing import Priced
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import State
from credit_mongo.core.variables import Variables, numbers_of
from credit_mongo.errors import InsufficientCreditsError

__all__ = ["Charge", "ChargeRequest", "ChargeResult"]


@dataclass(frozen=True, slots=True)
class ChargeResult:
    """What a charge took (``cost``) and the balance before and after, in smallest units."""

    transaction_id: str
    user_id: str
    action: str
    cost: int
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest(Request[ChargeResult]):
    """Take the price of the action, or ``amount`` units."""

    operation: ClassVar[str] = "charge"

    amount: int | None
    variables: Variables | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.action, self.amount, numbers_of(self.variables))


class Charge(Operation[ChargeRequest, ChargeResult]):
    """Take credits from a user, never more than is available."""

    request_type: ClassVar[type[ChargeRequest]] = ChargeRequest
    result_type: ClassVar[type[ChargeResult]] = ChargeResult
    usage: ClassVar[UsageKinds] = UsageKinds(taken="spent")
    is_refundable: ClassVar[bool] = True
    needs_all_lots: ClassVar[bool] = False

    def decide(
        self, request: ChargeRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[ChargeResult]:
        account = state.account(request.user_id)
        tier = policy.membership.tier_in_force(account, now)
        if request.amount is None:
            priced = policy.price(account, request.action, tier, request.variables)
        else:
            policy.find_price(account, request.action, tier)
            priced = Priced(request.amount)
        if account.lacks(priced.cost):
            raise InsufficientCreditsError(account.user_id, priced.cost, account.available)
        details = {"tier": tier, **priced.details}
        changed, legs = spend(account, priced.cost)
        posting = post(request, account, -priced.cost, now, details, changed=changed, legs=legs)
        return Decision(
            (posting,),
            ChargeResult(
                request.transaction_id,
                account.user_id,
                request.action,
                priced.cost,
                account.credits,
                posting.account.credits,
                now,
                request.metadata,
            ),
        )

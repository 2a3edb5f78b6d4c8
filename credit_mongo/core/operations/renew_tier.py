"""Renew: stay in the tier until a new expiry."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds
from credit_mongo.core.operations.tier_change import TIER_CHANGES, TierChangeResult, change_tier
from credit_mongo.core.policy import Policy, refuse_past
from credit_mongo.core.state import State
from credit_mongo.core.values import moment_text
from credit_mongo.errors import InvalidTierChangeError

__all__ = ["RenewTier", "RenewTierRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewTierRequest(Request[TierChangeResult]):
    """Stay in the tier until a new expiry. With ``refill``, set the base by the tier's cap."""

    operation: ClassVar[str] = "renew_tier"

    action: str = field(default="renew_tier", init=False)
    membership_expires_at: datetime | None
    refill: bool
    # Not part of the effect: without this flag, the request does the same or is refused.
    allow_earlier: bool = False

    @property
    def effect(self) -> tuple[object, ...]:
        return (moment_text(self.membership_expires_at), self.refill)


class RenewTier(Operation[RenewTierRequest, TierChangeResult]):
    """Stay in the tier until a new expiry."""

    request_type: ClassVar[type[RenewTierRequest]] = RenewTierRequest
    result_type: ClassVar[type[TierChangeResult]] = TierChangeResult
    usage: ClassVar[UsageKinds] = TIER_CHANGES

    def decide(
        self, request: RenewTierRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[TierChangeResult]:
        account = state.account(request.user_id)
        tier = account.membership_tier
        if tier is None:
            raise InvalidTierChangeError(account.user_id, None, None, "there is no tier to renew")
        expires_at = request.membership_expires_at
        refuse_past(expires_at, now)
        policy.membership.level(tier)
        current = account.membership_expires_at
        is_earlier = current is not None and expires_at is not None and expires_at < current
        if is_earlier and not request.allow_earlier:
            reason = (
                f"the new expiry {expires_at} is before the current one {current}; "
                "allow_earlier=True shortens the membership"
            )
            raise InvalidTierChangeError(account.user_id, tier, tier, reason)
        return change_tier(
            request, account, policy, now, tier=tier, expires_at=expires_at, refill=request.refill
        )

"""Downgrade: move to a lower tier."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds
from credit_mongo.core.operations.tier_change import TIER_CHANGES, TierChangeResult, change_tier
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import State
from credit_mongo.errors import InvalidTierChangeError

__all__ = ["DowngradeTier", "DowngradeTierRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DowngradeTierRequest(Request[TierChangeResult]):
    """Move to a lower tier, with or without the current expiry."""

    operation: ClassVar[str] = "downgrade_tier"

    action: str = field(default="downgrade_tier", init=False)
    target_tier: str
    clear_expiration: bool

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.target_tier, self.clear_expiration)


class DowngradeTier(Operation[DowngradeTierRequest, TierChangeResult]):
    """Move to a lower tier."""

    request_type: ClassVar[type[DowngradeTierRequest]] = DowngradeTierRequest
    result_type: ClassVar[type[TierChangeResult]] = TierChangeResult
    usage: ClassVar[UsageKinds] = TIER_CHANGES

    def decide(
        self, request: DowngradeTierRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[TierChangeResult]:
        account = state.account(request.user_id)
        current, target = account.membership_tier, request.target_tier
        target_level = policy.membership.level(target)
        if current is None:
            raise InvalidTierChangeError(account.user_id, None, target, "there is no tier yet")
        if target_level >= policy.membership.level(current):
            reason = "it is the current tier" if target == current else "it is not lower"
            raise InvalidTierChangeError(account.user_id, current, target, reason)
        expires_at = None if request.clear_expiration else account.membership_expires_at
        return change_tier(request, account, policy, now, tier=target, expires_at=expires_at)

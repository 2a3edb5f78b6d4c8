"""Upgrade: move to a higher tier."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds
from credit_mongo.core.membership import is_past
from credit_mongo.core.operations.tier_change import TIER_CHANGES, TierChangeResult, change_tier
from credit_mongo.core.policy import Policy, refuse_past
from credit_mongo.core.state import State
from credit_mongo.core.values import Keep, moment_text
from credit_mongo.errors import InvalidTierChangeError

__all__ = ["UpgradeTier", "UpgradeTierRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeTierRequest(Request[TierChangeResult]):
    """Move to a higher tier, with a new expiry or the current one."""

    operation: ClassVar[str] = "upgrade_tier"

    action: str = field(default="upgrade_tier", init=False)
    target_tier: str
    membership_expires_at: datetime | Keep | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.target_tier, moment_text(self.membership_expires_at))


class UpgradeTier(Operation[UpgradeTierRequest, TierChangeResult]):
    """Move to a higher tier. ``KEEP`` keeps a future expiry and clears one that has passed."""

    request_type: ClassVar[type[UpgradeTierRequest]] = UpgradeTierRequest
    result_type: ClassVar[type[TierChangeResult]] = TierChangeResult
    usage: ClassVar[UsageKinds] = TIER_CHANGES

    def decide(
        self, request: UpgradeTierRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[TierChangeResult]:
        account = state.account(request.user_id)
        current, target = account.membership_tier, request.target_tier
        target_level = policy.membership.level(target)
        if current is not None and target_level <= policy.membership.level(current):
            reason = "it is the current tier" if target == current else "it is not higher"
            raise InvalidTierChangeError(account.user_id, current, target, reason)
        expires_at = request.membership_expires_at
        if isinstance(expires_at, Keep):
            kept = account.membership_expires_at
            expires_at = None if is_past(kept, now) else kept
        else:
            refuse_past(expires_at, now)
        return change_tier(request, account, policy, now, tier=target, expires_at=expires_at)

"""What upgrades, downgrades and renewals share: they set tier, expiry and balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Request, UsageKinds, post
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import Account, refuse_overflow

__all__ = ["TIER_CHANGES", "TierChangeResult", "change_tier"]

TIER_CHANGES = UsageKinds("tier_changes_added", "tier_changes_taken")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierChangeResult:
    """What an upgrade, downgrade or renewal changed. Credits are in smallest units."""

    transaction_id: str
    user_id: str
    old_tier: str | None
    new_tier: str
    old_credits: int
    new_credits: int
    credits_delta: int
    membership_expires_at: datetime | None
    created_at: datetime
    replayed: bool = field(default=False, compare=False)


def change_tier(
    request: Request[TierChangeResult],
    account: Account,
    policy: Policy,
    now: datetime,
    *,
    tier: str,
    expires_at: datetime | None,
    refill: bool = True,
) -> Decision[TierChangeResult]:
    """Set tier and expiry and, with ``refill``, the base by the tier's cap.

    The base never goes below what is held of it, and lots stay as they are.
    """
    breakdown = Breakdown(account)
    if refill:
        base = policy.membership.base_after_change(breakdown.base, tier)
        held = min(breakdown.base, breakdown.pinned(None))
        breakdown.give_base(max(base, held) - breakdown.base)
    changed = breakdown.account()
    balance = changed.credits
    changed = changed._replace(membership_tier=tier, membership_expires_at=expires_at)
    details: dict[str, Any] = {
        "oldTier": account.membership_tier,
        "newTier": tier,
        "membershipExpiresAt": expires_at,
    }
    refuse_overflow(account, balance - account.credits, "credits_caps")
    posting = post(request, account, balance - account.credits, now, details, changed=changed)
    return Decision(
        (posting,),
        TierChangeResult(
            transaction_id=request.transaction_id,
            user_id=account.user_id,
            old_tier=account.membership_tier,
            new_tier=tier,
            old_credits=account.credits,
            new_credits=balance,
            credits_delta=posting.amount,
            membership_expires_at=expires_at,
            created_at=now,
        ),
    )

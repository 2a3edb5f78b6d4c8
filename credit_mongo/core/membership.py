"""Tiers: which one is in force, which actions it gives access to, and which cap it sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from credit_mongo.core.values import Account
from credit_mongo.errors import MembershipRequiredError, UndefinedTierError

__all__ = ["Membership", "OnChange"]

OnChange: TypeAlias = Literal["cap", "raise", "add", "keep"]


@dataclass(frozen=True, slots=True)
class Membership:
    """The tiers of a configuration. ``levels`` is empty if it has no tiers. Caps are in units."""

    levels: Mapping[str, int]
    requirements: Mapping[str, str]
    caps: Mapping[str, int]
    on_change: OnChange = "cap"
    """How a change of tier sets the base: see ``base_after_change``."""

    def level(self, tier: str) -> int:
        """Return the level of a tier. Raises UndefinedTierError."""
        try:
            return self.levels[tier]
        except KeyError:
            raise UndefinedTierError(tier) from None

    def cap(self, tier: str) -> int:
        """Return the balance that a change to this tier sets. Raises UndefinedTierError."""
        try:
            return self.caps[tier]
        except KeyError:
            raise UndefinedTierError(tier) from None

    def base_after_change(self, base: int, tier: str) -> int:
        """Return the base after a change to this tier. Raises UndefinedTierError.

        ``"cap"`` sets it to the cap, ``"raise"`` does so unless it is higher, ``"add"`` adds the
        cap, and ``"keep"`` leaves it as it is. A debt is netted, not forgiven.
        """
        cap, debt = self.cap(tier), min(base, 0)
        return {
            "cap": cap + debt,
            "raise": max(base, cap + debt),
            "add": base + cap,
            "keep": base,
        }[self.on_change]

    def tier_in_force(self, account: Account, now: datetime) -> str | None:
        """Return the account's tier, or None if the account has none or its tier has expired.

        Raises UndefinedTierError if the configuration has tiers but not the stored one. Charging
        its members the default price instead would lose money silently.
        """
        tier = account.membership_tier
        if tier is None or is_past(account.membership_expires_at, now):
            return None
        if self.levels:
            self.level(tier)
        return tier

    def check_requirement(self, account: Account, action: str, tier: str | None) -> None:
        """Raise MembershipRequiredError if the action needs a higher tier than the one in force."""
        required = self.requirements.get(action)
        if required is not None and (tier is None or self.level(tier) < self.level(required)):
            raise MembershipRequiredError(account.user_id, required, tier)

    def lowest(self, tiers: Mapping[str, object]) -> str | None:
        """Return the tier with the lowest level among ``tiers``, or None if there are none."""
        return min(tiers, key=lambda tier: self.levels.get(tier, 0), default=None)


def is_past(expires_at: datetime | None, now: datetime) -> bool:
    """Return whether an expiry has passed. The moment itself counts as past."""
    return expires_at is not None and expires_at <= now

"""Tiers: which is in force, what it gives access to, where a change of tier leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from credit_mongo.core.values import Account
from credit_mongo.errors import MembershipRequiredError, UndefinedTierError

__all__ = ["Membership"]


@dataclass(frozen=True, slots=True)
class Membership:
    """The tiers of a configuration. ``levels`` is empty when it has none; caps are in units."""

    levels: Mapping[str, int]
    requirements: Mapping[str, str]
    caps: Mapping[str, int]

    def level(self, tier: str) -> int:
        """How high a tier stands. Raises UndefinedTierError."""
        try:
            return self.levels[tier]
        except KeyError:
            raise UndefinedTierError(tier) from None

    def cap(self, tier: str) -> int:
        """The balance that a change to this tier sets. Raises UndefinedTierError."""
        try:
            return self.caps[tier]
        except KeyError:
            raise UndefinedTierError(tier) from None

    def tier_in_force(self, account: Account, now: datetime) -> str | None:
        """The account's tier, or None without one and when it has expired.

        A stored tier that the configuration does not know raises UndefinedTierError: charging its
        members the default price would be a silent mistake with money.
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
        """Of the tiers named, the one that stands lowest; None if there are none."""
        return min(tiers, key=lambda tier: self.levels.get(tier, 0), default=None)


def is_past(expires_at: datetime | None, now: datetime) -> bool:
    """Whether an expiry has come. The moment itself counts as past."""
    return expires_at is not None and expires_at <= now

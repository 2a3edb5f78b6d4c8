"""The policy: what a configuration says about prices, tiers and access."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from credit_mongo.core.membership import Membership, is_past
from credit_mongo.core.pricing import DEFAULT_TIER, Price, Priced, Tariff, find_price
from credit_mongo.core.results import Quote
from credit_mongo.core.values import Account
from credit_mongo.core.variables import Variables
from credit_mongo.errors import (
    InvalidRequestError,
    MembershipRequiredError,
    UndefinedActionError,
)

__all__ = ["Policy", "refuse_past"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The prices and the membership rules of a configuration."""

    tariff: Tariff
    membership: Membership
    max_lead: timedelta | None = None
    """How far after ``now`` a user's last change may be dated and still be believed.

    None means any distance.
    """
    refund_grace: timedelta = timedelta()
    """How long after a lot's end a refund to it can still be used."""
    hold_late: timedelta = timedelta(days=1)
    """How long after a hold's end a capture is still accepted."""

    def time_for(self, account: Account, now: datetime) -> datetime:
        """Return the time of the user's next change: now, or the last change if that is later.

        Clocks may go back, but the time of a user's rows never does. So ordering rows by time also
        orders them by ``seq``, and what has expired stays expired. If the last change is dated more
        than ``max_lead`` after ``now``, its date is wrong, and the method returns ``now``.
        """
        last = account.updated_at
        if last <= now or (self.max_lead is not None and last - now > self.max_lead):
            return now
        return last

    def require_access(self, account: Account, action: str, now: datetime) -> None:
        """Raise UndefinedActionError or MembershipRequiredError unless the user has access."""
        tier = self.membership.tier_in_force(account, self.time_for(account, now))
        if action not in self.tariff.prices and action not in self.membership.requirements:
            raise UndefinedActionError(action)
        self.find_price(account, action, tier)

    def quote(
        self, account: Account, action: str, variables: Variables | None, now: datetime
    ) -> Quote:
        """Return what the action would cost the user now.

        Raises the errors of a charge, except InsufficientCreditsError.
        """
        tier = self.membership.tier_in_force(account, self.time_for(account, now))
        cost = self.price(account, action, tier, variables).cost
        return Quote(action, tier, cost, account.available, not account.lacks(cost))

    def find_price(self, account: Account, action: str, tier: str | None) -> Price | None:
        """Return the action's price for the user, or None if the action has no prices.

        Raises MembershipRequiredError if the user has no access to the action.
        """
        self.membership.check_requirement(account, action, tier)
        prices = self.tariff.prices.get(action)
        if prices is None:
            return None
        price = find_price(prices, tier)
        if price is None:
            listed = {name: price for name, price in prices.items() if name != DEFAULT_TIER}
            raise MembershipRequiredError(account.user_id, self.membership.lowest(listed), tier)
        return price

    def price(
        self,
        account: Account,
        action: str,
        tier: str | None,
        variables: Variables | None,
    ) -> Priced:
        """Return the action's cost.

        Raises UndefinedActionError, MembershipRequiredError, and the errors of ``Tariff.evaluate``.
        """
        if action not in self.tariff.prices:
            raise UndefinedActionError(action)
        price = self.find_price(account, action, tier)
        assert price is not None  # noqa: S101 - checked above: the action has prices
        return self.tariff.evaluate(action, price, variables)


def refuse_past(
    expires_at: datetime | None, now: datetime, field: str = "membership_expires_at"
) -> None:
    """Raise InvalidRequestError for the argument ``field`` if the moment has passed."""
    if is_past(expires_at, now):
        raise InvalidRequestError(field, "is in the past")

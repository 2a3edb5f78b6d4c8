"""Upgrades, downgrades and renewals: the tier, its end and the balance. No database."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from credit_mongo import KEEP, CreditConfig
from credit_mongo.core.decision import Request
from credit_mongo.core.values import (
    LARGEST_BALANCE,
    Keep,
)
from tests.unit.decisions.accounts import (
    A_MOMENT,
    FUTURE,
    NOW,
    PAST,
    account,
    create,
    downgrade,
    grant,
    posted,
    refund,
    renew,
    upgrade,
)


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        (None, KEEP, None),
        (FUTURE, KEEP, FUTURE),
        (NOW + A_MOMENT, KEEP, NOW + A_MOMENT),
        (NOW, KEEP, None),
        (PAST, KEEP, None),
        (FUTURE, None, None),
        (PAST, None, None),
        (None, FUTURE, FUTURE),
        (FUTURE, NOW + A_MOMENT, NOW + A_MOMENT),
        (PAST, FUTURE, FUTURE),
    ],
)
def test_an_upgrade_keeps_a_future_expiry_and_clears_a_past_one(
    before: datetime | None, asked: datetime | Keep | None, after: datetime | None
) -> None:
    """KEEP keeps what lies ahead and clears what is over; None clears; a date sets."""
    found = account(tier="basic", expires_at=before)
    posting = posted(upgrade("premium", expires_at=asked), found)
    assert posting.account.membership_expires_at == after
    assert posting.details["membershipExpiresAt"] == after


@pytest.mark.parametrize("current", [None, "free", "basic", "plus"])
def test_an_upgrade_leads_from_no_tier_and_from_any_lower_one(current: str | None) -> None:
    """Whoever stands lower can go up, those without a tier included."""
    posting = posted(upgrade("premium"), account(tier=current))
    assert posting.account.membership_tier == "premium"
    assert (posting.details["oldTier"], posting.details["newTier"]) == (current, "premium")


def test_no_tier_upgrades_to_the_lowest() -> None:
    """Level 0 is a tier, too."""
    assert posted(upgrade("free"), account()).account.membership_tier == "free"


@pytest.mark.parametrize(
    ("before", "clear", "after"),
    [(None, False, None), (FUTURE, False, FUTURE), (FUTURE, True, None), (PAST, True, None)],
)
def test_a_downgrade_keeps_the_expiry_unless_told_to_clear_it(
    before: datetime | None, clear: bool, after: datetime | None
) -> None:
    """``clear_expiration`` is what it says."""
    posting = posted(downgrade("free", clear=clear), account(tier="premium", expires_at=before))
    assert posting.account.membership_tier == "free"
    assert posting.account.membership_expires_at == after


@pytest.mark.parametrize("before", [None, PAST, NOW, FUTURE])
@pytest.mark.parametrize("after", [None, NOW + A_MOMENT, FUTURE])
def test_a_renewal_sets_the_expiry_and_keeps_the_tier(
    before: datetime | None, after: datetime | None
) -> None:
    """An expired membership comes back, and a running one is moved."""
    is_earlier = before is not None and after is not None and after < before
    request = renew(after, allow_earlier=is_earlier)
    posting = posted(request, account(tier="premium", expires_at=before))
    assert posting.account.membership_tier == "premium"
    assert posting.account.membership_expires_at == after
    assert (posting.details["oldTier"], posting.details["newTier"]) == ("premium", "premium")


@pytest.mark.parametrize("balance", [0, 1, 1999, 2000, 2001, LARGEST_BALANCE])
@pytest.mark.parametrize(
    ("request_", "tier", "cap"),
    [
        (upgrade("premium"), "free", 2000),
        (upgrade("premium"), None, 2000),
        (downgrade("free"), "premium", 100),
        (renew(), "premium", 2000),
    ],
)
def test_a_tier_change_sets_the_balance_to_the_cap(
    request_: Request[Any], tier: str | None, cap: int, balance: int
) -> None:
    """Up or down, whatever was there before; the amount is the difference."""
    posting = posted(request_, account(balance, tier=tier))
    assert posting.account.credits == cap
    assert posting.amount == cap - balance
    assert posting.balance_before == balance


def test_a_renewal_without_refill_leaves_the_balance() -> None:
    """Only the expiry changes; it is a transaction of nothing."""
    posting = posted(renew(refill=False), account(123, tier="premium"))
    assert (posting.account.credits, posting.amount, posting.account.seq) == (123, 0, 8)


def test_caps_limit_nothing_but_tier_changes() -> None:
    """Grants, refunds and opening credits go beyond the cap of the tier."""
    assert posted(grant(1), account(100, tier="free")).account.credits == 101
    assert posted(refund(1), account(100, tier="free")).account.credits == 101
    assert posted(create(101, tier="free"), None).account.credits == 101


def test_caps_are_in_smallest_units() -> None:
    """A cap is written in credits, and rounded as prices are."""
    policy = CreditConfig(
        costs={},
        membership={"tiers": {"pro": 0}, "credits_caps": {"pro": 12.345}},
        decimal_places=2,
    ).policy
    assert posted(upgrade("pro"), account(), policy=policy).account.credits == 1235

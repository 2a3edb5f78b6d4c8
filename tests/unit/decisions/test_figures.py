"""Lots, debts and holds: eight stories whose every figure is fixed.

B is the base, L a lot with its end and priority, H a hold. Time is in seconds.
"""

from __future__ import annotations

from typing import Any

import pytest

from credit_mongo import CreditConfig, MembershipConfig
from credit_mongo.core.extras import Lot
from credit_mongo.core.policy import Policy
from credit_mongo.errors import InsufficientCreditsError, RefundExceedsChargeError
from tests.unit.decisions.story import Story, at, seconds


def lot(name: str, amount: int, end: float | None = None, priority: int = 50) -> Lot:
    """A lot that the story begins with."""
    return Lot(f"{name:>024}", amount, None if end is None else at(end), priority, name)


def test_1_lots_are_used_in_order_and_refunded_in_the_opposite_order() -> None:
    """L1 100@10, L2 50@5, L3 70@20 with priority 10, B30."""
    story = Story(30, lot("L3", 70, 20, 10), lot("L2", 50, 5), lot("L1", 100, 10))
    charge = story.charge(150, 1)
    [row] = story.rows
    assert [(leg.lot and leg.lot.source, leg.amount) for leg in row.legs or ()] == [
        ("L3", -70),
        ("L2", -50),
        ("L1", -30),
    ]
    story.refund(charge.transaction_id, 60, 2)
    assert story.lots() == {"L2": 30, "L1": 100}
    assert story.lots(6) == {"L1": 100}
    # The row of the end is written with the next operation, and dated when it was due.
    refund = story.refund(charge.transaction_id, 90, 6)
    assert story.expiries() == [(-30, 5), (-20, 6)]
    assert refund.balance_before == 130
    assert refund.expired_amount == 20
    assert (refund.balance_after, story.credits) == (200, 200)
    assert story.lots() == {"L3": 70, "L1": 100}
    with pytest.raises(RefundExceedsChargeError):
        story.refund(charge.transaction_id, 1, 7)


@pytest.mark.parametrize(
    ("overdraft", "taken", "uncollected", "balance"),
    [(0, 20, 80, 0), (80, 100, 0, -80), (50, 70, 30, -50)],
)
def test_2_a_revoked_grant_takes_what_is_left_of_it(
    overdraft: int, taken: int, uncollected: int, balance: int
) -> None:
    """Grant 100 as a lot, 80 spent, revoke it."""
    story = Story(0, overdraft=overdraft)
    grant = story.grant(100, 1, end=99)
    story.charge(80, 2)
    revoked = story.revoke(grant.transaction_id, 3)
    assert (revoked.amount, revoked.uncollected) == (taken, uncollected)
    assert story.credits == revoked.balance_after == balance


def test_3_a_debt_goes_as_far_as_the_overdraft_and_is_repaid_first() -> None:
    """B30, overdraft 50."""
    story = Story(30, overdraft=50)
    story.charge(70, 1)
    assert (story.credits, story.available) == (-40, 10)
    with pytest.raises(InsufficientCreditsError) as error:
        story.charge(11, 2)
    assert error.value.available == 10
    story.charge(10, 3)
    assert story.credits == -50
    story.grant(100, 4, end=99, source="L")
    assert (story.base, story.lots()) == (0, {"L": 50})


def test_4_what_is_held_is_not_spent_and_the_rest_is_free_after_a_capture() -> None:
    """B100, H60."""
    story = Story(100)
    hold = story.hold(60, 1)
    assert (story.credits, story.available) == (100, 40)
    with pytest.raises(InsufficientCreditsError):
        story.charge(41, 2)
    capture = story.capture(hold.hold_id, 45, 3)
    assert (capture.cost, capture.captured, capture.uncollected) == (45, 45, 0)
    assert (story.credits, story.available) == (55, 55)


def test_5_an_overrun_takes_nothing_that_others_hold() -> None:
    """B100, H60, H25; capture 90 of the first."""
    story = Story(100)
    first, second = story.hold(60, 1), story.hold(25, 2)
    capture = story.capture(first.hold_id, 90, 3)
    assert (capture.cost, capture.uncollected) == (75, 15)
    assert (story.credits, story.available) == (25, 0)
    assert story.capture(second.hold_id, 25, 4).cost == 25


def test_6_a_hold_that_nobody_settles_is_charged_what_was_reported() -> None:
    """B100, H80 with ttl 60, used 35 reported, the process dies."""
    story = Story(100)
    hold = story.hold(80, 0, ttl=60)
    story.extend(hold.hold_id, 0, used=35)
    capture = story.capture(hold.hold_id, 50, 61)
    [timeout, late] = story.rows
    assert (timeout.operation, timeout.amount) == ("capture", -35)
    assert seconds(timeout.account.updated_at) == 60
    assert timeout.account.credits == 65
    assert (capture.late, capture.cost, capture.captured) == (True, 15, 50)
    assert (late.amount, story.credits) == (-15, 50)


def test_7_pinned_credits_outlive_their_lot_until_the_hold_is_settled() -> None:
    """L100@10, B20; H90 at 1."""
    story = Story(20, lot("L", 100, 10))
    hold = story.hold(90, 1)
    assert (story.lots(12), story.lots(9)) == ({"L": 90}, {"L": 100})
    story.overdraft(0, 12)
    assert story.expiries() == [(-10, 10)]
    assert (story.credits, story.available) == (110, 20)
    capture = story.capture(hold.hold_id, 60, 12)
    told = (capture.balance_before, capture.cost, capture.expired_amount, capture.balance_after)
    assert told == (110, 60, 30, 20)
    assert story.expiries() == [(-10, 10), (-30, 12)]
    assert (story.credits, story.lots()) == (20, {})


TIERS = {"free": 0, "pro": 1}


@pytest.mark.parametrize(
    ("policy", "base", "balance"),
    [
        ("cap", 40, 2200),
        ("raise", 40, 2200),
        ("raise", 3000, 3200),
        ("add", 40, 2240),
        ("keep", 40, 240),
        ("cap", 3000, 2200),
    ],
)
def test_8_a_change_of_tier_sets_the_base_and_keeps_what_was_bought(
    policy: str, base: int, balance: int
) -> None:
    """B40, L200, and a cap of 2000."""
    story = Story(base, lot("L", 200), policy=_tiers(policy, 2000), tier="free")
    change = story.upgrade("pro", 1)
    assert change.new_credits == story.credits == balance
    assert story.lots() == {"L": 200}


@pytest.mark.parametrize(
    ("policy", "cap", "balance"), [("cap", 1500, 1200), ("raise", 1500, 1200), ("cap", 100, -200)]
)
def test_8_a_change_of_tier_nets_a_debt(policy: str, cap: int, balance: int) -> None:
    """From -300."""
    story = Story(-300, overdraft=300, policy=_tiers(policy, cap), tier="free")
    story.upgrade("pro", 1)
    assert story.credits == balance


def test_8_a_change_of_tier_takes_nothing_that_is_held() -> None:
    """B100 of which 30 are held, cap 10."""
    story = Story(100, policy=_tiers("cap", 10), tier="free")
    hold = story.hold(30, 1)
    story.upgrade("pro", 2)
    assert (story.credits, story.available) == (30, 0)
    assert story.capture(hold.hold_id, 30, 3).cost == 30


def _tiers(on_change: Any, cap: int) -> Policy:
    membership = MembershipConfig(
        tiers=TIERS, credits_caps={"free": 0, "pro": cap}, on_change=on_change
    )
    return CreditConfig(costs={"post": {"default": 10}}, membership=membership).policy

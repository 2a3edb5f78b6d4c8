"""Lots and holds at their edges: merged lots, holds that grow and shrink, the largest balance."""

from __future__ import annotations

from typing import Any

import pytest

from credit_mongo import CreditConfig, MembershipConfig
from credit_mongo.core.extras import Extras, Lot
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.values import LARGEST_BALANCE
from credit_mongo.errors import InsufficientCreditsError, InvalidRequestError
from tests.unit.decisions.accounts import new_id
from tests.unit.decisions.story import Story
from tests.unit.decisions.test_figures import lot


def test_a_hold_stays_small_however_often_it_grows() -> None:
    """One pin for a lot or the base, also after a hundred extensions."""
    story = Story(100, lot("L", 50, 99))
    hold = story.hold(1, 0)
    for amount in range(2, 101):
        story.extend(hold.hold_id, 1, amount=amount)
    [known] = (story.account.extras or Extras()).holds
    assert [pin.amount for pin in known.pins] == [50, 50]
    assert story.capture(hold.hold_id, 100, 2).cost == 100
    assert (story.lots(), story.credits) == ({}, 50)


def test_a_debt_that_a_hold_pins_still_comes_after_its_lots() -> None:
    """The credits below zero are taken last, so they keep a pin of their own."""
    story = Story(10, lot("L", 20, priority=60), overdraft=50)
    hold = story.hold(1, 0)
    for amount in (10, 30, 40):
        story.extend(hold.hold_id, 1, amount=amount)
    story.capture(hold.hold_id, 30, 2)
    assert (story.base, story.lots()) == (0, {})


def test_a_smaller_hold_gives_up_credits_of_lots_that_have_ended() -> None:
    """They end at the moment when the hold lets them go."""
    story = Story(0, lot("L", 50, 10))
    hold = story.hold(50, 1)
    story.extend(hold.hold_id, 12, amount=20)
    assert story.expiries() == [(-30, 12)]
    assert (story.lots(), story.available) == ({"L": 20}, 0)


def test_a_revoked_grant_is_found_in_the_lot_that_its_credits_went_into() -> None:
    """The lot was spent, another like it was opened, and a refund went there."""
    story = Story(0)
    grant = story.grant(100, 1, source="promo")
    charge = story.charge(100, 2)
    story.grant(40, 3, source="promo")
    story.refund(charge.transaction_id, 100, 4)
    assert story.lots() == {"promo": 140}
    revoked = story.revoke(grant.transaction_id, 5)
    assert (revoked.amount, revoked.uncollected, story.lots()) == (100, 0, {"promo": 40})


@pytest.mark.parametrize("on_change", ["cap", "add"])
def test_a_change_of_tier_beyond_the_largest_balance_is_refused(on_change: Any) -> None:
    """Nothing is written that the database can't hold."""
    membership = MembershipConfig(
        tiers={"free": 0, "pro": 1}, credits_caps={"free": 0, "pro": 10}, on_change=on_change
    )
    policy = CreditConfig(costs={"post": {"default": 10}}, membership=membership).policy
    story = Story(0, Lot("1" * 24, LARGEST_BALANCE - 9, None, 50, "a"), policy=policy, tier="free")
    with pytest.raises(InvalidRequestError, match="the balance would exceed"):
        story.upgrade("pro", 1)
    assert (story.credits, story.rows) == (LARGEST_BALANCE - 9, [])


@pytest.mark.parametrize("source", [None, "promo"])
def test_a_revocation_takes_nothing_that_is_held(source: str | None) -> None:
    """Neither in the grant's lot nor in the base."""
    story = Story(0, overdraft=5)
    grant = story.grant(100, 1, source=source)
    hold = story.hold(70, 2)
    revoked = story.revoke(grant.transaction_id, 3)
    assert (revoked.amount, revoked.uncollected) == (35, 65)
    assert story.available == 0
    assert story.capture(hold.hold_id, 70, 4).uncollected == 0
    assert story.credits == -5


def test_a_refund_that_repays_a_debt_leaves_a_plain_account() -> None:
    """An account without lots, holds and overdraft has no rare parts any more."""
    story = Story(0, overdraft=30)
    charge = story.charge(30, 1)
    story.overdraft(0, 2)
    assert (story.available, story.account.extras) == (-30, Extras())
    story.refund(charge.transaction_id, 30, 3)
    assert (story.credits, story.account.extras) == (0, None)


def test_credits_are_used_by_priority_then_by_end_then_by_age() -> None:
    """The base counts as priority 50 without an end, and comes before lots of that kind."""
    story = Story(1)
    story.grant(1, 1, source="older")
    story.grant(1, 1, source="newer")
    story.grant(1, 1, source="last", priority=60, end=5)
    story.grant(1, 1, source="later", end=90)
    story.grant(1, 1, source="sooner", end=9)
    story.grant(1, 1, source="first", priority=10)
    story.charge(7, 2)
    order = [leg.lot and leg.lot.source for leg in story.rows[-1].legs or ()]
    assert order == ["first", "sooner", "later", None, "older", "newer", "last"]


@pytest.mark.parametrize(
    ("parts", "taken", "uncollected"), [((100,), 40, 60), ((20, 80), 40, 60), ((70, 30), 40, 60)]
)
@pytest.mark.parametrize("is_posted", [True, False])
def test_a_revocation_does_not_take_again_what_has_expired(
    is_posted: bool, parts: tuple[int, ...], taken: int, uncollected: int
) -> None:
    """Of 100 granted, 40 were spent and 60 ended. Others' credits pay for no more than the 40."""
    story = Story(500)
    grant = story.grant(100, 1, end=10)
    story.charge(40, 2)
    if is_posted:
        story.overdraft(0, 11)
    results = [story.revoke(grant.transaction_id, 12, part) for part in parts]
    assert sum(result.amount for result in results) == taken
    assert sum(result.uncollected for result in results) == uncollected
    assert story.credits == 460


def test_what_costs_nothing_is_free_in_any_debt() -> None:
    """A limit below the debt stops what costs something, and nothing else."""
    policy = CreditConfig(costs={"free": {"default": 0}, "post": {"default": 1}}).policy
    story = Story(0, overdraft=50, policy=policy)
    hold = story.hold(5, 0)
    story.charge(40, 1)
    story.overdraft(10, 2)
    assert story.available == -35
    request: dict[str, Any] = {"user_id": "ann", "amount": None, "variables": None}
    free = ChargeRequest(**request, transaction_id=new_id(), action="free")
    assert story.do(free, 3).balance_after == -40
    assert story.hold(None, 3, action="free").amount == 0
    assert story.extend(hold.hold_id, 3, amount=5).amount == 5
    assert story.extend(hold.hold_id, 3, amount=4).amount == 4
    paid = ChargeRequest(**request, transaction_id=new_id(), action="post")
    with pytest.raises(InsufficientCreditsError):
        story.do(paid, 4)
    with pytest.raises(InsufficientCreditsError):
        story.extend(hold.hold_id, 4, amount=6)

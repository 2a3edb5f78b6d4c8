"""Holds, rule by rule: what they keep, what captures take, and what their ends do."""

from __future__ import annotations

from typing import Any

import pytest

from credit_mongo import CreditConfig, MembershipConfig
from credit_mongo.errors import (
    AccountLimitError,
    HoldClosedError,
    HoldExceededError,
    InsufficientCreditsError,
    InvalidRequestError,
)
from tests.unit.decisions.story import Story, at, seconds
from tests.unit.decisions.test_figures import lot

DAY = 86_400


def test_charges_pass_over_what_holds_pin_in_lots_and_in_the_base() -> None:
    """The charge takes what is free, in the order of use, and the hold still gets its own."""
    story = Story(20, lot("L", 20, 90), lot("M", 20, 95))
    hold = story.hold(25, 1)
    story.charge(30, 2)
    assert (story.lots(), story.base) == ({"L": 20, "M": 5}, 5)
    story.charge(5, 3)
    second = Story(20, lot("M", 20, 95, 60))
    held = second.hold(15, 1)
    second.charge(10, 2)
    assert (second.base, second.lots()) == (15, {"M": 15})
    assert second.capture(held.hold_id, 15, 3).cost == 15
    assert story.capture(hold.hold_id, 25, 4).cost == 25
    assert (second.base, story.credits) == (0, 0)


def test_a_hold_is_refused_what_is_not_available() -> None:
    """What other holds keep is not available; the overdraft is."""
    story = Story(10, overdraft=5)
    story.hold(10, 1)
    with pytest.raises(InsufficientCreditsError) as error:
        story.hold(6, 2)
    assert error.value.available == 5
    story.hold(5, 3)
    assert story.available == 0


def test_the_257th_hold_is_refused() -> None:
    """A user has at most 256 active holds, however small they are."""
    story = Story(1000)
    for _ in range(256):
        story.hold(1, 1)
    with pytest.raises(AccountLimitError):
        story.hold(1, 2)


def test_totals_of_captures_only_grow() -> None:
    """The same total takes nothing more, a larger one the rest, and a smaller one is refused."""
    story = Story(100)
    hold = story.hold(60, 1)
    assert story.capture(hold.hold_id, 20, 2, final=False).cost == 20
    assert story.capture(hold.hold_id, 20, 3, final=False).cost == 0
    with pytest.raises(InvalidRequestError) as error:
        story.capture(hold.hold_id, 19, 4)
    assert error.value.field == "amount"
    assert (story.credits, story.available) == (80, 40)
    assert story.capture(hold.hold_id, 50, 5).cost == 30
    assert (story.credits, story.available) == (50, 50)


def test_a_settled_hold_is_not_settled_again() -> None:
    """The same total changes nothing, another one is refused, and so is a release."""
    story = Story(100)
    hold = story.hold(60, 1)
    story.capture(hold.hold_id, 20, 2)
    assert story.capture(hold.hold_id, 20, 3).cost == 0
    for again in (30, 10):
        with pytest.raises(HoldClosedError):
            story.capture(hold.hold_id, again, 4)
    with pytest.raises(HoldClosedError) as error:
        story.release(hold.hold_id, 5)
    assert error.value.status == "captured"
    assert (story.credits, len(story.rows)) == (80, 1)


def test_a_released_hold_is_free_once_and_takes_nothing_any_more() -> None:
    """Releasing it again changes nothing, and it can be neither extended nor captured."""
    story = Story(100)
    hold = story.hold(60, 1)
    other = story.hold(10, 1)
    assert story.release(hold.hold_id, 2).status == "released"
    assert story.available == 90
    assert story.release(hold.hold_id, 3).status == "released"
    assert story.available == 90
    with pytest.raises(HoldClosedError):
        story.capture(hold.hold_id, 5, 4)
    with pytest.raises(HoldClosedError):
        story.extend(hold.hold_id, 5, ttl=60)
    assert story.holds[other.hold_id].status == "active"


@pytest.mark.parametrize(
    ("overage", "cost", "uncollected"), [("available", 50, 40), ("debt", 80, 10)]
)
def test_an_overrun_takes_what_its_overage_allows(
    overage: Any, cost: int, uncollected: int
) -> None:
    """B70, overdraft 30, of which another holds 20: a hold of 40 uses 90."""
    story = Story(70, overdraft=30)
    story.hold(20, 1)
    hold = story.hold(40, 2, overage=overage)
    capture = story.capture(hold.hold_id, 90, 3)
    assert (capture.cost, capture.uncollected) == (cost, uncollected)
    assert story.rows[-1].facts == {"uncollected": uncollected}


def test_a_rejected_overrun_leaves_the_hold_as_it_was() -> None:
    """In time, and after the hold's end."""
    story = Story(100)
    hold = story.hold(40, 1, ttl=60, overage="reject")
    with pytest.raises(HoldExceededError):
        story.capture(hold.hold_id, 41, 2)
    assert (story.available, story.holds[hold.hold_id].status) == (60, "active")
    story.extend(hold.hold_id, 3, used=10)
    with pytest.raises(HoldExceededError):
        story.capture(hold.hold_id, 41, 100)
    assert story.capture(hold.hold_id, 40, 101).cost == 30


@pytest.mark.parametrize(("on_timeout", "cost"), [("settle", 35), ("release", 0)])
def test_the_end_charges_what_was_reported_or_nothing(on_timeout: Any, cost: int) -> None:
    """The row is dated when the hold ended, whenever somebody finds it."""
    story = Story(100)
    hold = story.hold(80, 1, ttl=60, on_timeout=on_timeout)
    story.extend(hold.hold_id, 2, used=35)
    story.charge(1, 500)
    assert (story.credits, story.available) == (99 - cost, 99 - cost)
    assert story.holds[hold.hold_id].status == "expired"
    ends = [row for row in story.rows if row.operation == "capture"]
    assert [seconds(row.account.updated_at) for row in ends] == [61] * bool(cost)


def test_an_end_tells_what_it_could_not_collect() -> None:
    """More was reported than there was: the row says how much is missing."""
    story = Story(50)
    hold = story.hold(40, 1, ttl=60)
    story.extend(hold.hold_id, 2, used=90)
    story.grant(1, 500)
    end = story.rows[0]
    assert (end.amount, end.facts) == (-50, {"uncollected": 40})
    assert story.holds[hold.hold_id].uncollected == 40


def test_lots_that_end_with_a_hold_are_gone_before_its_overrun() -> None:
    """From that moment on nobody can use them."""
    story = Story(20, lot("L", 30, 61))
    hold = story.hold(10, 1, ttl=60)
    story.extend(hold.hold_id, 2, used=45)
    story.overdraft(0, 100)
    assert story.expiries() == [(-20, 61)]
    assert (story.credits, story.holds[hold.hold_id].uncollected) == (0, 15)


def test_late_captures_are_taken_for_a_day() -> None:
    """Up to its last moment, and only for what the end did not take."""
    story = Story(100)
    hold = story.hold(40, 0, ttl=60)
    story.extend(hold.hold_id, 1, used=10)
    late = story.capture(hold.hold_id, 15, 60 + DAY)
    assert (late.late, late.cost, late.captured) == (True, 5, 15)
    assert story.capture(hold.hold_id, 15, 60 + DAY).cost == 0
    with pytest.raises(InvalidRequestError) as smaller:
        story.capture(hold.hold_id, 14, 60 + DAY)
    assert str(smaller.value) == "amount: is a total, and less than the 15 captured before"
    with pytest.raises(HoldClosedError) as error:
        story.capture(hold.hold_id, 20, 60.001 + DAY)
    assert error.value.status == "expired"
    assert story.credits == 85


def test_at_its_end_a_hold_is_over() -> None:
    """One millisecond earlier a heartbeat still extends it."""
    story = Story(100)
    hold = story.hold(40, 0, ttl=60)
    story.extend(hold.hold_id, 59.999, ttl=60)
    assert story.available == 60
    with pytest.raises(HoldClosedError):
        story.extend(hold.hold_id, 119.999, ttl=60)
    assert story.available == 100


def test_heartbeats_never_move_the_end_or_the_report_back() -> None:
    """A late one changes nothing; a smaller report is refused."""
    story = Story(100)
    hold = story.hold(40, 0, ttl=1000)
    assert story.extend(hold.hold_id, 1, ttl=10, used=7).expires_at == at(1000)
    with pytest.raises(InvalidRequestError) as error:
        story.extend(hold.hold_id, 2, used=6)
    assert error.value.field == "used"


def test_a_hold_grows_and_shrinks_within_what_is_there() -> None:
    """Not beyond what is available, nor below what was captured."""
    story = Story(100)
    hold = story.hold(40, 1)
    with pytest.raises(InsufficientCreditsError):
        story.extend(hold.hold_id, 2, amount=101)
    story.extend(hold.hold_id, 3, amount=100)
    assert story.available == 0
    story.capture(hold.hold_id, 30, 4, final=False)
    with pytest.raises(InvalidRequestError):
        story.extend(hold.hold_id, 5, amount=29)
    story.extend(hold.hold_id, 6, amount=50)
    assert (story.credits, story.available) == (70, 50)


def test_what_a_released_hold_kept_of_an_ended_lot_is_gone() -> None:
    """At the moment of the release, as its row says."""
    story = Story(20, lot("L", 30, 10))
    hold = story.hold(30, 1)
    story.release(hold.hold_id, 50)
    assert (story.expiries(), story.credits) == ([(-30, 50)], 20)


def test_the_price_is_that_of_the_moment_of_the_hold() -> None:
    """A change of tier in between does not change it."""
    membership = MembershipConfig(tiers={"free": 0, "pro": 1}, credits_caps={"free": 0, "pro": 900})
    costs = {"tokens": {"default": "{token} / 10", "free": "{token}", "pro": "{token} / 100"}}
    story = Story(900, policy=CreditConfig(costs=costs, membership=membership).policy, tier="free")
    hold = story.hold(None, 1, action="tokens", variables={"token": 300})
    assert hold.amount == 300
    story.upgrade("pro", 2)
    assert story.capture(hold.hold_id, None, 3, variables={"token": 200}).cost == 200


def test_a_change_of_tier_and_a_revocation_leave_what_is_held() -> None:
    """The hold's capture still finds its credits."""
    story = Story()
    grant = story.grant(50, 1, end=90)
    hold = story.hold(30, 2)
    revoked = story.revoke(grant.transaction_id, 3)
    assert (revoked.amount, revoked.uncollected) == (20, 30)
    assert story.capture(hold.hold_id, 30, 4).cost == 30

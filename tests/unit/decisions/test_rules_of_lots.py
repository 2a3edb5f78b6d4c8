"""Lots and debts, rule by rule: which credits are used, what ends, and what comes back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from credit_mongo import CreditConfig, MembershipConfig
from credit_mongo.errors import (
    AccountLimitError,
    InsufficientCreditsError,
    RevokeExceedsGrantError,
)
from tests.unit.decisions.story import POLICY, Story
from tests.unit.decisions.test_figures import lot


def test_the_sooner_end_goes_first_among_equal_priorities() -> None:
    """Whichever lot is older. The base and lots without an end come after those with one."""
    story = Story(5)
    story.grant(5, 0, end=90, source="A")
    story.grant(5, 0, end=30, source="B")
    story.charge(5, 1)
    assert story.lots() == {"A": 5}
    story.charge(7, 2)
    assert (story.lots(), story.base) == ({}, 3)


def test_the_base_is_used_before_lots_of_its_priority_without_an_end_and_later_ones() -> None:
    """A lot that is kept for last stays whole while the base has credits."""
    story = Story(10, lot("S", 10), lot("T", 10, 90, 60))
    story.charge(10, 1)
    assert (story.base, story.lots()) == (0, {"S": 10, "T": 10})
    story.charge(10, 2)
    assert story.lots() == {"T": 10}


def test_lots_merge_only_if_end_priority_and_source_are_equal() -> None:
    """Each of the three keeps credits apart."""
    story = Story()
    first = story.grant(1, 1, end=50, source="a")
    assert story.grant(1, 2, end=50, source="a").lot_id == first.lot_id
    for number, facts in enumerate(
        (
            {"end": 60, "source": "a"},
            {"end": 50, "source": "b"},
            {"end": 50, "source": "a", "priority": 9},
        )
    ):
        assert story.grant(1, 3 + number, **facts).lot_id != first.lot_id  # type: ignore[arg-type]
    extras = story.account.extras
    assert extras is not None
    assert sorted(lot.amount for lot in extras.lots) == [1, 1, 1, 2]


def test_the_65th_lot_is_refused() -> None:
    """Sixty-four lots fit, and a grant into one of them still does."""
    story = Story()
    for number in range(64):
        story.grant(1, 1, end=100 + number)
    story.grant(1, 2, end=100)
    with pytest.raises(AccountLimitError):
        story.grant(1, 3, end=99)
    assert story.credits == 65


def test_refunds_of_one_charge_continue_where_the_last_one_ended() -> None:
    """The second refund passes over what the first has given back."""
    story = Story(10, lot("L", 10, 90))
    charge = story.charge(20, 1)
    story.refund(charge.transaction_id, 10, 2)
    assert (story.base, story.lots()) == (10, {})
    story.refund(charge.transaction_id, 4, 3)
    assert (story.base, story.lots()) == (10, {"L": 4})


def test_what_a_refund_gives_to_an_ended_lot_is_gone_at_once() -> None:
    """Unless the configuration lets it live for a while: then it ends after that."""
    for grace, expected in ((0, (0, 10)), (50, (10, 0))):
        config = CreditConfig(costs={"post": {"default": 10}}, lots={"refund_grace_seconds": grace})
        story = Story(0, lot("L", 10, 90), policy=config.policy)
        charge = story.charge(10, 1)
        refund = story.refund(charge.transaction_id, 10, 100)
        assert (story.credits, refund.expired_amount) == expected
        assert (refund.balance_after, story.available) == (expected[0], expected[0])
        assert story.lots(140) == {}


def test_a_revocation_takes_the_grant_s_lot_then_the_base_and_no_other_lot() -> None:
    """Other lots stay, whatever is missing."""
    story = Story(6, lot("O", 50, 20))
    grant = story.grant(10, 1, end=99, source="L")
    revoked = story.revoke(grant.transaction_id, 2, 9)
    assert (revoked.amount, story.base, story.lots()) == (9, 6, {"O": 50, "L": 1})
    story.charge(51, 3)
    assert story.lots() == {}
    revoked = story.revoke(grant.transaction_id, 4)
    assert (revoked.amount, revoked.uncollected, story.base) == (1, 0, 5)


def test_what_a_revocation_could_not_take_counts_as_revoked_and_stands_in_its_row() -> None:
    """So nobody revokes it again later."""
    story = Story()
    grant = story.grant(10, 1, end=99)
    story.charge(8, 2)
    assert story.revoke(grant.transaction_id, 3, 7).uncollected == 5
    assert story.rows[-1].facts == {"uncollected": 5}
    story.grant(100, 4)
    with pytest.raises(RevokeExceedsGrantError) as error:
        story.revoke(grant.transaction_id, 5, 4)
    assert error.value.revocable == 3


def test_a_revocation_goes_no_deeper_than_the_overdraft() -> None:
    """What lies beyond stays uncollected."""
    story = Story(0, overdraft=5)
    grant = story.grant(10, 1)
    story.charge(10, 2)
    revoked = story.revoke(grant.transaction_id, 3)
    assert (revoked.amount, revoked.uncollected, story.credits) == (5, 5, -5)


def test_a_lower_limit_refuses_charges_until_the_debt_is_repaid() -> None:
    """The debt itself stays as it is."""
    story = Story(0, overdraft=50)
    story.charge(40, 1)
    story.overdraft(10, 2)
    assert (story.credits, story.available) == (-40, -30)
    with pytest.raises(InsufficientCreditsError):
        story.charge(1, 3)
    story.grant(31, 4)
    story.charge(1, 5)
    assert story.credits == -10


@pytest.mark.parametrize(
    ("on_change", "from_50", "from_a_debt"),
    [("cap", 20, -10), ("raise", 50, -10), ("add", 70, -10), ("keep", 50, -30)],
)
def test_each_policy_of_a_tier_change(on_change: Any, from_50: int, from_a_debt: int) -> None:
    """A cap of 20 on a balance of 50, and on a debt of 30: no policy forgives it."""
    membership = MembershipConfig(
        tiers={"free": 0, "pro": 1}, credits_caps={"free": 0, "pro": 20}, on_change=on_change
    )
    policy = CreditConfig(costs={"post": {"default": 10}}, membership=membership).policy
    story = Story(50, policy=policy, tier="free")
    assert story.upgrade("pro", 1).new_credits == from_50
    story = Story(0, overdraft=30, policy=policy, tier="free")
    story.charge(30, 1)
    assert story.upgrade("pro", 2).new_credits == from_a_debt
    assert story.policy.hold_late == POLICY.hold_late == timedelta(days=1)

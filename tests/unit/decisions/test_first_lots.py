"""Users with many lots: which decisions can do with the lots that are used first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from credit_mongo.core.batch import LATER, DecidedBatch, decide_batch
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Request
from credit_mongo.core.extras import ActiveHold, Lot, LotsUnreadError, Pin
from credit_mongo.core.values import Account
from credit_mongo.errors import InsufficientCreditsError
from tests.unit.decisions.accounts import account, charge, grant, refund
from tests.unit.decisions.story import POLICY, Story, at, in_part

LOTS = 20
READ = 8


def ann(*, base: int = 5, last_end: float = 1000.0) -> Account:
    """Ann has 10 units in each of 20 lots. They are used in the order of their numbers."""
    lots = [Lot(f"{n:024}", 10, at(1000), n, None) for n in range(LOTS - 1)]
    return Story(base, *lots, Lot("9" * 24, 10, at(last_end), LOTS, None)).account


def decided(account_: Account, *requests: Request[Any]) -> DecidedBatch:
    """What is decided at second 100 for Ann, of whom 8 lots were read, and for user-1."""
    loaded = Story().loaded()
    others = account()
    accounts = {"ann": in_part(account_, READ), others.user_id: others}
    return decide_batch(POLICY, replace(loaded, accounts=accounts), requests, at(100))


def of_ann(amount: int) -> Request[Any]:
    return charge(amount=amount, user_id="ann")


@pytest.mark.parametrize("amount", [1, 10, 75, 79])
def test_a_charge_that_the_first_lots_pay_needs_no_others(amount: int) -> None:
    """The balance, what is available and the legs are those of the whole account."""
    batch = decided(ann(), of_ann(amount))
    assert not batch.unread
    [posting] = batch.postings
    story = Story()
    story.account = ann()
    story.charge(amount, 100)
    assert posting.legs == story.rows[0].legs
    after = posting.account
    assert (after.credits, after.available) == (story.credits, story.available)


def test_a_charge_of_more_than_the_first_lots_needs_them_all() -> None:
    """So does one that would leave none of them, for whoever comes next."""
    for amount in (80, 81, 205):
        batch = decided(ann(), of_ann(amount))
        assert (batch.unread, batch.outcomes) == ({"ann"}, [LATER])


def test_a_charge_that_nobody_can_pay_is_refused_at_once() -> None:
    """What is available is known without the lots."""
    batch = decided(ann(), of_ann(206))
    assert not batch.unread
    [refusal] = batch.refusals
    assert isinstance(refusal.error, InsufficientCreditsError)
    assert refusal.error.available == 205


def test_charges_of_one_batch_can_use_up_the_first_lots_together() -> None:
    """The one that needs more says so. What the others of the batch get is decided already."""
    batch = decided(ann(), of_ann(60), of_ann(30), charge(amount=1))
    assert batch.unread == {"ann"}
    assert [outcome is LATER for outcome in batch.outcomes] == [False, True, False]


def test_an_end_that_has_come_is_not_passed_over() -> None:
    """Though the lot that ended is not among the first."""
    assert not decided(ann(last_end=100.001), of_ann(1)).unread
    assert decided(ann(last_end=100), of_ann(1)).unread == {"ann"}


def test_other_operations_need_all_lots() -> None:
    """A lot like the new one may be among the others, and so may one to give back to."""
    for request in (
        grant(1, user_id="ann"),
        refund(1, user_id="ann"),
    ):
        assert decided(ann(), request).unread == {"ann"}


def test_a_charge_beside_holds_needs_all_lots() -> None:
    """What holds keep in the lots decides where the charge takes its credits."""
    found = ann()
    assert found.extras is not None
    pins = (Pin(found.extras.lots[1].lot_id, 4),)
    hold = ActiveHold("8" * 24, "post", pins, 0, 0, 0, at(1000), False, "available")
    held = found._replace(extras=found.extras._replace(holds=(hold,)))
    assert decided(held, of_ann(15)).unread == {"ann"}


def test_a_breakdown_of_a_part_is_refused() -> None:
    """So that no operation takes the first lots for all, whichever it is."""
    with pytest.raises(LotsUnreadError):
        Breakdown(in_part(ann(), READ))

"""Balance, seq and time move together. No database."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from credit_mongo.core.decision import Request
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    LARGEST_BALANCE,
    Account,
)
from credit_mongo.errors import (
    InvalidRequestError,
)
from tests.unit.decisions.accounts import (
    A_MOMENT,
    FUTURE,
    NOW,
    PAST,
    USER,
    account,
    charge,
    create,
    decide,
    downgrade,
    grant,
    posted,
    refund,
    refused,
    renew,
    upgrade,
)

POSTINGS: list[tuple[Request[Any], int]] = [
    (charge(), -10),
    (charge("free"), 0),
    (charge("dance", amount=7), -7),
    (grant(5), 5),
    (refund(5), 5),
    (upgrade("premium"), 1900),
    (downgrade("free"), 0),
    (renew(refill=False), 0),
]


@pytest.mark.parametrize(
    ("request_", "amount"), POSTINGS, ids=[request.operation for request, _ in POSTINGS]
)
def test_balance_seq_and_time_move_together(request_: Request[Any], amount: int) -> None:
    """Every posting counts up by one, is dated now, and explains the whole new balance."""
    found = account(100, tier="basic", expires_at=FUTURE, seq=41)
    posting = posted(request_, found)
    after = posting.account
    assert posting.transaction_id == request_.transaction_id
    assert (posting.operation, posting.action) == (request_.operation, request_.action)
    assert posting.amount == amount
    assert (posting.balance_before, after.credits) == (100, 100 + amount)
    assert after.seq == 42
    assert (after.created_at, after.updated_at) == (found.created_at, NOW)
    assert after.user_id == USER


def test_only_tier_changes_touch_the_membership() -> None:
    """Credits come and go without a word on the tier."""
    found = account(tier="basic", expires_at=PAST)
    for request in (charge("dance", amount=1), grant(1), refund(1)):
        after = posted(request, found).account
        assert (after.membership_tier, after.membership_expires_at) == ("basic", PAST)


@pytest.mark.parametrize("opening", [0, 1, LARGEST_AMOUNT])
def test_opening_credits_are_the_first_transaction(opening: int) -> None:
    """A new account starts at ``seq`` 1 with a transaction from nothing, also one of nothing."""
    posting = posted(create(opening, tier="premium", expires_at=FUTURE), None)
    assert (posting.balance_before, posting.amount) == (0, opening)
    assert posting.account == Account(
        user_id=USER,
        credits=opening,
        seq=1,
        membership_tier="premium",
        membership_expires_at=FUTURE,
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.mark.parametrize(
    ("updated_at", "dated"),
    [(PAST, NOW), (NOW - A_MOMENT, NOW), (NOW, NOW), (NOW + A_MOMENT, NOW + A_MOMENT)],
)
@pytest.mark.parametrize(
    "request_", [charge(), grant(1), refund(1), upgrade("enterprise"), downgrade("free"), renew()]
)
def test_time_never_goes_back_for_a_user(
    request_: Request[Any], updated_at: datetime, dated: datetime
) -> None:
    """With a clock that went back, a posting is dated as the one before it."""
    posting = posted(request_, account(tier="premium", updated_at=updated_at))
    assert posting.account.updated_at == dated


def test_a_refusal_is_dated_no_earlier_than_what_came_before() -> None:
    """In the audit log, too, what was tried later stands later, though the clock went back."""
    [refusal] = decide(charge("dance"), account(updated_at=FUTURE)).refusals
    assert refusal.at == FUTURE


def test_a_membership_that_has_expired_stays_expired_though_the_clock_goes_back() -> None:
    """A charge that is dated after the expiry is not priced as before it."""
    found = account(tier="premium", expires_at=NOW + A_MOMENT, updated_at=FUTURE)
    posting = posted(charge("post"), found)
    assert posting.account.updated_at == FUTURE
    assert posting.amount == -10


@pytest.mark.parametrize("request_", [charge("dance", amount=100), grant(1), refund(1)])
def test_the_whole_range_of_balances_can_be_used(request_: Request[Any]) -> None:
    """A balance can be emptied to the last unit and filled to 2**63 - 1, not one more."""
    if isinstance(request_, ChargeRequest):
        assert posted(request_, account(100)).account.credits == 0
    else:
        assert posted(request_, account(LARGEST_BALANCE - 1)).account.credits == 2**63 - 1
        assert type(refused(request_, account(LARGEST_BALANCE))) is InvalidRequestError


def test_a_free_charge_of_an_empty_account_is_a_transaction() -> None:
    """What costs nothing needs no credits and is recorded nonetheless."""
    posting = posted(charge("free"), account(0, seq=3))
    assert (posting.amount, posting.account.credits, posting.account.seq) == (0, 0, 4)

"""Corrections of an account whose rows do not add up. No database."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from credit_mongo.core.decision import Request
from credit_mongo.core.operations.correction import CorrectionRequest, CorrectionResult
from credit_mongo.core.values import (
    LARGEST_BALANCE,
    Account,
)
from credit_mongo.errors import (
    InvalidRequestError,
    UserNotFoundError,
)
from credit_mongo.storage.rows import posting_rows
from tests.unit.decisions.accounts import (
    NOW,
    PAST,
    USER,
    account,
    decide,
    new_id,
    posted,
    refused,
)

SETTLED = ({"code": "transaction-lost", "seq": 3, "expected": 1, "found": 0},)


def correction(total: int, **differently: Any) -> CorrectionRequest:
    """A request to settle what was found of an account of 100 credits and ``seq`` 7."""
    facts: dict[str, Any] = {
        "credits": 100,
        "seq": 7,
        "total": total,
        "highest_seq": 7,
        "operator": "Ada",
        "reason": "a disk was lost",
        "settles": SETTLED,
        **differently,
    }
    return CorrectionRequest(user_id=USER, transaction_id=new_id(), **facts)


@pytest.mark.parametrize(
    ("total", "highest_seq"), [(100, 7), (90, 7), (130, 7), (-20, 9), (0, 7), (90, 1000)]
)
def test_a_correction_leads_from_the_sum_to_the_balance(total: int, highest_seq: int) -> None:
    """The balance stays, its number is free, and it tells who, why and what."""
    found = account(100, tier="basic", expires_at=PAST)
    request = correction(total, highest_seq=highest_seq)
    posting = posted(request, found)
    assert posting.amount == 100 - total
    assert (posting.balance_before, posting.account.credits) == (total, 100)
    assert posting.account == found._replace(seq=highest_seq + 1, updated_at=NOW)
    assert posting.details == {
        "correction": {"operator": "Ada", "reason": "a disk was lost", "settles": list(SETTLED)}
    }
    [outcome] = decide(request, found).outcomes
    assert isinstance(outcome, CorrectionResult)
    assert (outcome.amount, outcome.balance_before, outcome.balance_after) == (
        100 - total,
        total,
        100,
    )
    transaction, audit = posting_rows(posting, timedelta(days=1))
    assert transaction["correction"] == audit["details"]["correction"]


@pytest.mark.parametrize("found", [account(99), account(101), account(100, seq=8)])
def test_a_correction_of_an_account_that_has_moved_is_refused(found: Account) -> None:
    """What was verified is no longer so."""
    error = refused(correction(90), found)
    assert isinstance(error, InvalidRequestError)
    assert "verify it again" in error.reason


@pytest.mark.parametrize(
    "request_",
    [
        correction(LARGEST_BALANCE + 1),
        correction(-LARGEST_BALANCE),
        correction(90, highest_seq=LARGEST_BALANCE),
    ],
)
def test_a_correction_that_cannot_be_stored_is_refused(request_: Request[Any]) -> None:
    """Beyond BSON's int64."""
    assert isinstance(refused(request_, account(100)), InvalidRequestError)


def test_a_correction_needs_an_account() -> None:
    """It opens none."""
    assert isinstance(refused(correction(0), None), UserNotFoundError)

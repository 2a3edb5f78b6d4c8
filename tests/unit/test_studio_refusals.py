"""Studio writes refusals with amounts in credits, whatever ids stand beside them."""

from __future__ import annotations

from typing import Final

import pytest

from credit_mongo import errors
from credit_mongo.errors import (
    CreditError,
    HoldExceededError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    RevokeExceedsGrantError,
)
from credit_mongo.studio.refusals import in_words

REFUSED: Final[dict[CreditError, str]] = {
    InsufficientCreditsError("ann", 187, -5): "user 'ann' has -0.05 of the 1.87 credits required",
    RefundExceedsChargeError(
        "c1", 123_456, 200_000
    ): "of charge 'c1' 1,234.56 credits are refundable, not 2,000.00",
    RevokeExceedsGrantError("g1", 50, 75): "of grant 'g1' 0.50 credits are revocable, not 0.75",
    RevokeExceedsGrantError(
        "g1", 0, 75
    ): "grant 'g1' is revoked already, and nothing is left of it",
    HoldExceededError("h1", 100, 250): "the hold 'h1' is for 1.00 credits, not 2.50",
}


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_amounts_are_in_credits(error: CreditError) -> None:
    """With the ledger's decimal places."""
    assert in_words(error.code, str(error), 2) == REFUSED[error]


def test_no_error_with_amounts_is_forgotten() -> None:
    """Each error that speaks of units is above."""
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CreditError) and "units" in (_source(kind))
    }
    assert kinds == {type(error) for error in REFUSED}


def _source(kind: type[CreditError]) -> str:
    constants = getattr(vars(kind).get("__init__"), "__code__", None)
    return " ".join(each for each in getattr(constants, "co_consts", ()) if isinstance(each, str))


def test_an_id_that_looks_like_a_refusal_stays_as_it_is() -> None:
    """Only the amounts of the error itself are rewritten."""
    user_id = "x has 5 of the 10 units required"
    error = InsufficientCreditsError(user_id, 200, 100)
    expected = f"user {user_id!r} has 1.00 of the 2.00 credits required"
    assert in_words(error.code, str(error), 2) == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("INSUFFICIENT_CREDITS", "somebody's own text"),
        ("INSUFFICIENT_CREDITS", f"user has {'9' * 5000} of the {'9' * 5000} units required"),
        ("INSUFFICIENT_CREDITS", None),
        (None, "user 'ann' has 5 of the 10 units required"),
        ({"a": 1}, "user 'ann' has 5 of the 10 units required"),
    ],
)
def test_a_text_of_another_kind_is_shown_as_it_is(code: object, text: str | None) -> None:
    """Imported rows have texts of their own."""
    assert in_words(code, text, 2) == (text or "")

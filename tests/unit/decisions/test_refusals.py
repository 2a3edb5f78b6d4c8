"""What is refused, with which facts. No database."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from credit_mongo.core.decision import Request
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    LARGEST_BALANCE,
    Account,
    RefundableCharge,
)
from credit_mongo.errors import (
    CreditError,
    FormulaEvaluationError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidTierChangeError,
    MembershipRequiredError,
    MissingVariableError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    UserExistsError,
    UserNotFoundError,
)
from tests.unit.decisions.accounts import (
    A_MOMENT,
    FUTURE,
    NOW,
    PAST,
    POLICY_WITHOUT_TIERS,
    USER,
    account,
    charge,
    create,
    decide,
    downgrade,
    facts,
    grant,
    posted,
    refund,
    refused,
    renew,
    upgrade,
)

CHARGE_ID = "c" * 24
PAST_EXPIRY = InvalidRequestError("membership_expires_at", "is in the past")
TOO_MUCH = InvalidRequestError("amount", f"the balance would exceed {LARGEST_BALANCE}")
NOT_HIGHER, NOT_LOWER, THE_SAME = "it is not higher", "it is not lower", "it is the current tier"


def needs(required: str, current: str | None) -> CreditError:
    """What a user hears whose tier is too low."""
    return MembershipRequiredError(USER, required, current)


def no_change(current: str | None, target: str | None, reason: str) -> CreditError:
    """What a user hears whose tier cannot change so."""
    return InvalidTierChangeError(USER, current, target, reason)


REFUSALS: dict[str, tuple[Request[Any], Account | None, CreditError]] = {
    # Nobody to do it to
    "charge of nobody": (charge(), None, UserNotFoundError(USER)),
    "refund to nobody": (refund(1), None, UserNotFoundError(USER)),
    "linked refund to nobody": (refund(1, of=CHARGE_ID), None, UserNotFoundError(USER)),
    "grant to nobody": (grant(1), None, UserNotFoundError(USER)),
    "upgrade of nobody": (upgrade("premium"), None, UserNotFoundError(USER)),
    "downgrade of nobody": (downgrade("free"), None, UserNotFoundError(USER)),
    "renewal of nobody": (renew(), None, UserNotFoundError(USER)),
    # Creations
    "creation of a user who exists": (create(), account(), UserExistsError(USER)),
    "creation in an unknown tier": (create(tier="gold"), None, UndefinedTierError("gold")),
    "creation, expired": (create(tier="free", expires_at=PAST), None, PAST_EXPIRY),
    "creation, expiring now": (create(tier="free", expires_at=NOW), None, PAST_EXPIRY),
    # Charges
    "action without costs": (charge("dance"), account(), UndefinedActionError("dance")),
    "action with a requirement and no costs": (
        charge("dashboard"),
        account(tier="enterprise"),
        UndefinedActionError("dashboard"),
    ),
    "tier that the configuration lost": (
        charge(),
        account(tier="gold"),
        UndefinedTierError("gold"),
    ),
    "charge above the balance": (charge(), account(9), InsufficientCreditsError(USER, 10, 9)),
    "amount above the balance": (
        charge("dance", amount=101),
        account(100),
        InsufficientCreditsError(USER, 101, 100),
    ),
    "amount below the required tier": (
        charge("report", amount=1),
        account(tier="basic"),
        needs("premium", "basic"),
    ),
    "amount in a tier that is not listed": (
        charge("image", amount=1),
        account(tier="basic"),
        needs("premium", "basic"),
    ),
    "required tier, and none": (charge("report"), account(), needs("premium", None)),
    "required tier, and a lower one": (
        charge("report"),
        account(tier="plus"),
        needs("premium", "plus"),
    ),
    "required tier, expired": (
        charge("report"),
        account(tier="premium", expires_at=PAST),
        needs("premium", None),
    ),
    "no default, and not listed": (charge("image"), account(tier="free"), needs("premium", "free")),
    "no default, and no tier": (charge("image"), account(), needs("premium", None)),
    "no variables, and no fixed default": (
        charge("completion"),
        account(),
        MissingVariableError("{token} * 0.001 + 10", "token", ()),
    ),
    "empty variables": (
        charge("translate", variables={}),
        account(tier="premium"),
        MissingVariableError("{words} / 100", "words", ()),
    ),
    "other variables": (
        charge("translate", variables={"letters": 3, "lines": 1}),
        account(tier="premium"),
        MissingVariableError("{words} / 100", "words", ("letters", "lines")),
    ),
    "formula that divides by zero": (
        charge("share", variables={"total": 3, "parts": 0}),
        account(),
        FormulaEvaluationError("{total} / {parts}", {"total": 3, "parts": 0}, "division by zero"),
    ),
    "formula that costs too much": (
        charge("share", variables={"total": 2**53, "parts": 1}),
        account(),
        FormulaEvaluationError(
            "{total} / {parts}",
            {"total": 2**53, "parts": 1},
            f"the cost is more than {LARGEST_AMOUNT} units",
        ),
    ),
    # Additions
    "grant above the largest balance": (grant(1), account(LARGEST_BALANCE), TOO_MUCH),
    "refund above the largest balance": (refund(2), account(LARGEST_BALANCE - 1), TOO_MUCH),
    "refund of no charge": (
        refund(1, of=CHARGE_ID),
        account(),
        TransactionNotFoundError(CHARGE_ID),
    ),
    # Upgrades
    "upgrade to an unknown tier": (upgrade("gold"), account(), UndefinedTierError("gold")),
    "upgrade from an unknown tier": (
        upgrade("premium"),
        account(tier="gold"),
        UndefinedTierError("gold"),
    ),
    "upgrade to the same tier": (
        upgrade("premium"),
        account(tier="premium"),
        no_change("premium", "premium", THE_SAME),
    ),
    "upgrade to the same tier, expired": (
        upgrade("premium", expires_at=FUTURE),
        account(tier="premium", expires_at=PAST),
        no_change("premium", "premium", THE_SAME),
    ),
    "upgrade to a lower tier": (
        upgrade("basic"),
        account(tier="premium"),
        no_change("premium", "basic", NOT_HIGHER),
    ),
    "upgrade to the same level": (
        upgrade("plus"),
        account(tier="basic"),
        no_change("basic", "plus", NOT_HIGHER),
    ),
    "upgrade, expired": (upgrade("premium", expires_at=PAST), account(), PAST_EXPIRY),
    "upgrade, expiring now": (upgrade("premium", expires_at=NOW), account(), PAST_EXPIRY),
    # Downgrades
    "downgrade to an unknown tier": (
        downgrade("gold"),
        account(tier="premium"),
        UndefinedTierError("gold"),
    ),
    "downgrade from an unknown tier": (
        downgrade("free"),
        account(tier="gold"),
        UndefinedTierError("gold"),
    ),
    "downgrade from no tier": (
        downgrade("free"),
        account(),
        no_change(None, "free", "there is no tier yet"),
    ),
    "downgrade to the same tier": (
        downgrade("premium"),
        account(tier="premium"),
        no_change("premium", "premium", THE_SAME),
    ),
    "downgrade to a higher tier": (
        downgrade("enterprise"),
        account(tier="premium"),
        no_change("premium", "enterprise", NOT_LOWER),
    ),
    "downgrade to the same level": (
        downgrade("basic"),
        account(tier="plus"),
        no_change("plus", "basic", NOT_LOWER),
    ),
    # Renewals
    "renewal of no tier": (renew(), account(), no_change(None, None, "there is no tier to renew")),
    "renewal of an unknown tier": (
        renew(refill=False),
        account(tier="gold"),
        UndefinedTierError("gold"),
    ),
    "renewal, expired": (renew(PAST), account(tier="premium"), PAST_EXPIRY),
    "renewal, expiring now": (renew(NOW), account(tier="premium"), PAST_EXPIRY),
    "renewal to an earlier end": (
        renew(NOW + A_MOMENT),
        account(tier="premium", expires_at=FUTURE),
        no_change(
            "premium",
            "premium",
            f"the new expiry {NOW + A_MOMENT} is before the current one {FUTURE}; "
            "allow_earlier=True shortens the membership",
        ),
    ),
}


@pytest.mark.parametrize(("request_", "found", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_a_value_with_the_right_error_and_its_facts(
    request_: Request[Any], found: Account | None, expected: CreditError
) -> None:
    """Every operation's every refusal comes back as a value, of its kind and with its facts."""
    error = refused(request_, found)
    assert type(error) is type(expected)
    assert facts(error) == facts(expected)
    assert str(error) == str(expected)


def test_an_error_of_a_formula_gives_its_variables_as_numbers_that_print() -> None:
    """However a formula fails, its error's ``variables`` are ints and Decimals, never fractions."""
    for variables in ({"total": 0.5, "parts": 0}, {"total": 10**17, "parts": 0.5}):
        error = refused(charge("share", variables=variables), account())
        assert isinstance(error, FormulaEvaluationError)
        assert all(isinstance(value, int | Decimal) for value in error.variables.values())
        assert error.variables == {name: Decimal(str(value)) for name, value in variables.items()}


@pytest.mark.parametrize(
    ("charged", "refunded", "asked", "refundable"),
    [(10, 0, 11, 10), (10, 4, 7, 6), (10, 10, 1, 0), (0, 0, 1, 0)],
)
def test_a_charge_is_never_refunded_beyond_what_it_holds(
    charged: int, refunded: int, asked: int, refundable: int
) -> None:
    """What was refunded before counts, a free charge holds nothing, and the rest can be had."""
    of = RefundableCharge(CHARGE_ID, USER, charged, refunded)
    error = refused(refund(asked, of=CHARGE_ID), account(), of=of)
    assert type(error) is RefundExceedsChargeError
    assert facts(error) == {
        "transaction_id": CHARGE_ID,
        "refundable": refundable,
        "requested": asked,
    }
    if refundable:
        posting = posted(refund(refundable, of=CHARGE_ID), account(), of=of)
        assert (posting.amount, posting.refund_of) == (refundable, CHARGE_ID)


def test_a_charge_of_another_user_is_refunded_as_if_it_were_not_there() -> None:
    """The id of another user's charge gives the same error as an id that is none."""
    of = RefundableCharge(CHARGE_ID, "user-2", 10, 0)
    error = refused(refund(1, of=CHARGE_ID), account(), of=of)
    assert type(error) is TransactionNotFoundError
    assert facts(error) == {"transaction_id": CHARGE_ID}


@pytest.mark.parametrize("request_", [upgrade("premium"), downgrade("free"), renew()])
def test_without_configured_tiers_no_tier_changes(request_: Request[Any]) -> None:
    """A configuration without membership has no tier to go to."""
    error = refused(request_, account(tier="premium"), policy=POLICY_WITHOUT_TIERS)
    assert type(error) is UndefinedTierError


def test_deciding_changes_nothing_and_gives_the_same_again() -> None:
    """A rule is a function of its arguments alone."""
    for request in (charge(), grant(5), refund(5), upgrade("premium"), charge("dance")):
        found = account(50, tier="free")
        first, second = decide(request, found), decide(request, found)
        assert found == account(50, tier="free")
        assert first.postings == second.postings
        assert [str(error) for error in first.refusals] == [str(error) for error in second.refusals]

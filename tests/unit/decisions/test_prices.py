"""What an action costs, in which tier, and when a membership has expired. No database."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fractions import Fraction

import pytest

from credit_mongo import CreditConfig
from credit_mongo.core.formula import Formula
from credit_mongo.core.membership import Membership, is_past
from credit_mongo.core.pricing import Priced, Tariff, to_units
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    Unopened,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    CreditError,
    FormulaEvaluationError,
    MembershipRequiredError,
    MissingVariableError,
    UndefinedActionError,
    UndefinedTierError,
)
from tests.unit.decisions.accounts import (
    A_MOMENT,
    CAPS,
    FUTURE,
    NOW,
    PAST,
    POLICY,
    POLICY_WITHOUT_TIERS,
    TIERS,
    account,
    charge,
    create,
    decide,
    facts,
    posted,
    refused,
)

ROUNDING: list[tuple[float | str | Decimal, int, int]] = [
    # price in credits, decimal places, units
    (0.5, 0, 1),
    (1.5, 0, 2),
    (2.5, 0, 3),
    (1.4, 0, 1),
    (1.4999999999999998, 0, 1),
    (Decimal("1." + "4" * 300), 0, 1),
    ("4 / 3", 0, 1),
    ("1 - 1", 0, 0),
    ("2 / 3", 0, 1),
    ("1 / 3 * 3", 0, 1),
    ("1 / 3 * 1.5", 0, 1),
    ("0.4 + 0.4 + 0.4", 0, 1),
    (0.5, 2, 50),
    (13.5, 2, 1350),
    ("13.5", 2, 1350),
    ("1 / 3", 2, 33),
    ("2 / 3", 2, 67),
    (0.005, 2, 1),
    (0.0149, 2, 1),
    # In binary, these lie a hair below what they say.
    (1.005, 2, 101),
    (2.675, 2, 268),
    ("0.1 + 0.2", 1, 3),
    ("0.285 * 100", 1, 285),
    (Decimal("0.000000001"), 9, 1),
    ("0.0000000005", 9, 1),
]


@pytest.mark.parametrize(("price", "decimal_places", "units"), ROUNDING)
def test_prices_are_rounded_half_up_once_at_the_end(
    price: float | str | Decimal, decimal_places: int, units: int
) -> None:
    """Arithmetic is exact until the smallest unit, and a half goes up."""
    policy = CreditConfig(costs={"a": {"default": price}}, decimal_places=decimal_places).policy
    assert posted(charge("a"), account(10_000), policy=policy).amount == -units
    assert policy.quote(account(), "a", None, NOW).cost == units


@pytest.mark.parametrize(
    ("credits_due", "units_per_credit", "units"),
    [
        (Fraction(-1, 2), 1, 0),
        (Fraction(-3, 2), 1, -1),
        (Fraction(-2, 3), 1, -1),
        (Fraction(1, 2), 1, 1),
        (Fraction(10**40 + 1, 2 * 10**40), 1, 1),
        (Fraction(10**40 - 1, 2 * 10**40), 1, 0),
        (Fraction(1, 200), 100, 1),
        (Fraction(7), 1000, 7000),
    ],
)
def test_half_up_means_towards_plus_infinity(
    credits_due: Fraction, units_per_credit: int, units: int
) -> None:
    """Halves go up below zero as well, and what differs from a half by ever so little does not."""
    assert to_units(credits_due, units_per_credit) == units


@pytest.mark.parametrize("formula", ["{n} - 10", "-{n} / 6", "{n} * 0 - 1 / 3", "-{n} * 1e17"])
def test_a_negative_formula_costs_nothing(formula: str) -> None:
    """A formula below zero never gives credits; it is recorded as the formula that it is."""
    policy = CreditConfig(costs={"a": {"default": formula}}).policy
    posting = posted(charge("a", variables={"n": 3}), account(0), policy=policy)
    assert posting.amount == 0
    assert posting.account.credits == 0
    assert posting.details["formula"] == formula


@pytest.mark.parametrize(
    ("action", "tier", "variables", "expected"),
    [
        ("post", None, None, Priced(10, None)),
        ("post", "premium", None, Priced(8, None)),
        ("post", "enterprise", None, Priced(5, None)),
        # Not listed: the default.
        ("post", "basic", None, Priced(10, None)),
        ("completion", "premium", {"token": 1500}, Priced(9, "{token} * 0.0008 + 8")),
        ("completion", "basic", {"token": 1500}, Priced(12, "{token} * 0.001 + 10")),
        ("translate", "premium", {"words": 250}, Priced(3, "{words} / 100")),
        # Without variables, the fixed default, recorded as the fixed price that it is.
        ("translate", "premium", None, Priced(3, None)),
        # A formula that needs no variables needs no fallback either.
        ("translate", "enterprise", None, Priced(4, "2 * 2")),
        ("translate", "enterprise", {}, Priced(4, "2 * 2")),
        # A fixed price takes no notice of variables.
        ("translate", None, {"words": 250}, Priced(3, None)),
        ("image", "premium", None, Priced(20, None)),
        ("image", "enterprise", None, Priced(15, None)),
    ],
)
def test_a_price_is_that_of_the_tier_or_else_the_default(
    action: str, tier: str | None, variables: dict[str, float] | None, expected: Priced
) -> None:
    """The tier's own price goes before ``default``; a charge and a quote agree on it."""
    found = account(tier=tier)
    posting = posted(charge(action, variables=variables), found)
    assert -posting.amount == expected.cost
    assert posting.details.get("formula") == expected.formula
    assert posting.details["tier"] == tier
    exact = None if variables is None else exact_variables(variables)
    quote = POLICY.quote(found, action, exact, NOW)
    assert (quote.action, quote.tier, quote.cost) == (action, tier, expected.cost)
    assert (quote.balance, quote.affordable) == (100, True)


def test_a_fixed_price_is_recorded_without_variables() -> None:
    """A fallback is recorded as a fixed price: no formula and no variables."""
    posting = posted(charge("translate"), account(tier="premium"))
    assert posting.details == {"tier": "premium"}


def test_the_variables_of_a_formula_are_recorded() -> None:
    """The records hold what the formula used, and nothing else that the call gave."""
    given = {"total": 3, "parts": 0.5, "other": 7}
    posting = posted(charge("share", variables=given), account())
    assert posting.details["formula"] == "{total} / {parts}"
    assert posting.details["variables"] == {"total": "3", "parts": "0.5"}


def test_a_tier_above_the_listed_ones_has_no_access_without_default() -> None:
    """Without ``default``, only the tiers that are listed have access, be others higher."""
    policy = CreditConfig(
        costs={"image": {"premium": 20}},
        membership={"tiers": TIERS, "credits_caps": CAPS},
    ).policy
    error = refused(charge("image"), account(tier="enterprise"), policy=policy)
    assert isinstance(error, MembershipRequiredError)
    assert error.current == "enterprise"
    assert posted(charge("image"), account(tier="premium"), policy=policy).amount == -20


def test_the_largest_price_can_be_charged_and_one_unit_more_cannot() -> None:
    """A formula's cost has the limit of every amount."""
    tariff = Tariff({"a": {"default": Formula.parse("{n}")}}, 1)
    price = tariff.prices["a"]["default"]
    assert tariff.evaluate("a", price, {"n": Fraction(LARGEST_AMOUNT)}).cost == LARGEST_AMOUNT
    with pytest.raises(FormulaEvaluationError):
        tariff.evaluate("a", price, {"n": LARGEST_AMOUNT + Fraction(1, 2)})


def test_a_quote_tells_whether_the_balance_suffices_and_refuses_what_a_charge_would() -> None:
    """Too few credits are no error of a quote; everything else that stops a charge is."""
    assert POLICY.quote(account(10), "post", None, NOW).affordable
    assert not POLICY.quote(account(9), "post", None, NOW).affordable
    for action, kind in (
        ("dance", UndefinedActionError),
        ("image", MembershipRequiredError),
        ("report", MembershipRequiredError),
        ("completion", MissingVariableError),
    ):
        with pytest.raises(kind):
            POLICY.quote(account(), action, None, NOW)


def test_access_asks_for_no_variables_and_no_credits() -> None:
    """Access is a matter of tiers alone, and of actions that have only a requirement, too."""
    POLICY.require_access(account(0), "completion", NOW)
    POLICY.require_access(account(0, tier="enterprise"), "dashboard", NOW)
    with pytest.raises(MembershipRequiredError):
        POLICY.require_access(account(tier="premium"), "dashboard", NOW)
    with pytest.raises(MembershipRequiredError):
        POLICY.require_access(account(), "image", NOW)
    with pytest.raises(UndefinedActionError):
        POLICY.require_access(account(), "dance", NOW)


@pytest.mark.parametrize(
    ("expires_at", "in_force"),
    [
        (None, True),
        (FUTURE, True),
        (NOW + A_MOMENT, True),
        (NOW, False),
        (NOW - A_MOMENT, False),
        (PAST, False),
    ],
)
def test_an_expired_membership_prices_as_default(
    expires_at: datetime | None, in_force: bool
) -> None:
    """A membership ends at exactly the moment of its expiry: price, access and record say so."""
    found = account(tier="premium", expires_at=expires_at)
    assert is_past(expires_at, NOW) is not in_force
    posting = posted(charge("post"), found)
    assert posting.amount == (-8 if in_force else -10)
    assert posting.details["tier"] == ("premium" if in_force else None)
    if in_force:
        POLICY.require_access(found, "image", NOW)
        POLICY.require_access(found, "report", NOW)
    else:
        for action in ("image", "report"):
            with pytest.raises(MembershipRequiredError) as caught:
                POLICY.require_access(found, action, NOW)
            assert caught.value.current is None


def test_an_expired_membership_falls_back_to_the_formula_of_the_default() -> None:
    """Of an expired member not even the formula is the tier's."""
    found = account(tier="premium", expires_at=PAST)
    posting = posted(charge("completion", variables={"token": 1000}), found)
    assert posting.amount == -11
    assert posting.details["formula"] == "{token} * 0.001 + 10"


@pytest.mark.parametrize(
    ("found", "in_force"),
    [(None, None), ("premium", "premium"), ("gold", UndefinedTierError)],
)
def test_a_tier_in_force_is_one_that_the_configuration_knows(
    found: str | None, in_force: str | type[CreditError] | None
) -> None:
    """A tier that the configuration lost is an error, not the default price."""
    membership = POLICY.membership
    if isinstance(in_force, type):
        with pytest.raises(in_force):
            membership.tier_in_force(account(tier=found), NOW)
    else:
        assert membership.tier_in_force(account(tier=found), NOW) == in_force
    assert Membership({}, {}, {}).tier_in_force(account(tier=found), NOW) == found


def test_without_configured_tiers_a_tier_still_has_its_price() -> None:
    """A configuration may have prices by tier and leave the tiers to the application."""
    assert posted(charge(), account(tier="premium"), policy=POLICY_WITHOUT_TIERS).amount == -8
    assert posted(charge(), account(tier="other"), policy=POLICY_WITHOUT_TIERS).amount == -10


def test_without_configured_tiers_no_account_is_opened_in_one() -> None:
    """Its name could only be a mistake; a tier that the application's document has stays."""
    error = refused(create(tier="premium"), None, policy=POLICY_WITHOUT_TIERS)
    assert type(error) is UndefinedTierError
    assert facts(error) == {"tier": "premium"}
    unopened = Unopened("theirs", None, None)
    [posting] = decide(create(), None, policy=POLICY_WITHOUT_TIERS, unopened=unopened).postings
    assert posting.account.membership_tier == "theirs"

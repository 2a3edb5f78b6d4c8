"""What each request does to an account, alone and in a batch. No database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import count, pairwise
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_mongo import KEEP, CreditConfig
from credit_mongo.core.batch import DecidedBatch, Outcome, Refusal, decide_batch
from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.formula import Formula
from credit_mongo.core.membership import Membership, is_past
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.correction import CorrectionRequest, CorrectionResult
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.pricing import Priced, Tariff, to_units
from credit_mongo.core.results import User
from credit_mongo.core.state import Loaded, Remembered
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    LARGEST_BALANCE,
    Account,
    Keep,
    RefundableCharge,
    Unopened,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    AccountDataError,
    CreditError,
    FormulaEvaluationError,
    IdempotencyConflictError,
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
from credit_mongo.storage.rows import posting_rows

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
A_MOMENT = timedelta(milliseconds=1)
A_DAY = timedelta(days=1)
PAST, FUTURE = NOW - A_DAY, NOW + A_DAY
USER = "user-1"

COSTS: dict[str, dict[str, Any]] = {
    "post": {"default": 10, "premium": 8, "enterprise": 5},
    "completion": {"default": "{token} * 0.001 + 10", "premium": "{token} * 0.0008 + 8"},
    # The lowest tier is not the first.
    "image": {"enterprise": 15, "premium": 20},
    "report": {"default": 1},
    "translate": {"default": 3, "premium": "{words} / 100", "enterprise": "2 * 2"},
    "share": {"default": "{total} / {parts}"},
    "free": {"default": 0},
}
TIERS = {"free": 0, "basic": 1, "plus": 1, "premium": 2, "enterprise": 3}
CAPS = {"free": 100, "basic": 500, "plus": 600, "premium": 2000, "enterprise": 10_000}
REQUIREMENTS = {"report": "premium", "dashboard": "enterprise"}

POLICY = CreditConfig(
    costs=COSTS,
    membership={"tiers": TIERS, "requirements": REQUIREMENTS, "credits_caps": CAPS},
).policy
POLICY_WITHOUT_TIERS = CreditConfig(costs={"post": {"default": 10, "premium": 8}}).policy

_R = TypeVar("_R", bound=Outcome)
_T = TypeVar("_T")
_numbers = count(1)


# --- What the tests speak of ----------------------------------------------------------------------


def new_id() -> str:
    """A transaction id that no other request has."""
    return f"{next(_numbers):024x}"


def account(
    credits: int = 100,  # noqa: A002
    *,
    tier: str | None = None,
    expires_at: datetime | None = None,
    seq: int = 7,
    updated_at: datetime = PAST,
    user_id: str = USER,
) -> Account:
    """An account that was last changed yesterday."""
    return Account(
        user_id=user_id,
        credits=credits,
        seq=seq,
        membership_tier=tier,
        membership_expires_at=expires_at,
        created_at=PAST - A_DAY,
        updated_at=updated_at,
    )


def create(
    credits: int = 0,  # noqa: A002
    *,
    tier: str | None = None,
    expires_at: datetime | None = None,
    key: str | None = None,
    user_id: str = USER,
) -> CreateUserRequest:
    """A request to open an account."""
    return CreateUserRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        credits=credits,
        membership_tier=tier,
        membership_expires_at=expires_at,
    )


def charge(
    action: str = "post",
    *,
    amount: int | None = None,
    variables: Mapping[str, float | Decimal] | None = None,
    key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    user_id: str = USER,
) -> ChargeRequest:
    """A request to charge."""
    return ChargeRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        metadata=metadata,
        action=action,
        amount=amount,
        variables=None if variables is None else exact_variables(variables),
    )


def refund(
    amount: int, *, of: str | None = None, key: str | None = None, user_id: str = USER
) -> RefundRequest:
    """A request to refund, freely or of a charge."""
    return RefundRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        action="refund",
        amount=amount,
        charge_id=of,
    )


def grant(amount: int, *, key: str | None = None, user_id: str = USER) -> GrantRequest:
    """A request to grant."""
    return GrantRequest(
        user_id=user_id, transaction_id=new_id(), key=key, action="bonus", amount=amount
    )


def upgrade(
    tier: str, *, expires_at: datetime | Keep | None = KEEP, key: str | None = None
) -> UpgradeTierRequest:
    """A request to move to a higher tier."""
    return UpgradeTierRequest(
        user_id=USER,
        transaction_id=new_id(),
        key=key,
        target_tier=tier,
        membership_expires_at=expires_at,
    )


def downgrade(tier: str, *, clear: bool = False) -> DowngradeTierRequest:
    """A request to move to a lower tier."""
    return DowngradeTierRequest(
        user_id=USER, transaction_id=new_id(), target_tier=tier, clear_expiration=clear
    )


def renew(
    expires_at: datetime | None = FUTURE, *, refill: bool = True, allow_earlier: bool = False
) -> RenewTierRequest:
    """A request to stay in the tier."""
    return RenewTierRequest(
        user_id=USER,
        transaction_id=new_id(),
        membership_expires_at=expires_at,
        refill=refill,
        allow_earlier=allow_earlier,
    )


def decide(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
    unopened: Unopened | None = None,
) -> DecidedBatch:
    """The request decided alone, on the account that was found."""
    loaded = Loaded(
        {} if found is None else {found.user_id: found},
        {},
        {} if of is None else {of.transaction_id: of},
        {},
        frozenset(),
        {} if unopened is None else {request.user_id: unopened},
    )
    return decide_batch(policy, loaded, [request], now)


def posted(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
) -> Posting:
    """The posting that a request comes to."""
    decided = decide(request, found, policy=policy, now=now, of=of)
    assert not decided.refusals, decided.refusals
    [posting] = decided.postings
    return posting


def refused(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
) -> CreditError:
    """The error of a request that is refused."""
    decided = decide(request, found, policy=policy, now=now, of=of)
    assert not decided.postings
    [refusal] = decided.refusals
    assert refusal.request is request
    assert refusal.at == now
    assert decided.outcomes == [refusal.error]
    return refusal.error


def facts(error: CreditError) -> dict[str, Any]:
    """An error's public attributes."""
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


# --- Refusals -------------------------------------------------------------------------------------

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


# --- Prices ---------------------------------------------------------------------------------------

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


# --- Expiry ---------------------------------------------------------------------------------------


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


# --- Tier changes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        (None, KEEP, None),
        (FUTURE, KEEP, FUTURE),
        (NOW + A_MOMENT, KEEP, NOW + A_MOMENT),
        (NOW, KEEP, None),
        (PAST, KEEP, None),
        (FUTURE, None, None),
        (PAST, None, None),
        (None, FUTURE, FUTURE),
        (FUTURE, NOW + A_MOMENT, NOW + A_MOMENT),
        (PAST, FUTURE, FUTURE),
    ],
)
def test_an_upgrade_keeps_a_future_expiry_and_clears_a_past_one(
    before: datetime | None, asked: datetime | Keep | None, after: datetime | None
) -> None:
    """KEEP keeps what lies ahead and clears what is over; None clears; a date sets."""
    found = account(tier="basic", expires_at=before)
    posting = posted(upgrade("premium", expires_at=asked), found)
    assert posting.account.membership_expires_at == after
    assert posting.details["membershipExpiresAt"] == after


@pytest.mark.parametrize("current", [None, "free", "basic", "plus"])
def test_an_upgrade_leads_from_no_tier_and_from_any_lower_one(current: str | None) -> None:
    """Whoever stands lower can go up, those without a tier included."""
    posting = posted(upgrade("premium"), account(tier=current))
    assert posting.account.membership_tier == "premium"
    assert (posting.details["oldTier"], posting.details["newTier"]) == (current, "premium")


def test_no_tier_upgrades_to_the_lowest() -> None:
    """Level 0 is a tier, too."""
    assert posted(upgrade("free"), account()).account.membership_tier == "free"


@pytest.mark.parametrize(
    ("before", "clear", "after"),
    [(None, False, None), (FUTURE, False, FUTURE), (FUTURE, True, None), (PAST, True, None)],
)
def test_a_downgrade_keeps_the_expiry_unless_told_to_clear_it(
    before: datetime | None, clear: bool, after: datetime | None
) -> None:
    """``clear_expiration`` is what it says."""
    posting = posted(downgrade("free", clear=clear), account(tier="premium", expires_at=before))
    assert posting.account.membership_tier == "free"
    assert posting.account.membership_expires_at == after


@pytest.mark.parametrize("before", [None, PAST, NOW, FUTURE])
@pytest.mark.parametrize("after", [None, NOW + A_MOMENT, FUTURE])
def test_a_renewal_sets_the_expiry_and_keeps_the_tier(
    before: datetime | None, after: datetime | None
) -> None:
    """An expired membership comes back, and a running one is moved."""
    is_earlier = before is not None and after is not None and after < before
    request = renew(after, allow_earlier=is_earlier)
    posting = posted(request, account(tier="premium", expires_at=before))
    assert posting.account.membership_tier == "premium"
    assert posting.account.membership_expires_at == after
    assert (posting.details["oldTier"], posting.details["newTier"]) == ("premium", "premium")


@pytest.mark.parametrize("balance", [0, 1, 1999, 2000, 2001, LARGEST_BALANCE])
@pytest.mark.parametrize(
    ("request_", "tier", "cap"),
    [
        (upgrade("premium"), "free", 2000),
        (upgrade("premium"), None, 2000),
        (downgrade("free"), "premium", 100),
        (renew(), "premium", 2000),
    ],
)
def test_a_tier_change_sets_the_balance_to_the_cap(
    request_: Request[Any], tier: str | None, cap: int, balance: int
) -> None:
    """Up or down, whatever was there before; the amount is the difference."""
    posting = posted(request_, account(balance, tier=tier))
    assert posting.account.credits == cap
    assert posting.amount == cap - balance
    assert posting.balance_before == balance


def test_a_renewal_without_refill_leaves_the_balance() -> None:
    """Only the expiry changes; it is a transaction of nothing."""
    posting = posted(renew(refill=False), account(123, tier="premium"))
    assert (posting.account.credits, posting.amount, posting.account.seq) == (123, 0, 8)


def test_caps_limit_nothing_but_tier_changes() -> None:
    """Grants, refunds and opening credits go beyond the cap of the tier."""
    assert posted(grant(1), account(100, tier="free")).account.credits == 101
    assert posted(refund(1), account(100, tier="free")).account.credits == 101
    assert posted(create(101, tier="free"), None).account.credits == 101


def test_caps_are_in_smallest_units() -> None:
    """A cap is written in credits, and rounded as prices are."""
    policy = CreditConfig(
        costs={},
        membership={"tiers": {"pro": 0}, "credits_caps": {"pro": 12.345}},
        decimal_places=2,
    ).policy
    assert posted(upgrade("pro"), account(), policy=policy).account.credits == 1235


# --- Corrections ----------------------------------------------------------------------------------

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


# --- Balance, seq and time ------------------------------------------------------------------------

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


# --- Batches --------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """What a database would hold, with the loading and writing that the engine does."""

    policy: Policy = POLICY
    accounts: dict[str, Account] = field(default_factory=dict)
    unreadable: dict[str, AccountDataError] = field(default_factory=dict)
    postings: list[Posting] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    remembered: dict[str, Remembered] = field(default_factory=dict)

    def commit(self, requests: Sequence[Request[Any]], now: datetime = NOW) -> list[Outcome]:
        """Decide a batch on what is there, and keep what comes of it."""
        decided = decide_batch(self.policy, self.load(requests), requests, now)
        self.accounts.update(decided.state.accounts)
        self.postings += decided.postings
        self.refusals += decided.refusals
        self.remembered.update(decided.state.remembered)
        return decided.outcomes

    def load(self, requests: Sequence[Request[Any]]) -> Loaded:
        """Only what the requests name, as the engine does."""
        user_ids = {request.user_id for request in requests}
        keys = {request.key for request in requests if request.key is not None}
        charge_ids = {
            request.charge_id for request in requests if isinstance(request, RefundRequest)
        }
        refunded = dict.fromkeys(charge_ids, 0)
        for posting in self.postings:
            if posting.refund_of in refunded:
                refunded[posting.refund_of] += posting.amount
        charges = {
            p.transaction_id: RefundableCharge(
                p.transaction_id,
                p.account.user_id,
                -p.amount,
                refunded[p.transaction_id],
            )
            for p in self.postings
            if p.operation == ChargeRequest.operation and p.transaction_id in charge_ids
        }
        return Loaded(
            {user_id: self.accounts[user_id] for user_id in user_ids & self.accounts.keys()},
            self.unreadable,
            charges,
            {key: self.remembered[key] for key in keys & self.remembered.keys()},
            frozenset(),
        )


def shelf(*accounts: Account) -> Shelf:
    """A shelf with these accounts."""
    return Shelf(accounts={found.user_id: found for found in accounts})


def as_(kind: type[_R], outcome: Outcome) -> _R:
    """An outcome that is known to be of a kind."""
    assert type(outcome) is kind, outcome
    return outcome


def test_each_request_of_a_batch_meets_what_those_before_it_left() -> None:
    """A second charge finds what the first left, a third too little, and a grant helps a fourth."""
    held = shelf(account(25))
    outcomes = held.commit([charge(), charge(), charge(), grant(5), charge()])
    first, second, third, fourth, fifth = outcomes
    assert (as_(ChargeResult, first).balance_before, as_(ChargeResult, first).balance_after) == (
        25,
        15,
    )
    assert (as_(ChargeResult, second).balance_before, as_(ChargeResult, second).balance_after) == (
        15,
        5,
    )
    assert facts(as_(InsufficientCreditsError, third)) == {
        "user_id": USER,
        "required": 10,
        "available": 5,
    }
    assert as_(GrantResult, fourth).balance_after == 10
    assert as_(ChargeResult, fifth).balance_after == 0
    assert [posting.account.seq for posting in held.postings] == [8, 9, 10, 11]
    assert [refusal.error for refusal in held.refusals] == [third]
    assert held.accounts[USER].credits == 0


def test_a_refusal_disturbs_nobody_else_in_the_batch() -> None:
    """Two users share a batch; the one without credits is refused alone."""
    held = shelf(account(0), account(50, user_id="user-2"))
    refused_one, charged = held.commit([charge(), charge(user_id="user-2")])
    assert type(refused_one) is InsufficientCreditsError
    assert as_(ChargeResult, charged).user_id == "user-2"
    assert held.accounts[USER] == account(0)


def test_a_user_is_created_and_charged_in_one_batch() -> None:
    """A creation is seen by what comes after it, and not by what came before."""
    held = shelf()
    outcomes = held.commit([charge(), create(30), charge(), create(30)])
    assert type(outcomes[0]) is UserNotFoundError
    assert as_(User, outcomes[1]).credits == 30
    assert as_(ChargeResult, outcomes[2]).balance_after == 20
    assert type(outcomes[3]) is UserExistsError
    assert [(p.account.seq, p.amount) for p in held.postings] == [(1, 30), (2, -10)]


def test_a_key_used_twice_in_a_batch_has_one_effect_and_one_result() -> None:
    """The second is told what the first did: the same ids, and that it is a replay."""
    held = shelf(account(100))
    first, second = held.commit([charge(key="k", metadata={"a": 1}), charge(key="k")])
    assert first == second
    assert as_(ChargeResult, first).replayed is False
    assert as_(ChargeResult, second).replayed is True
    assert as_(ChargeResult, second).metadata == {"a": 1}
    assert len(held.postings) == 1
    assert held.accounts[USER].credits == 90


def test_a_key_of_an_earlier_batch_gives_its_result_again() -> None:
    """A replay needs neither the credits nor the user of then."""
    held = shelf(account(10))
    [first] = held.commit([charge(key="k")])
    del held.accounts[USER]
    [again] = held.commit([charge(key="k")])
    assert again == first
    assert as_(ChargeResult, again).replayed is True
    assert len(held.postings) == 1


KEYED: list[tuple[str, Request[Any]]] = [
    ("another action", charge("report", key="k")),
    ("an amount", charge(key="k", amount=10)),
    ("variables", charge(key="k", variables={"a": 1})),
    ("another user", charge(key="k", user_id="user-2")),
    ("another operation", grant(10, key="k")),
    ("a creation", create(10, key="k", user_id="user-3")),
]


@pytest.mark.parametrize("request_", [case[1] for case in KEYED], ids=[case[0] for case in KEYED])
@pytest.mark.parametrize("together", [True, False])
def test_a_key_with_another_request_is_refused(request_: Request[Any], together: bool) -> None:
    """In the same batch or a later one, a key belongs to its first request, and stays with it."""
    held = shelf(account(100, tier="premium"), account(100, user_id="user-2"))
    if together:
        first, second = held.commit([charge(key="k"), request_])
    else:
        [first] = held.commit([charge(key="k")])
        [second] = held.commit([request_])
    assert as_(IdempotencyConflictError, second).key == "k"
    assert len(held.postings) == 1
    assert [refusal.request for refusal in held.refusals] == [request_]
    assert held.commit([charge(key="k")]) == [first]


@pytest.mark.parametrize("together", [True, False])
def test_a_refused_operation_leaves_its_key_free(together: bool) -> None:
    """Only successes are remembered: with credits, the same key goes through, for any request."""
    held = shelf(account(0))
    requests: list[Request[Any]] = [charge(key="k"), grant(100), grant(1, key="k")]
    if together:
        outcomes = held.commit(requests)
    else:
        outcomes = [held.commit([request])[0] for request in requests]
    assert type(outcomes[0]) is InsufficientCreditsError
    assert as_(GrantResult, outcomes[2]).replayed is False
    assert list(held.remembered) == ["k"]


def test_a_refusal_for_bad_input_leaves_its_key_free() -> None:
    """A key is not spent on a request that only the account could show to be wrong."""
    held = shelf(account(LARGEST_BALANCE))
    [outcome] = held.commit([grant(1, key="k")])
    assert type(outcome) is InvalidRequestError
    assert held.remembered == {}


@pytest.mark.parametrize("together", [True, False])
def test_two_refunds_share_the_cap_of_their_charge(together: bool) -> None:
    """What the first took of a charge, the second cannot, in one batch as in two."""
    held = shelf(account(100))
    [charged] = held.commit([charge()])
    charge_id = as_(ChargeResult, charged).transaction_id
    requests = [refund(6, of=charge_id), refund(5, of=charge_id), refund(4, of=charge_id)]
    if together:
        outcomes = held.commit(requests)
    else:
        outcomes = [held.commit([request])[0] for request in requests]
    assert as_(RefundResult, outcomes[0]).amount == 6
    assert facts(as_(RefundExceedsChargeError, outcomes[1])) == {
        "transaction_id": charge_id,
        "refundable": 4,
        "requested": 5,
    }
    assert as_(RefundResult, outcomes[2]).balance_after == 100
    assert [p.refund_of for p in held.postings[1:]] == [charge_id, charge_id]


def test_free_refunds_leave_the_cap_of_a_charge_alone() -> None:
    """Only a refund that names the charge is counted against it."""
    held = shelf(account(100))
    [charged] = held.commit([charge()])
    charge_id = as_(ChargeResult, charged).transaction_id
    free, linked = held.commit([refund(10), refund(10, of=charge_id)])
    assert as_(RefundResult, free).balance_after == 100
    assert as_(RefundResult, linked).balance_after == 110


@pytest.mark.parametrize("kind", [grant(5), refund(5)], ids=["grant", "refund"])
def test_only_a_charge_can_be_refunded(kind: Request[Any]) -> None:
    """The id of a grant or of a refund is no charge's."""
    held = shelf(account(100))
    held.commit([kind])
    [outcome] = held.commit([refund(1, of=kind.transaction_id)])
    assert type(outcome) is TransactionNotFoundError


def test_an_unreadable_account_is_refused_and_no_other() -> None:
    """Those who ask for a broken document are told, each in an error of its own."""
    held = shelf(account(100, user_id="user-2"))
    held.unreadable[USER] = AccountDataError(USER, "credits", "is below zero")
    first, second, other = held.commit([charge(), grant(1), charge(user_id="user-2")])
    assert facts(as_(AccountDataError, first)) == facts(as_(AccountDataError, second))
    assert first is not second
    assert as_(ChargeResult, other).balance_after == 90


def test_results_have_the_facts_of_their_posting() -> None:
    """Each operation's result says what it did, in the words of the design."""
    held = shelf()
    opened, granted, upgraded, charged, renewed, downgraded = held.commit(
        [
            create(30),
            grant(5),
            upgrade("premium", expires_at=FUTURE),
            charge(metadata={"a": 1}),
            renew(None),
            downgrade("free"),
        ]
    )
    ids = [posting.transaction_id for posting in held.postings]
    assert opened == User(
        user_id=USER,
        credits=30,
        membership_tier=None,
        membership_expires_at=None,
        seq=1,
        created_at=NOW,
        updated_at=NOW,
    )
    assert granted == GrantResult(
        transaction_id=ids[1],
        user_id=USER,
        action="bonus",
        amount=5,
        balance_before=30,
        balance_after=35,
        created_at=NOW,
        metadata=None,
    )
    assert upgraded == TierChangeResult(
        transaction_id=ids[2],
        user_id=USER,
        old_tier=None,
        new_tier="premium",
        old_credits=35,
        new_credits=2000,
        credits_delta=1965,
        membership_expires_at=FUTURE,
        created_at=NOW,
    )
    assert charged == ChargeResult(
        transaction_id=ids[3],
        user_id=USER,
        action="post",
        cost=8,
        balance_before=2000,
        balance_after=1992,
        created_at=NOW,
        metadata={"a": 1},
    )
    assert renewed == TierChangeResult(
        transaction_id=ids[4],
        user_id=USER,
        old_tier="premium",
        new_tier="premium",
        old_credits=1992,
        new_credits=2000,
        credits_delta=8,
        membership_expires_at=None,
        created_at=NOW,
    )
    assert as_(TierChangeResult, downgraded).credits_delta == -1900


@pytest.mark.parametrize("kind", [User, ChargeResult, RefundResult, GrantResult, TierChangeResult])
def test_results_are_frozen_and_slotted(kind: type[Any]) -> None:
    """What a caller is told cannot be changed, nor given attributes of its own."""
    held = shelf(account(100, tier="free"))
    outcomes = held.commit(
        [charge(), refund(1), grant(1), upgrade("premium"), create(user_id="user-2")]
    )
    [result] = [outcome for outcome in outcomes if type(outcome) is kind]
    assert not hasattr(result, "__dict__")
    for name in ("user_id", "replayed", "novel"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(result, name, "x")


# --- Any sequence ---------------------------------------------------------------------------------

USERS = ["ann", "bob"]
# What is to be met often stands here often.
KINDS = [
    *("create", "charge", "charge", "charge", "charge-amount", "grant", "refund"),
    *("refund-charge", "refund-charge", "refund-charge", "upgrade", "downgrade", "renew"),
    *("again", "again"),
]


class Step(NamedTuple):
    """What Hypothesis draws; ``request_of`` makes it a request, given what happened before."""

    kind: str
    user_id: str
    amount: int
    choice: int
    key: str | None
    ends_batch: bool
    hours: int


STEPS = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    user_id=st.sampled_from(USERS),
    amount=st.integers(1, 60) | st.just(LARGEST_AMOUNT),
    choice=st.integers(0, 59),
    key=st.sampled_from([None, None, None, "k1", "k2", "k3"]),
    ends_batch=st.booleans(),
    # The clock goes back, too.
    hours=st.integers(-12, 24),
)


def chosen(step: Step, options: Sequence[_T]) -> _T:
    """One of the options, by what was drawn."""
    return options[step.choice % len(options)]


def request_of(  # noqa: PLR0911
    step: Step, held: Shelf, earlier: Sequence[Request[Any]], now: datetime
) -> Request[Any]:
    """The request of a step: refunds name charges that are there, repetitions what was asked."""
    common: dict[str, Any] = {
        "user_id": step.user_id,
        "transaction_id": new_id(),
        "key": step.key,
    }
    expires_at = chosen(step, [None, now + A_DAY, now - A_DAY, now])
    charges = [p for p in held.postings if p.operation == ChargeRequest.operation]
    match step.kind:
        case "again" if earlier:
            return replace(chosen(step, earlier), transaction_id=new_id())
        case "create":
            tier = chosen(step, [None, *TIERS, "gold"])
            return CreateUserRequest(
                **common,
                credits=step.amount,
                membership_tier=tier,
                membership_expires_at=expires_at,
            )
        case "charge":
            variables = chosen(step, [None, {"token": 900, "words": 70, "total": 7, "parts": 3}])
            return charge(
                chosen(step, [*COSTS, "post", "free", "dance"]),
                variables=variables,
                key=step.key,
                user_id=step.user_id,
            )
        case "charge-amount":
            return charge("dance", amount=step.amount, key=step.key, user_id=step.user_id)
        case "refund-charge" if charges:
            of = chosen(step, charges[-3:])
            user_id = chosen(step, [of.account.user_id] * 4 + USERS)
            return refund(step.amount % 7 + 1, of=of.transaction_id, key=step.key, user_id=user_id)
        case "refund":
            return refund(step.amount, key=step.key, user_id=step.user_id)
        case "upgrade":
            keep_or_set = chosen(step, [KEEP, expires_at])
            return UpgradeTierRequest(
                **common,
                target_tier=chosen(step, list(TIERS)),
                membership_expires_at=keep_or_set,
            )
        case "downgrade":
            return DowngradeTierRequest(
                **common,
                target_tier=chosen(step, list(TIERS)[:4]),
                clear_expiration=chosen(step, [True, False]),
            )
        case "renew":
            return RenewTierRequest(
                **common,
                membership_expires_at=expires_at,
                refill=chosen(step, [True, False]),
                allow_earlier=True,
            )
        case _:
            return grant(step.amount, key=step.key, user_id=step.user_id)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.lists(STEPS, min_size=20, max_size=60))
def test_any_sequence_of_requests_keeps_the_promises(opening: int, steps: list[Step]) -> None:
    """Whatever is asked in whatever batches, balances explain themselves and stay within bounds."""
    held, now = Shelf(), NOW
    held.commit([create(opening, user_id=USERS[0])])
    earlier: list[Request[Any]] = []
    batch: list[Request[Any]] = []
    for step in steps:
        batch.append(request_of(step, held, earlier, now))
        if step.ends_batch:
            commit_and_count(held, batch, now)
            earlier += batch
            batch = []
            now += timedelta(hours=step.hours)
    commit_and_count(held, batch, now)
    for user_id in USERS:
        check_promises_for(held, user_id)
    check_refunds(held)
    keyed = [p.key for p in held.postings if p.key is not None]
    assert sorted(keyed) == sorted(held.remembered)


def commit_and_count(held: Shelf, requests: Sequence[Request[Any]], now: datetime) -> None:
    """Every request has one outcome, and leaves one record unless it is a replay."""
    before = len(held.postings) + len(held.refusals)
    outcomes = held.commit(requests, now)
    replays = sum(not isinstance(found, CreditError) and found.replayed for found in outcomes)
    assert len(outcomes) == len(requests)
    assert len(held.postings) + len(held.refusals) - before == len(requests) - replays


def check_promises_for(held: Shelf, user_id: str) -> None:
    """One user's postings are a chain without a gap, from nothing to the balance."""
    postings = [p for p in held.postings if p.account.user_id == user_id]
    assert bool(postings) is (user_id in held.accounts)
    if not postings:
        return
    assert postings[0].balance_before == 0
    assert [p.account.seq for p in postings] == list(range(1, len(postings) + 1))
    for posting in postings:
        assert 0 <= posting.account.credits <= LARGEST_BALANCE
        assert posting.balance_before + posting.amount == posting.account.credits
    for earlier, later in pairwise(postings):
        assert later.balance_before == earlier.account.credits
        assert later.account.updated_at >= earlier.account.updated_at
    assert held.accounts[user_id] == postings[-1].account
    assert held.accounts[user_id].credits == sum(p.amount for p in postings)


def check_refunds(held: Shelf) -> None:
    """No charge was refunded beyond what it took, nor to another user."""
    postings = {p.transaction_id: p for p in held.postings}
    refunds = [p for p in held.postings if p.refund_of is not None]
    for charge_id in {p.refund_of for p in refunds}:
        assert charge_id is not None
        of_this = [p for p in refunds if p.refund_of == charge_id]
        assert sum(p.amount for p in of_this) <= -postings[charge_id].amount
        assert {p.account.user_id for p in of_this} == {postings[charge_id].account.user_id}

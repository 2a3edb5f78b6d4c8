"""The configuration: what it accepts, under which keys, and how an error names the wrong key."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import random
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from credit_mongo import (
    AuditConfig,
    CollectionNames,
    ConfigurationError,
    CostsInput,
    CreditConfig,
    CreditError,
    IdempotencyConfig,
    MembershipConfig,
    MembershipInput,
    PriceRoundsToZeroWarning,
    RetryConfig,
)
from credit_mongo.config import Settings
from credit_mongo.core.formula import Formula
from credit_mongo.core.values import LARGEST_AMOUNT

COSTS: dict[str, Any] = {"post": {"default": 10, "premium": 8}}
MEMBERSHIP: MembershipInput = {
    "tiers": {"free": 0, "premium": 1},
    "requirements": {"image": "premium", "post": None},
    "credits_caps": {"free": 100, "premium": 2000},
}
# Stands in place of a wrong value, and must not come back in an error.
PRIVATE = "private-value"

# A whole configuration of the Credit SDK, as JSON.stringify writes it.
SDK_JSON = """
{
  "costs": {
    "generate-post": {"default": 10, "premium": 8, "enterprise": 5},
    "ai-completion": {"default": "{token} * 0.001 + 10", "premium": "{token} * 0.0008 + 8"},
    "lookup": {"default": 0.5},
    "render": {"default": "{hd} === 1 ? Math.ceil({size} / 2) ** 2 : Math.max({size}, 1)"}
  },
  "membership": {
    "tiers": {"free": 0, "premium": 1, "enterprise": 2},
    "requirements": {"generate-post": null, "generate-video": "premium"},
    "creditsCaps": {"free": 100, "premium": 2000, "enterprise": 10000}
  },
  "retry": {
    "enabled": true,
    "maxAttempts": 3,
    "initialDelay": 100,
    "maxDelay": 5000,
    "backoffMultiplier": 1.5
  },
  "idempotency": {"enabled": true, "ttl": 3600},
  "audit": {"enabled": false}
}
"""


def refusal_of(**values: Any) -> ConfigurationError:
    """Return the error that a wrong configuration raises."""
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig(**values)
    error = caught.value
    # The error must not wrap pydantic's, which quotes the input.
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert str(error) == (f"{error.field}: {error.reason}" if error.field else error.reason)
    return error


# --- What it accepts ------------------------------------------------------------------------------


def test_costs_alone_are_a_configuration() -> None:
    """Everything but costs has the default that the design gives it."""
    config = CreditConfig(costs=COSTS)
    assert config.membership is None
    assert config.retry.enabled
    assert config.idempotency == IdempotencyConfig(enabled=True, ttl_seconds=86400)
    assert config.audit == AuditConfig(enabled=True)
    assert config.decimal_places == 0
    assert config.operation_timeout_seconds > 0
    names = config.collections
    assert (names.users, names.transactions) == ("users", "transactions")
    assert (names.audit_logs, names.idempotency_records) == ("audit_logs", "idempotency_records")


@pytest.mark.parametrize(
    "load",
    [
        CreditConfig.from_json,
        lambda text: CreditConfig.from_json(text.encode()),
        lambda text: CreditConfig(**json.loads(text)),
        lambda text: CreditConfig.model_validate(json.loads(text)),
    ],
    ids=["text", "bytes", "values", "model_validate"],
)
def test_a_configuration_of_the_credit_sdk_loads_unchanged(
    load: Callable[[str], CreditConfig],
) -> None:
    """The SDK's JSON, with its camelCase keys, has the same meaning here."""
    config = load(SDK_JSON)
    assert config.retry == RetryConfig(
        enabled=True,
        max_attempts=3,
        initial_delay_ms=100,
        max_delay_ms=5000,
        backoff_multiplier=1.5,
    )
    assert config.idempotency == IdempotencyConfig(enabled=True, ttl_seconds=3600)
    assert config.audit == AuditConfig(enabled=False)
    assert config.membership is not None
    assert config.membership.credits_caps == {"free": 100, "premium": 2000, "enterprise": 10000}
    assert config.membership.requirements == {"generate-post": None, "generate-video": "premium"}
    assert config.costs["lookup"]["default"] == Fraction(1, 2)
    assert config.policy.tariff.prices["lookup"] == {"default": 1}
    assert config.policy.membership.requirements == {"generate-video": "premium"}
    render = config.costs["render"]["default"]
    for hd, size, price in ((1, 5, 9), (0, 5, 5), (0, 0, 1)):
        assert render.evaluate({"hd": Fraction(hd), "size": Fraction(size)}) == price


def test_a_configuration_of_the_credit_sdk_without_tiers_loads_unchanged() -> None:
    """The SDK needs a membership even where there is none."""
    text = """{
      "costs": {"generate-post": {"default": 10}},
      "membership": {"tiers": {}, "requirements": {}, "creditsCaps": {}}
    }"""
    config = CreditConfig.from_json(text)
    assert config.policy.membership == CreditConfig(costs={}).policy.membership


def test_both_spellings_of_every_key_are_the_same() -> None:
    """This library's names and the camelCase ones build equal configurations."""
    ours = CreditConfig(
        costs=COSTS,
        membership=MEMBERSHIP,
        retry={
            "enabled": False,
            "max_attempts": 7,
            "initial_delay_ms": 1.5,
            "max_delay_ms": 250,
            "backoff_multiplier": 3,
        },
        idempotency={"enabled": False, "ttl_seconds": 60},
        audit={"enabled": False},
        collections={"audit_logs": "a", "idempotency_records": "i"},
        decimal_places=2,
        operation_timeout_seconds=2.5,
    )
    spelt_otherwise: dict[str, Any] = {"decimalPlaces": 2, "operationTimeoutSeconds": 2.5}
    theirs = CreditConfig(
        costs=COSTS,
        membership={
            "tiers": MEMBERSHIP["tiers"],
            "requirements": MEMBERSHIP["requirements"],
            "creditsCaps": MEMBERSHIP["credits_caps"],
        },
        retry={
            "enabled": False,
            "maxAttempts": 7,
            "initialDelay": 1.5,
            "maxDelay": 250,
            "backoffMultiplier": 3,
        },
        idempotency={"enabled": False, "ttl": 60},
        audit={"enabled": False},
        collections={"auditLogs": "a", "idempotencyRecords": "i"},
        **spelt_otherwise,
    )
    assert ours == theirs


def test_parts_can_be_given_as_objects() -> None:
    """Typed parts and plain mappings build equal configurations."""
    assert CreditConfig(
        costs=COSTS,
        membership=MembershipConfig(
            tiers=MEMBERSHIP["tiers"],
            requirements=MEMBERSHIP["requirements"],
            credits_caps=MEMBERSHIP["credits_caps"],
        ),
        retry=RetryConfig(max_attempts=3),
        idempotency=IdempotencyConfig(ttl_seconds=60),
        audit=AuditConfig(enabled=False),
        collections=CollectionNames(users="accounts"),
    ) == CreditConfig(
        costs=COSTS,
        membership=MEMBERSHIP,
        retry={"max_attempts": 3},
        idempotency={"ttl_seconds": 60},
        audit={"enabled": False},
        collections={"users": "accounts"},
    )


@pytest.mark.parametrize(
    ("price", "exact"),
    [
        (0, Fraction(0)),
        (-0.0, Fraction(0)),
        (Decimal("-0"), Fraction(0)),
        (0.1, Fraction(1, 10)),
        (1e-7, Fraction(1, 10**7)),
        (Decimal("0.1"), Fraction(1, 10)),
        (Decimal("1E+3"), Fraction(1000)),
        (Decimal("1E-9"), Fraction(1, 10**9)),
        (Decimal("1." + "0" * 399 + "1"), 1 + Fraction(1, 10**400)),
        (LARGEST_AMOUNT, Fraction(LARGEST_AMOUNT)),
    ],
)
def test_numbers_are_taken_exactly_as_written(price: float | Decimal, exact: Fraction) -> None:
    """A float counts as the decimal that it prints as, and a tiny one is not lost."""
    places = 9 if 0 < price < 1 else 0
    config = CreditConfig(costs={"a": {"default": price}}, decimal_places=places)
    assert config.costs["a"]["default"] == exact


def test_json_numbers_are_exact_beyond_what_floats_hold() -> None:
    """Numbers in JSON count as they are written, not as the nearest binary float."""
    config = CreditConfig.from_json('{"costs": {"a": {"default": 1.12345678901234567890123}}}')
    assert config.costs["a"]["default"] == Fraction("1.12345678901234567890123")


@pytest.mark.parametrize("zero", ["0E+2000000", "0E-2000000"])
def test_a_zero_with_any_exponent_is_taken_or_refused_at_once(zero: str) -> None:
    """A short number with a huge exponent is accepted or refused without delay."""
    started = time.monotonic()
    with contextlib.suppress(ConfigurationError):
        config = CreditConfig.from_json(f'{{"costs": {{"a": {{"default": {zero}}}}}}}')
        assert config.costs["a"]["default"] == 0
    assert time.monotonic() - started < 5  # a hang, not a speed


# --- Prices that round to nothing, or fall below zero ---------------------------------------------


NOTHING = "is above 0 but rounds to 0 units: "


@pytest.mark.parametrize(
    ("price", "decimal_places", "reason"),
    [
        (0.1, 0, f"{NOTHING}0.1 credits with decimal_places=0; set decimal_places to 1"),
        (0.002, 0, f"{NOTHING}0.002 credits with decimal_places=0; set decimal_places to 3"),
        (0.0125, 1, f"{NOTHING}0.0125 credits with decimal_places=1; set decimal_places to 4"),
        ("1 / 3", 0, f"{NOTHING}0.3333333333333333333333333333333333 credits with "),
        ("1 / 3", 0, "; set decimal_places to 9"),
        ("0.0049", 2, "; set decimal_places to 4"),
        ("1 * 2.5e-06", 0, f"{NOTHING}0.0000025 credits with decimal_places=0; set "),
        (1e-9, 8, "; set decimal_places to 9"),
        (
            1.3e-10,
            9,
            f"{NOTHING}1.3E-10 credits with decimal_places=9, and 9 places, the maximum, ",
        ),
        ("1.3e-10", 0, "make one credit worth less, or price larger quantities"),
        ("-1", 0, "must be from 0 to 9007199254740991, not -1"),
        ("1 - 1.5", 0, "must be from 0 to 9007199254740991, not -0.5"),
        ("-1e-9", 0, "must be from 0 to 9007199254740991, not -1E-9"),
        ("1e17", 0, "is more than 9007199254740991 units"),
        ("2e15", 1, "is more than 9007199254740991 units"),
        ("1 / (2 - 2)", 0, "has no value: division by zero"),
        ("1e300", 0, "has no value: the result is beyond ±10**18"),
    ],
)
def test_a_constant_price_that_rounds_to_nothing_is_refused(
    price: float | str, decimal_places: int, reason: str
) -> None:
    """The error names the action and the decimal places that the price would need."""
    error = refusal_of(
        costs={"post": {"default": 10, "gold": price}}, decimal_places=decimal_places
    )
    assert error.field == "costs.post.gold"
    assert reason in error.reason


@pytest.mark.parametrize("price", [0, 0.0, "0", "1 - 1", "0 * 5", 0.5, "0.5", "1 / 2"])
def test_a_price_may_be_zero_or_round_up(price: float | str) -> None:
    """A price of zero is accepted, and so is one that rounds up to a unit."""
    assert CreditConfig(costs={"post": {"default": price}}).policy is not None


def test_a_cap_that_rounds_to_nothing_is_refused() -> None:
    """A change to a tier with such a cap would take all credits."""
    caps = {"free": 0.002, "premium": 20}
    error = refusal_of(**member(credits_caps=caps))
    assert error.field == "membership.credits_caps.free"
    assert "set decimal_places to 3" in error.reason


@pytest.mark.parametrize(
    ("formula", "decimal_places", "small", "remedy"),
    [
        ("{t} * 0.0000025", 0, "t=1", ": 0.0000025 credits with decimal_places=0; set dec"),
        ("{t} * 0.0000025", 0, "t=1", "set decimal_places to 7, or round up"),
        ("{t} / 1000", 2, "t=1", "set decimal_places to 3"),
        ("{t} / 3", 0, "t=1", "set decimal_places to 9"),
        ("{t} * 1.3e-10", 9, "t=1", "price larger quantities"),
        ("{in} * 3e-6 + {out} * 0.5", 0, "in=1, out=0", "set decimal_places to 6"),
        ("{a} * 0.2 + {b} * 0.2", 0, "a=1, b=1", "set decimal_places to 1"),
    ],
)
def test_a_formula_that_can_round_to_nothing_gives_a_warning(
    formula: str, decimal_places: int, small: str, remedy: str
) -> None:
    """The warning names the formula, small values for which it is free, and the remedy."""
    costs: CostsInput = {"post": {"default": 10, "gold": formula}}
    with pytest.warns(PriceRoundsToZeroWarning) as caught:
        CreditConfig(costs=costs, decimal_places=decimal_places)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"costs.post.gold: the formula {formula!r} rounds to 0 units for ")
    assert f"such as {small}, " in message
    assert remedy in message


@pytest.mark.parametrize(
    "formula",
    [
        "{token} * 0.001 + 10",
        "{t} * 0.5",
        "ceil({t} / 1000)",
        "max({t} / 1000, 1)",
        "{t}",
        "{n} - 50",
        "1 / ({n} - 1)",
        "{t} > 1000 ? {t} * 0.002 : 5",
    ],
)
def test_a_formula_that_always_costs_something_gives_no_warning(formula: str) -> None:
    """No false alarm, even where a formula has no value for the smallest numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CreditConfig(costs={"post": {"default": formula}})


def test_identifiers_may_look_like_mongodb_operators() -> None:
    """Names may have spaces, dots, dollars, colons and letters of any script."""
    names = ["my action", "a.b", "$where", "a: b", "écrire", "写", "x" * 255]
    config = CreditConfig(costs={name: {"default": 1} for name in names})
    assert list(config.costs) == names


# --- Which key is wrong ---------------------------------------------------------------------------


def price(value: Any) -> dict[str, Any]:
    """Build a configuration with this price."""
    return {"costs": {"post": {"default": value}}}


def part(name: str, **values: Any) -> dict[str, Any]:
    """Build a configuration with this part."""
    return {"costs": COSTS, name: values}


def member(**values: Any) -> dict[str, Any]:
    """Build a configuration whose membership differs in these keys."""
    return {"costs": COSTS, "membership": {**MEMBERSHIP, **values}}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # Unknown keys, at every level
    "unknown key": ({"costs": COSTS, "price": 5}, "price"),
    "unknown key of membership": (member(levels={}), "membership.levels"),
    "unknown key of retry": (part("retry", attempts=5), "retry.attempts"),
    "unknown key of idempotency": (part("idempotency", days=5), "idempotency.days"),
    "unknown key of audit": (part("audit", enable=True), "audit.enable"),
    "unknown key of collections": (part("collections", accounts="a"), "collections.accounts"),
    "both spellings of a key": (part("retry", max_attempts=1, maxAttempts=1), "retry.maxAttempts"),
    "both spellings of caps": (
        member(creditsCaps=MEMBERSHIP["credits_caps"]),
        "membership.creditsCaps",
    ),
    # Costs
    "no costs": ({}, "costs"),
    "costs that are none": ({"costs": None}, "costs"),
    "costs that are a list": ({"costs": [PRIVATE]}, "costs"),
    "prices that are a number": ({"costs": {"post": 5}}, "costs.post"),
    "prices that are none": ({"costs": {"post": None}}, "costs.post"),
    "no prices": ({"costs": {"post": {}}}, "costs.post"),
    "negative price": (price(-1), "costs.post.default"),
    "slightly negative price": (price(-5e-324), "costs.post.default"),
    "NaN": (price(float("nan")), "costs.post.default"),
    "infinity": (price(float("inf")), "costs.post.default"),
    "minus infinity": (price(float("-inf")), "costs.post.default"),
    "decimal NaN": (price(Decimal("NaN")), "costs.post.default"),
    "signalling NaN": (price(Decimal("sNaN")), "costs.post.default"),
    "decimal infinity": (price(Decimal("Infinity")), "costs.post.default"),
    "bool": (price(True), "costs.post.default"),
    "none": (price(None), "costs.post.default"),
    "list": (price([PRIVATE]), "costs.post.default"),
    "complex": (price(1 + 2j), "costs.post.default"),
    "bytes": (price(b"10"), "costs.post.default"),
    "fraction": (price(Fraction(1, 3)), "costs.post.default"),
    "a price above the largest amount": (price(LARGEST_AMOUNT + 1), "costs.post.default"),
    "a price of 400 digits": (price(10**400), "costs.post.default"),
    "a price of 5,000 digits": (price(10**5000), "costs.post.default"),
    "a decimal of a million digits": (price(Decimal("1E+999999")), "costs.post.default"),
    "a decimal of a million places": (price(Decimal("1E-999999")), "costs.post.default"),
    "a decimal of the longest kind": (
        price(Decimal("1E-999999999999999999")),
        "costs.post.default",
    ),
    "empty formula": (price(""), "costs.post.default"),
    "formula of words": (price("ten credits"), "costs.post.default"),
    "formula with a call": (price("__import__('os')"), "costs.post.default"),
    "formula that is not closed": (price("({token} + 1"), "costs.post.default"),
    "formula that is endless": (price("1+" * 5000 + "1"), "costs.post.default"),
    "empty action": ({"costs": {"": {"default": 1}}}, "costs."),
    "action with a control character": ({"costs": {"a\x07": {"default": 1}}}, "costs.a\x07"),
    "action of 256 characters": ({"costs": {"x" * 256: {"default": 1}}}, "costs." + "x" * 256),
    "action that is a number": ({"costs": {5: {"default": 1}}}, "costs.5"),
    "tier that is a number": ({"costs": {"post": {5: 1}}}, "costs.post.5"),
    "price for no tier": (
        {"costs": {"post": {"gold": 5}}, "membership": MEMBERSHIP},
        "costs.post.gold",
    ),
    "price for no tier, of an action with a space": (
        {"costs": {"my post": {"gold": 5}}, "membership": MEMBERSHIP},
        "costs.my post.gold",
    ),
    "price for no tier, of an action with a colon": (
        {"costs": {"my: post": {"gold": 5}}, "membership": MEMBERSHIP},
        "costs.my: post.gold",
    ),
    "a price with too many units": (
        {**price(LARGEST_AMOUNT), "decimal_places": 1},
        "costs.post.default",
    ),
    # Membership
    "membership that is a list": ({"costs": COSTS, "membership": [PRIVATE]}, "membership"),
    "membership that is true": ({"costs": COSTS, "membership": True}, "membership"),
    "no tiers": (part("membership", credits_caps={}), "membership.tiers"),
    "tiers that are a list": (member(tiers=["free"]), "membership.tiers"),
    "a tier without a level": (member(tiers={"free": None}), "membership.tiers.free"),
    "a level that is a bool": (member(tiers={"free": True}), "membership.tiers.free"),
    "a level that is a string": (member(tiers={"free": PRIVATE}), "membership.tiers.free"),
    "a level that is no whole number": (member(tiers={"free": 0.5}), "membership.tiers.free"),
    "a level below zero": (member(tiers={"free": -1}), "membership.tiers.free"),
    "a level of 400 digits": (member(tiers={"free": 10**400}), "membership.tiers.free"),
    "an empty tier": (member(tiers={"": 1}), "membership.tiers."),
    "a tier named default": (
        member(tiers={**MEMBERSHIP["tiers"], "default": 2}),
        "membership.tiers",
    ),
    "a requirement that names no tier": (
        member(requirements={"image": "gold"}),
        "membership.requirements.image",
    ),
    "a requirement of an action with a space": (
        member(requirements={"my image": "gold"}),
        "membership.requirements.my image",
    ),
    "a requirement that is a number": (
        member(requirements={"image": 1}),
        "membership.requirements.image",
    ),
    "requirements that are none": (member(requirements=None), "membership.requirements"),
    "no caps": (part("membership", tiers={"free": 0}), "membership.credits_caps"),
    "a tier without a cap": (member(credits_caps={"free": 1}), "membership.credits_caps"),
    "a tier without a cap, in camelCase": (
        part("membership", tiers=MEMBERSHIP["tiers"], creditsCaps={"free": 1}),
        "membership.credits_caps",
    ),
    "a cap for no tier": (
        member(credits_caps={**MEMBERSHIP["credits_caps"], "gold": 1}),
        "membership.credits_caps.gold",
    ),
    "a negative cap": (
        member(credits_caps={"free": -1, "premium": 1}),
        "membership.credits_caps.free",
    ),
    "a cap that is a bool": (
        member(credits_caps={"free": True, "premium": 1}),
        "membership.credits_caps.free",
    ),
    "a cap that is a formula": (
        member(credits_caps={"free": "10", "premium": 1}),
        "membership.credits_caps.free",
    ),
    "a cap that is NaN": (
        member(credits_caps={"free": float("nan"), "premium": 1}),
        "membership.credits_caps.free",
    ),
    "a cap that is infinite": (
        member(credits_caps={"free": float("inf"), "premium": 1}),
        "membership.credits_caps.free",
    ),
    "a wrong cap, in camelCase": (
        part("membership", tiers={"free": 0}, creditsCaps={"free": -1}),
        "membership.creditsCaps.free",
    ),
    "a cap with too many units": (
        {
            **member(credits_caps={"free": LARGEST_AMOUNT, "premium": 1}),
            "decimal_places": 1,
        },
        "membership.credits_caps.free",
    ),
    # Retry
    "retry that is none": ({"costs": COSTS, "retry": None}, "retry"),
    "retry that is false": ({"costs": COSTS, "retry": False}, "retry"),
    "enabled that is a number": (part("retry", enabled=1), "retry.enabled"),
    "enabled that is a string": (part("retry", enabled="false"), "retry.enabled"),
    "no attempt": (part("retry", max_attempts=0), "retry.max_attempts"),
    "attempts that are a bool": (part("retry", max_attempts=True), "retry.max_attempts"),
    "attempts that are a float": (part("retry", maxAttempts=1.5), "retry.maxAttempts"),
    "attempts that are a string": (part("retry", maxAttempts="3"), "retry.maxAttempts"),
    "too many attempts": (part("retry", maxAttempts=10**400), "retry.maxAttempts"),
    "a negative delay": (part("retry", initial_delay_ms=-1), "retry.initial_delay_ms"),
    "a delay that is NaN": (part("retry", initialDelay=float("nan")), "retry.initialDelay"),
    "an infinite delay": (part("retry", maxDelay=float("inf")), "retry.maxDelay"),
    "a delay that is a bool": (part("retry", maxDelay=True), "retry.maxDelay"),
    "a longest delay below the first": (
        part("retry", initial_delay_ms=100, max_delay_ms=99),
        "retry.max_delay_ms",
    ),
    "a multiplier below one": (part("retry", backoff_multiplier=0.5), "retry.backoff_multiplier"),
    "a multiplier that is NaN": (
        part("retry", backoffMultiplier=float("nan")),
        "retry.backoffMultiplier",
    ),
    # Idempotency, audit
    "keys that live for no time": (part("idempotency", ttl_seconds=0), "idempotency.ttl_seconds"),
    "keys that live for no time, in the SDK's words": (
        part("idempotency", ttl=0),
        "idempotency.ttl",
    ),
    "keys that live for a negative time": (part("idempotency", ttl=-1), "idempotency.ttl"),
    "keys that live forever": (part("idempotency", ttl=10**12), "idempotency.ttl"),
    "keys that live for true": (part("idempotency", ttl=True), "idempotency.ttl"),
    "keys that live for half a second": (part("idempotency", ttl=0.5), "idempotency.ttl"),
    "keys that live for a string": (part("idempotency", ttl=PRIVATE), "idempotency.ttl"),
    "audit that is a string": (part("audit", enabled=PRIVATE), "audit.enabled"),
    # Collections
    "a collection without a name": (part("collections", users=""), "collections.users"),
    "a collection with a dollar": (part("collections", users="a$b"), "collections.users"),
    "a collection with NUL": (part("collections", users="a\x00b"), "collections.users"),
    "a collection with a line break": (part("collections", users="users\n"), "collections.users"),
    "a collection with a long name": (part("collections", users="u" * 256), "collections.users"),
    "a collection that is a number": (part("collections", users=5), "collections.users"),
    "a collection of MongoDB's own": (
        part("collections", audit_logs="system.users"),
        "collections.audit_logs",
    ),
    "two collections of one name": (
        part("collections", users="credits", transactions="credits"),
        "collections",
    ),
    "a collection named as the default of another": (
        part("collections", users="transactions"),
        "collections",
    ),
    # Everything else
    "decimal places below zero": ({"costs": COSTS, "decimal_places": -1}, "decimal_places"),
    "too many decimal places": ({"costs": COSTS, "decimalPlaces": 10}, "decimalPlaces"),
    "decimal places that are a bool": ({"costs": COSTS, "decimal_places": True}, "decimal_places"),
    "decimal places that are a float": ({"costs": COSTS, "decimal_places": 2.0}, "decimal_places"),
    "no time": (
        {"costs": COSTS, "operation_timeout_seconds": 0},
        "operation_timeout_seconds",
    ),
    "negative time": (
        {"costs": COSTS, "operation_timeout_seconds": -1},
        "operation_timeout_seconds",
    ),
    "time that is NaN": (
        {"costs": COSTS, "operation_timeout_seconds": float("nan")},
        "operation_timeout_seconds",
    ),
    "endless time": (
        {"costs": COSTS, "operation_timeout_seconds": float("inf")},
        "operation_timeout_seconds",
    ),
    "time that is a string": (
        {"costs": COSTS, "operation_timeout_seconds": PRIVATE},
        "operation_timeout_seconds",
    ),
    "time that is a bool": (
        {"costs": COSTS, "operation_timeout_seconds": True},
        "operation_timeout_seconds",
    ),
    "another thing to do when busy": ({"costs": COSTS, "on_busy": "block"}, "on_busy"),
    "a wish to wait that is a bool": ({"costs": COSTS, "onBusy": True}, "onBusy"),
}


@pytest.mark.parametrize(("values", "field"), WRONG.values(), ids=WRONG)
def test_the_error_names_the_key_that_is_wrong(values: dict[str, Any], field: str) -> None:
    """The error has the path in the input's own spelling, and does not quote the value."""
    error = refusal_of(**values)
    assert error.field == field
    assert error.reason
    assert PRIVATE not in f"{error} {error!r}"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ("null", ""),
        ("5", ""),
        ('"costs"', ""),
        (b"\xff\xfe\xfd", ""),
        ("{}", "costs"),
        ('{"self": 1}', "self"),
        ('{"costs": {"post": {"default": NaN}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": -Infinity}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": 1e-999999}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": ' + "9" * 5000 + "}}}", "costs.post.default"),
        ('{"costs": {"post": {"default": -' + "9" * 900_000 + "}}}", "costs.post.default"),
        ('{"costs": {"post": {"default": 1e9999999999999999999}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": -1E+9999999999999999999}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": 1.5e-9999999999999999999}}}', "costs.post.default"),
        ('{"costs": {}, "retry": {"initialDelay": 1e9999999999999999999}}', "retry.initialDelay"),
        ('{"costs": {}, "retry": {"maxAttempts": ' + "9" * 5000 + "}}", "retry.maxAttempts"),
        ('{"costs": {}, "audit": {"enabled": 1e9999999999999999999}}', "audit.enabled"),
        ('{"costs": {}, "decimalPlaces": 0e9999999999999999999}', "decimalPlaces"),
        (" " * 1_000_000 + "{}", ""),
        ('{"costs": ' + "[" * 100_000, ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_that_is_not_a_configuration_is_refused(text: str | bytes, field: str) -> None:
    """Any wrong text raises this library's error, and without delay."""
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig.from_json(text)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"costs": {"post": {"default": 10, "default": 1}}}', "costs.post.default"),
        ('{"costs": {"post": {"default": 10}, "post": {"default": 1}}}', "costs.post"),
        ('{"costs": {}, "decimalPlaces": 2, "costs": {}}', "costs"),
        ('{"costs": {}, "retry": [{"a": 1, "a": 2}]}', "retry.0.a"),
    ],
)
def test_a_duplicate_key_is_refused(text: str, field: str) -> None:
    """Python would keep the last value, and charge 1 although the first line says 10."""
    with pytest.raises(ConfigurationError, match="appears twice") as caught:
        CreditConfig.from_json(text)
    assert caught.value.field == field


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_configuration_is_read_in_every_encoding_that_editors_write(encoding: str) -> None:
    """Bytes and decoded text are read with or without a byte order mark."""
    text = '\ufeff{"costs": {"größe": {"default": 10}}}'
    wanted = CreditConfig(costs={"größe": {"default": 10}})
    assert CreditConfig.from_json(text) == wanted
    assert CreditConfig.from_json(text.removeprefix("\ufeff").encode(encoding)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty, but must be JSON"),
        (b"\xef\xbb\xbf \n", "is empty, but must be JSON"),
        ('{"costs": {},\n }', "is not JSON: .* \\(line 2, column 2\\)"),
    ],
)
def test_an_error_in_the_text_names_its_cause_and_position(text: str | bytes, said: str) -> None:
    """The error says what is wrong and where, but quotes nothing of the text."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        CreditConfig.from_json(text)
    assert "costs" not in str(caught.value)


HUGE: dict[str, tuple[int, str]] = {
    "more prices than any list": (10_001, "{t}"),
    "formulas longer than any list": (1_001, "1+" * 499 + "{t}"),
}


@pytest.mark.parametrize(("prices", "formula"), HUGE.values(), ids=HUGE)
def test_a_configuration_beyond_any_size_is_refused_before_it_is_read(
    prices: int, formula: str
) -> None:
    """A huge configuration would take the better part of a minute, as text or as values."""
    costs = {f"a{number}": {"default": formula} for number in range(prices)}
    started = time.monotonic()
    error = refusal_of(costs=costs)
    assert (error.field, "has " in error.reason) == ("costs", True)
    with pytest.raises(ConfigurationError):
        CreditConfig.from_json(json.dumps({"costs": costs, "filling": " " * 15_000_000}))
    assert time.monotonic() - started < 5  # a hang, not a speed


def test_a_fifth_of_the_largest_configuration_is_checked_in_time() -> None:
    """The longest formulas take the longest to check."""
    formula = ("1e-400+" * 140)[:-1] + "+{t}*1"
    costs = {f"a{number}": {"default": formula} for number in range(195)}
    text = json.dumps({"costs": costs})
    assert 190_000 < len(text) <= 200_000
    started = time.monotonic()
    CreditConfig.from_json(text)
    assert time.monotonic() - started < 12  # a hang, not a speed


@pytest.mark.parametrize("text", [None, 5, ["{}"], {"costs": {}}])
def test_json_must_be_text_or_bytes(text: Any) -> None:
    """A wrong type raises this library's error, too."""
    with pytest.raises(ConfigurationError):
        CreditConfig.from_json(text)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: RetryConfig(max_attempts=0), "max_attempts"),
        (lambda: IdempotencyConfig(ttl_seconds=0), "ttl_seconds"),
        (lambda: AuditConfig(enabled="yes"), "enabled"),
        (lambda: CollectionNames(users=""), "users"),
        (lambda: MembershipConfig(tiers={"free": -1}, credits_caps={"free": 1}), "tiers.free"),
    ],
    ids=["retry", "idempotency", "audit", "collections", "membership"],
)
def test_a_wrong_part_raises_a_configuration_error(build: Callable[[], object], field: str) -> None:
    """Parts are public, so their errors are CreditErrors, too."""
    with pytest.raises(CreditError) as caught:
        build()
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.field == field


# --- Configurations as values ---------------------------------------------------------------------


@pytest.fixture
def config() -> CreditConfig:
    """Build a whole configuration."""
    return CreditConfig(costs=COSTS, membership=MEMBERSHIP)


@pytest.mark.parametrize("name", ["costs", "membership", "decimal_places", "novel"])
def test_a_configuration_is_frozen(config: CreditConfig, name: str) -> None:
    """No field can be set or deleted."""
    with pytest.raises((TypeError, ValueError, AttributeError)):
        setattr(config, name, None)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        delattr(config, name)


def test_a_part_of_a_configuration_is_frozen(config: CreditConfig) -> None:
    """No field of a part can be set or deleted either."""
    for held, name in ((config.retry, "enabled"), (config.collections, "users")):
        with pytest.raises((TypeError, ValueError)):
            setattr(held, name, None)


def test_a_checked_price_cannot_be_changed(config: CreditConfig) -> None:
    """Writing into a configuration's dictionaries cannot smuggle in a price."""
    prices: Any = config.costs
    with contextlib.suppress(TypeError, AttributeError):
        prices["post"]["default"] = Fraction(-1)
    with contextlib.suppress(TypeError, AttributeError):
        prices["gift"] = {"default": Fraction(0)}
    assert config.policy.tariff.prices == {"post": {"default": 10, "premium": 8}}


def test_the_callers_own_values_are_copied() -> None:
    """A caller that changes its dictionaries later changes no price."""
    costs = copy.deepcopy(COSTS)
    membership: Any = copy.deepcopy(MEMBERSHIP)
    config = CreditConfig(costs=costs, membership=membership)
    costs["post"]["default"] = 0
    costs["gift"] = {"default": 0}
    membership["credits_caps"]["free"] = 10**9
    assert config == CreditConfig(costs=COSTS, membership=MEMBERSHIP)
    assert config.policy.tariff.prices == {"post": {"default": 10, "premium": 8}}
    assert config.policy.membership.caps == {"free": 100, "premium": 2000}


def test_equal_values_make_equal_configurations(config: CreditConfig) -> None:
    """Neither the spelling of numbers nor rules computed earlier make a difference."""
    same = CreditConfig(
        costs={"post": {"default": 10.0, "premium": Decimal("8.00")}}, membership=MEMBERSHIP
    )
    assert config.policy is not None
    assert config == same
    assert config.policy == same.policy
    assert config != CreditConfig(costs=COSTS)
    assert config != CreditConfig(costs=COSTS, membership=MEMBERSHIP, decimal_places=1)


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],  # noqa: S301
)
@pytest.mark.parametrize("used", [True, False])
def test_a_configuration_can_be_copied_and_sent(
    again: Callable[[CreditConfig], CreditConfig], used: bool
) -> None:
    """A copy or a pickle is equal, before and after the first use."""
    config = CreditConfig(costs={"a": {"default": "{n} * 2"}}, membership=MEMBERSHIP)
    if used:
        assert config.policy is not None
    copied = again(config)
    assert copied == config
    assert copied.policy == config.policy


def test_a_copy_with_other_values_has_other_rules_and_is_checked(config: CreditConfig) -> None:
    """Rules computed before do not outlive the values that they were computed from."""
    assert config.policy.tariff.prices["post"]["default"] == 10
    changed = config.model_copy(update={"costs": {"post": {"default": 0.25}}, "decimal_places": 2})
    assert changed.policy.tariff.prices == {"post": {"default": 25}}
    assert changed.policy.membership.caps == {"free": 10_000, "premium": 200_000}
    assert config.policy.tariff.prices["post"]["default"] == 10
    with pytest.raises(ConfigurationError) as error:
        config.model_copy(update={"decimal_places": 10})
    assert error.value.field == "decimal_places"
    membership = CreditConfig(**WHOLE).membership
    assert membership is not None
    again = CreditConfig(**WHOLE).model_copy(update={"membership": membership})
    assert again == CreditConfig(**WHOLE)


WHOLE: dict[str, Any] = {
    "costs": {
        "post": {"default": 10, "premium": 0.1},
        "exact": {"default": Decimal("0.1234567890123456789012"), "premium": Decimal("1E+3")},
        "tiny": {"default": 1e-07},
        "ai": {"default": "{token} * 0.001 + 10", "premium": "{a} > 1 ? {b} : 2"},
        'ünï "q" \\ code': {"default": 2.5},
    },
    "membership": {
        "tiers": {"free": 0, "premium": 1},
        "requirements": {"post": None, "image": "premium"},
        "credits_caps": {"free": 0.5, "premium": Decimal("2000.000000001")},
    },
    "retry": {"max_attempts": 3, "initial_delay_ms": 0.5},
    "collections": {"users": "people", "turns": "our_turns"},
    "users": {"id_type": "objectId", "credits": "balance"},
    "decimal_places": 9,
    "operation_timeout_seconds": 2.5,
    "on_busy": "wait",
}


@pytest.mark.parametrize(
    "values", [WHOLE, {"costs": {}}, {"costs": COSTS, "membership": MEMBERSHIP}]
)
def test_a_configuration_survives_a_round_trip_through_json(values: dict[str, Any]) -> None:
    """JSON keeps all digits and formulas. Plain values work, too."""
    config = CreditConfig(**values)
    written = config.to_json()
    again = CreditConfig.from_json(written)
    assert again == config
    assert again.policy == config.policy
    assert again.to_json() == written
    assert CreditConfig(**config.model_dump()) == config
    assert json.loads(written) == json.loads(json.dumps(json.loads(written)))
    assert json.loads(config.model_dump_json())["decimal_places"] == config.decimal_places


def test_json_is_written_as_a_person_would() -> None:
    """Formulas become their texts, and numbers stay as given."""
    written = CreditConfig(**WHOLE).to_json()
    assert '"default": "{token} * 0.001 + 10"' in written
    assert '"premium": 0.1\n' in written
    assert '"default": 0.1234567890123456789012,' in written
    assert '"premium": 2000.000000001\n' in written


def test_a_configuration_shows_what_differs_from_the_defaults() -> None:
    """``repr`` reads like Python code, and cuts long lists of prices short."""
    config = CreditConfig(
        costs={"post": {"default": 0.1, "premium": "{token} / 3"}},
        membership=MEMBERSHIP,
        collections={"users": "people"},
        users={"credits": "balance"},
        decimal_places=2,
    )
    assert repr(config) == (
        "CreditConfig(costs={'post': {'default': 0.1, 'premium': '{token} / 3'}}, "
        "membership=MembershipConfig(tiers={'free': 0, 'premium': 1}, "
        "requirements={'image': 'premium', 'post': None}, "
        "credits_caps={'free': 100, 'premium': 2000}), "
        "collections=CollectionNames(users='people'), users=UserMapping(credits='balance'), "
        "decimal_places=2)"
    )
    assert repr(CreditConfig(costs={})) == "CreditConfig(costs={})"
    many = repr(CreditConfig(costs={f"a{n}": {"default": n} for n in range(5000)}))
    assert "'a9': {'default': 9}, … 4990 more}" in many
    assert len(many) < 300


def test_rules_are_made_once_and_in_smallest_units() -> None:
    """With two decimal places, a credit is 100 units. Formulas stay as they are."""
    config = CreditConfig(
        costs={"post": {"default": 13.5, "premium": "{token} / 3"}},
        membership={
            "tiers": {"free": 0, "premium": 1},
            "requirements": {"post": None, "image": "premium"},
            "credits_caps": {"free": 0.005, "premium": 20},
        },
        decimal_places=2,
    )
    policy = config.policy
    assert policy is config.policy
    assert policy.tariff.units_per_credit == 100
    assert policy.tariff.prices == {
        "post": {"default": 1350, "premium": Formula.parse("{token} / 3")}
    }
    assert policy.membership.levels == {"free": 0, "premium": 1}
    assert policy.membership.requirements == {"image": "premium"}
    assert policy.membership.caps == {"free": 1, "premium": 2000}


def test_without_membership_the_rules_have_no_tiers() -> None:
    """No tier is known, required, or capped."""
    membership = CreditConfig(costs=COSTS).policy.membership
    assert (membership.levels, membership.requirements, membership.caps) == ({}, {}, {})


@pytest.mark.parametrize(
    ("failures", "milliseconds"), [(1, 20), (2, 40), (3, 80), (6, 640), (7, 1000), (10_000, 1000)]
)
def test_the_longest_delay_grows_up_to_max_delay_ms(failures: int, milliseconds: float) -> None:
    """Attempt n waits at most the first delay times the multiplier to the power n - 1, capped."""
    retry = RetryConfig(initial_delay_ms=20, max_delay_ms=1000, backoff_multiplier=2)
    assert retry.longest_delay_seconds(failures) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(("failures", "longest"), [(1, 0.02), (3, 0.08), (10_000, 1.0)])
def test_a_delay_is_drawn_from_zero_to_the_longest(failures: int, longest: float) -> None:
    """Full jitter keeps processes that failed together from retrying together."""
    retry = RetryConfig(initial_delay_ms=20, max_delay_ms=1000, backoff_multiplier=2)
    assert retry.delay_seconds(failures, lambda least, _most: least) == 0
    assert retry.delay_seconds(failures, lambda _least, most: most) == pytest.approx(longest)
    chance = random.Random(1)
    drawn = sorted(retry.delay_seconds(failures, chance.uniform) for _ in range(400))
    assert drawn[0] >= 0
    assert drawn[-1] <= longest
    for part in range(1, 4):
        assert drawn[part * 100] == pytest.approx(part * longest / 4, abs=longest / 10)


def test_two_processes_wait_for_different_times() -> None:
    """The draw is random by default."""
    retry = RetryConfig()
    assert len({retry.delay_seconds(5) for _ in range(20)}) > 10


def test_settings_are_read_only_under_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables such as URI and DATABASE belong to others, and would send the ledger elsewhere."""
    for name, value in (("URI", "mongodb://elsewhere/"), ("DATABASE", "elsewhere")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MONGODB_URI", raising=False)
    monkeypatch.setenv("MONGODB_DATABASE", "ours")
    settings = Settings()
    assert settings.uri == "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    assert settings.database == "ours"

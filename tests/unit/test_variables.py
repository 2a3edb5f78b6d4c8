"""A call's variables: which values count as numbers, and which a formula refuses."""

from __future__ import annotations

import enum
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from bson.decimal128 import Decimal128
from bson.int64 import Int64

from credit_mongo.core.formula import Formula
from credit_mongo.core.variables import Unusable, exact_variables, readable_variables
from credit_mongo.errors import InvalidRequestError, MissingVariableError


class Size(enum.IntEnum):
    LARGE = 3


class LoudFloat(float):
    def __repr__(self) -> str:
        return f"LoudFloat({float.__repr__(self)})"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (-5, "-5"),
        (10**18, "1000000000000000000"),
        (-(10**18), "-1000000000000000000"),
        (Int64(7), "7"),
        (Size.LARGE, "3"),
        (0.1, "1/10"),
        (-0.0, "0"),
        (1e18, "1000000000000000000"),
        (5e-324, "5e-324"),
        (LoudFloat(0.1), "1/10"),
        (Decimal("0.1"), "1/10"),
        (Decimal("-1.50"), "-3/2"),
        (Decimal("1E+18"), "1000000000000000000"),
        (Decimal("0E+9"), "0"),
        (Decimal("1E-400"), "1e-400"),
        (Decimal128("1.5E-7"), "1.5e-7"),
        (Fraction(1, 3), "1/3"),
        (Fraction(1, 10**400), "1e-400"),
        (np.int64(987), "987"),
        (np.uint8(255), "255"),
        (np.int64(-(2**59)), str(-(2**59))),
        (np.float64(0.1), "1/10"),
        (np.float32(0.1), "1/10"),
        (np.float16(0.5), "1/2"),
        (np.longdouble("1.5"), "3/2"),
    ],
)
def test_variables_become_exact(value: object, expected: str) -> None:
    """Numbers of every type become exact. A float becomes the decimal that it prints as."""
    exact = exact_variables({"a": value})
    assert exact == {"a": Fraction(expected)}
    assert isinstance(exact["a"], Fraction)
    assert type(exact["a"].numerator) is int
    assert type(exact["a"].denominator) is int


NO_NUMBERS = [
    (True, "must be a number, not bool"),
    (np.bool_(True), "must be a number, not bool"),
    ("987", "must be a number, not str"),
    (None, "must be a number, not NoneType"),
    (987j, "must be a number, not complex"),
    ([987], "must be a number, not list"),
    ({"$gt": 987}, "must be a number, not dict"),
    (np.array([987]), "must be a number, not ndarray"),
    (np.datetime64("1987-01-01"), "must be a number, not datetime64"),
    (object, "must be a number, not type"),
    (float("nan"), "finite"),
    (float("inf"), "finite"),
    (float("-inf"), "finite"),
    (np.float32("nan"), "finite"),
    (np.longdouble("inf"), "finite"),
    (Decimal("NaN"), "finite"),
    (Decimal("sNaN"), "finite"),
    (Decimal("-Infinity"), "finite"),
    (Decimal128("NaN"), "finite"),
    (10**18 + 1, "within"),
    (-(10**18) - 1, "within"),
    (10**5000, "within"),
    (np.uint64(2**63), "within"),
    (1.1e18, "within"),
    (1e308, "within"),
    (Decimal("1000000000000000000.1"), "within"),
    (Decimal("1e999999"), "within"),
    (Decimal("0e999999"), "within"),
    (Decimal128("1e6000"), "within"),
    (Fraction(10**19, 3), "within"),
    (Fraction(1, 10**400 + 1), "denominator"),
    (Decimal("1e-401"), "400 decimal places"),
    (Decimal("1e-999999"), "400 decimal places"),
    (Decimal("0." + "9" * 401), "400 decimal places"),
]


@pytest.mark.parametrize(
    ("value", "reason"), NO_NUMBERS, ids=[f"{type(v).__name__}-{r}" for v, r in NO_NUMBERS]
)
def test_a_variable_that_a_formula_uses_must_be_a_number(value: object, reason: str) -> None:
    """The error has the variable's name but not its value. Unused variables are never refused."""
    variables = exact_variables({"ok": 1, "size": value})
    assert Formula.parse("{ok} + 1").evaluate(variables) == 2
    with pytest.raises(InvalidRequestError) as caught:
        Formula.parse("{ok} ? 1 : {size}").evaluate(variables)
    assert caught.value.field == "variables.size"
    assert reason in caught.value.reason
    assert "987" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "1a", "a b", "a\n", "é", "a.b", "$where", "{a}", "a" * 65, 1, None, b"a", ("a",)]
)
def test_a_name_that_no_formula_can_use_is_dropped(name: object) -> None:
    """Such a name can be anything, so it appears in no message."""
    variables = exact_variables({name: 1, "b": 2})
    assert variables == {"b": 2}
    with pytest.raises(MissingVariableError) as caught:
        Formula.parse("{a}").evaluate(variables)
    assert caught.value.provided_variables == ("b",)


def test_a_providers_usage_object_is_accepted_as_it_is() -> None:
    """Nested parts and nulls are fine unless the price uses them."""
    usage: dict[str, Any] = {
        "prompt_tokens": 1200,
        "completion_tokens": 300,
        "prompt_tokens_details": {"cached_tokens": 1000, "audio_tokens": None},
        "service_tier": "default",
        "cost": None,
        "is_byok": False,
    }
    variables = exact_variables(usage)
    price = Formula.parse("{prompt_tokens} * 1.5e-07 + {completion_tokens} * 6e-07")
    assert price.evaluate(variables) == Fraction("0.00036")
    for wrong in ("prompt_tokens_details", "service_tier", "cost", "is_byok"):
        with pytest.raises(InvalidRequestError, match=rf"variables\.{wrong}: must be a number"):
            Formula.parse(f"{{{wrong}}} + {{prompt_tokens}}").evaluate(variables)
    assert readable_variables(variables, ["cost", "prompt_tokens"]) == {"prompt_tokens": 1200}


def test_an_unusable_variable_stays_unusable() -> None:
    """A recorded request can be decided again and gives the same reason."""
    first = exact_variables({"a": None})
    assert exact_variables(first) == first == {"a": Unusable("must be a number, not NoneType")}


@pytest.mark.parametrize("variables", [None, 5, "a", [("a", 1)], {"a"}])
def test_refuses_variables_that_are_not_a_mapping(variables: object) -> None:
    """Only a mapping gives numbers names."""
    with pytest.raises(InvalidRequestError, match="variables: must be a mapping"):
        exact_variables(variables)


def test_takes_at_most_two_hundred_names() -> None:
    """The limit counts every name, because each call looks through them all."""
    assert len(exact_variables({f"v{index}": None for index in range(200)})) == 200
    with pytest.raises(InvalidRequestError, match="at most 200"):
        exact_variables({f"v{index}": None for index in range(201)})


def test_leaves_the_given_mapping_alone() -> None:
    """The result is a new dict, so the caller's later changes affect no price."""
    given_variables = {"a": 1}
    exact = exact_variables(given_variables)
    given_variables["a"] = 2
    assert exact == {"a": 1}

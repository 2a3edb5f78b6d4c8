"""The variables of a call: exact numbers, and a reason for each value that isn't a number. Pure.

A call may pass more than its price needs, such as a provider's whole usage object with nested
parts and nulls. Which values must be numbers depends on the price. So a value that isn't a number
becomes `Unusable`, and only a formula that uses it refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Final, NamedTuple, TypeAlias

from credit_mongo.core.formula_parser import NAME
from credit_mongo.core.values import check_amount
from credit_mongo.errors import InvalidRequestError

__all__ = [
    "MAX_MAGNITUDE",
    "Unusable",
    "Variables",
    "check_price",
    "exact_variables",
    "numbers_of",
    "readable_variables",
    "refuse_both",
]

# More names than any usage object has, yet few enough to check in each call.
MAX_GIVEN: Final = 200
# For variables and results: more than any count or price, less than the 2**63 of BSON's int64.
MAX_MAGNITUDE: Final = 10**18
# The float 5e-324 has 324 places. A Decimal can have so many that they would fill the memory.
MAX_DECIMAL_PLACES: Final = 400
_LARGEST_DENOMINATOR: Final = 10**MAX_DECIMAL_PLACES


class Unusable(NamedTuple):
    """Replaces a value that isn't an exact number. ``reason`` says why, without the value."""

    reason: str


Variables: TypeAlias = Mapping[str, Fraction | Unusable]


def check_price(
    amount: object, variables: object, *, least: int = 1
) -> tuple[int | None, Variables | None]:
    """Check what a call says of its price: nothing, an amount of ``least`` units, or variables."""
    refuse_both(amount, variables)
    return (
        None if amount is None else check_amount("amount", amount, least=least),
        None if variables is None else exact_variables(variables),
    )


def refuse_both(amount: object, variables: object) -> None:
    """Raise InvalidRequestError if both are given. The two are ways to say one price."""
    if amount is not None and variables is not None:
        raise InvalidRequestError("amount", "cannot be combined with variables: give only one")


def exact_variables(variables: object) -> dict[str, Fraction | Unusable]:
    """Convert the variables of a call to exact numbers, for formulas.

    ``variables`` is a mapping with at most 200 names. Numbers of any type that is exact or prints
    as a decimal will do: ``int``, ``float``, ``Decimal``, ``Fraction``, BSON's ``Int64`` and
    ``Decimal128``, and NumPy's types. They must be within ±10**18 and have at most 400 decimal
    places. A float counts as the decimal number that it prints as: 0.1 is 1/10. All other values
    become `Unusable`. Keys that cannot be the name of a variable are left out, because no formula
    uses them.

    Raises InvalidRequestError if ``variables`` isn't a mapping or has more than 200 names.
    """
    if not isinstance(variables, Mapping):
        raise InvalidRequestError("variables", "must be a mapping of names to numbers")
    if len(variables) > MAX_GIVEN:
        raise InvalidRequestError(
            "variables", f"has {len(variables)} names, but at most {MAX_GIVEN} are allowed"
        )
    exact: dict[str, Fraction | Unusable] = {}
    for name, value in variables.items():
        if isinstance(name, str) and NAME.fullmatch(name) is not None:
            exact[name] = value if isinstance(value, Unusable) else _checked(value)
    return exact


def readable_variables(variables: Variables, names: Iterable[str]) -> dict[str, int | Decimal]:
    """Return the numbers of these names as people write them.

    A whole number is an ``int``, any other a ``Decimal`` with up to 34 digits.
    """
    context = Context(prec=34)
    numbers = {name: variables.get(name) for name in names}
    return {
        name: number.numerator
        if number.denominator == 1
        else context.divide(number.numerator, number.denominator)
        for name, number in numbers.items()
        if isinstance(number, Fraction)
    }


def _checked(value: object) -> Fraction | Unusable:
    try:
        return _exact(value)
    except ValueError as error:
        return Unusable(str(error))


def _exact(value: object) -> Fraction:
    """Return the exact number. Raise a ValueError that says what is wrong, without the value."""
    number = _rational(value)
    if number is None:
        number = _of_decimal(_decimal(value))
    if abs(number.numerator) > MAX_MAGNITUDE * number.denominator:
        raise ValueError("must be within ±10**18")
    return number


def _rational(value: object) -> Fraction | None:
    """Return a whole number or a fraction, or None if the value is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Fraction(int.__int__(value))  # the real value, even if a subclass overrides __int__
    if isinstance(value, bool) or not isinstance(value, Rational):
        return None
    if isinstance(value, Integral):
        return Fraction(int(value))
    number = Fraction(int(value.numerator), int(value.denominator))
    if number.denominator > _LARGEST_DENOMINATOR:
        raise ValueError(f"must have a denominator of at most 10**{MAX_DECIMAL_PLACES}")
    return number


def _decimal(value: object) -> Decimal:
    """Return the decimal number that the value is or prints as."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, float):
        # float's own repr, because subclasses such as NumPy's float64 print their type's name.
        return Decimal(float.__repr__(value))
    if type(value).__name__ == "Decimal128" and hasattr(value, "to_decimal"):
        return _decimal(value.to_decimal())  # a BSON type, which the core doesn't import
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return Decimal(str(value))  # such as NumPy's float32
        except InvalidOperation:
            raise ValueError("must print as a decimal number") from None
    raise ValueError(f"must be a number, not {type(value).__name__}")


def _of_decimal(decimal: Decimal) -> Fraction:
    if not decimal.is_finite():
        raise ValueError("must be a finite number")
    # Check before the conversion, which would write out all the zeros of 1e999999 and 1e-999999.
    places = -int(decimal.as_tuple().exponent)
    if max(decimal.adjusted(), places) > MAX_DECIMAL_PLACES:
        raise ValueError(
            f"must be within ±10**18, with at most {MAX_DECIMAL_PLACES} decimal places"
        )
    return Fraction(*decimal.as_integer_ratio())


def numbers_of(variables: Variables | None) -> list[tuple[str, str]] | None:
    """Return all numbers as text, sorted by name, for fingerprints.

    Whether the price uses them or not: a repeated request must match the first even if the prices
    have changed since.
    """
    if variables is None:
        return None
    given = variables.items()
    return sorted((name, str(n)) for name, n in given if isinstance(n, Fraction))

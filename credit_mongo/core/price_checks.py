"""What makes a price unusable, or doubtful, before anybody is charged. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Context
from fractions import Fraction
from typing import Final

from credit_mongo.core.formula import Formula
from credit_mongo.core.pricing import to_units
from credit_mongo.core.values import LARGEST_AMOUNT
from credit_mongo.errors import FormulaEvaluationError

__all__ = ["MOST_DECIMAL_PLACES", "why_it_can_be_free", "why_not_usable"]

MOST_DECIMAL_PLACES: Final = 9
# A formula of more is tried with one of everything only: checks must not take long.
_TRIED_ALONE: Final = 5


def why_not_usable(amount: Fraction | Formula, decimal_places: int) -> str | None:
    """Why no charge could take this number of credits, or this formula; None if one can.

    Of formulas with variables nothing is known before they are given.
    """
    if isinstance(amount, Formula):
        if amount.variables:
            return None
        try:
            amount = amount.evaluate({})
        except FormulaEvaluationError as error:
            return f"has no value: {error.cause}"
    if amount < 0:
        return f"must be from 0 to {LARGEST_AMOUNT}, not {_written(amount)}"
    units = to_units(amount, 10**decimal_places)
    if units > LARGEST_AMOUNT:
        return f"is more than {LARGEST_AMOUNT} units"
    if amount > 0 and units == 0:
        return f"is above 0 but rounds to 0 units: {_remedy(amount, decimal_places)}"
    return None


def why_it_can_be_free(formula: Formula, decimal_places: int) -> str | None:
    """How a formula with variables rounds a price above 0 to 0 units; None if it is not seen to.

    It is tried with 1 for all variables, and with 1 for each of a few and 0 for the others.
    """
    for variables in _smallest_uses(formula.variables):
        try:
            value = formula.evaluate(variables)
        except FormulaEvaluationError:
            continue
        if value > 0 and to_units(value, 10**decimal_places) == 0:
            shown = ", ".join(f"{name}={number}" for name, number in variables.items())
            return (
                f"the formula {formula.text!r} rounds to 0 units for small values such as {shown}, "
                f"though its price is above 0: {_remedy(value, decimal_places)}, "
                "or round up in the formula, as with ceil( )"
            )
    return None


def _smallest_uses(names: tuple[str, ...]) -> Iterator[Mapping[str, Fraction]]:
    if not names:
        return
    yield dict.fromkeys(names, Fraction(1))
    if 1 < len(names) <= _TRIED_ALONE:
        nothing = dict.fromkeys(names, Fraction(0))
        for name in names:
            yield {**nothing, name: Fraction(1)}


def _remedy(amount: Fraction, decimal_places: int) -> str:
    """How many decimal places would do: so many that it is exact, or else not nothing."""
    written = f"{_written(amount)} credits with decimal_places={decimal_places}"
    more = range(decimal_places + 1, MOST_DECIMAL_PLACES + 1)
    exact = (places for places in more if (amount * 10**places).denominator == 1)
    needed = next(exact, MOST_DECIMAL_PLACES)
    if to_units(amount, 10**needed) == 0:
        return (
            f"{written}, and {MOST_DECIMAL_PLACES} places, the most, are too few: "
            "let a credit be worth less, or price larger quantities"
        )
    return f"{written}; set decimal_places to {needed}"


def _written(amount: Fraction) -> str:
    return str(Context(prec=34).divide(amount.numerator, amount.denominator))

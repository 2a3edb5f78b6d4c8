"""Finds prices that are unusable or doubtful, before anybody is charged. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Context
from fractions import Fraction
from typing import Final

from credit_mongo.core.formula import Formula
from credit_mongo.core.pricing import to_units
from credit_mongo.core.values import LARGEST_AMOUNT, check_whole_number
from credit_mongo.errors import FormulaEvaluationError

__all__ = ["MAX_DECIMAL_PLACES", "check_decimal_places", "price_problem", "rounding_warning"]

MAX_DECIMAL_PLACES: Final = 9
# Formulas with more variables are only tried with all of them at once, to keep the check fast.
_MAX_TRIED_ALONE: Final = 5


def check_decimal_places(field: str, value: object) -> int:
    """Check how many decimal places a credit has: an int from 0 to 9."""
    return check_whole_number(field, value, 0, MAX_DECIMAL_PLACES)


def price_problem(amount: Fraction | Formula, decimal_places: int) -> str | None:
    """Return why no charge could take this price, a number of credits or a formula; else None.

    A formula with variables always passes, because its value depends on them.
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


def rounding_warning(formula: Formula, decimal_places: int) -> str | None:
    """Return for which small values a formula rounds a price above 0 to 0 units; None if for none.

    The check tries 1 for all variables. If there are only a few, it also tries 1 for each of them
    with 0 for the others.
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
                "or round up in the formula with ceil( )"
            )
    return None


def _smallest_uses(names: tuple[str, ...]) -> Iterator[Mapping[str, Fraction]]:
    if not names:
        return
    yield dict.fromkeys(names, Fraction(1))
    if 1 < len(names) <= _MAX_TRIED_ALONE:
        nothing = dict.fromkeys(names, Fraction(0))
        for name in names:
            yield {**nothing, name: Fraction(1)}


def _remedy(amount: Fraction, decimal_places: int) -> str:
    """Say how many decimal places make the amount exact or, if none do, at least not 0 units."""
    written = f"{_written(amount)} credits with decimal_places={decimal_places}"
    more = range(decimal_places + 1, MAX_DECIMAL_PLACES + 1)
    exact = (places for places in more if (amount * 10**places).denominator == 1)
    needed = next(exact, MAX_DECIMAL_PLACES)
    if to_units(amount, 10**needed) == 0:
        return (
            f"{written}, and {MAX_DECIMAL_PLACES} places, the maximum, are too few: "
            "make one credit worth less, or price larger quantities"
        )
    return f"{written}; set decimal_places to {needed}"


def _written(amount: Fraction) -> str:
    return str(Context(prec=34).divide(amount.numerator, amount.denominator))

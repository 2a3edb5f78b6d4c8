"""Prices: what an action costs for each tier, as a fixed price or a formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple, TypeAlias

from credit_mongo.core.formula import Formula
from credit_mongo.core.values import LARGEST_AMOUNT
from credit_mongo.core.variables import Variables, readable_variables
from credit_mongo.errors import (
    FormulaEvaluationError,
    MissingVariableError,
)

__all__ = ["DEFAULT_TIER", "Price", "Priced", "Tariff", "find_price", "in_credits", "to_units"]

DEFAULT_TIER: Final = "default"
"""Key of the price for users without a tier and for tiers that an action doesn't list."""

Price: TypeAlias = int | Formula
"""A number of smallest units, or a formula that gives credits."""


class Priced(NamedTuple):
    """A cost in smallest units. If a formula gave it, also its text and the variables it used."""

    cost: int
    formula: str | None = None
    variables: Mapping[str, int | Decimal] | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What the audit log tells of the formula. Nothing if there was none."""
        if self.formula is None:
            return {}
        used = self.variables or {}
        return {
            "formula": self.formula,
            "variables": {name: str(value) for name, value in used.items()},
        }


@dataclass(frozen=True, slots=True)
class Tariff:
    """All prices of a configuration, and how many smallest units one credit has."""

    prices: Mapping[str, Mapping[str, Price]]
    units_per_credit: int

    def evaluate(self, action: str, price: Price, variables: Variables | None) -> Priced:
        """Return the cost of an action at a price.

        If a formula needs variables and the call gives none, the action's ``default`` price counts
        instead, provided that it is fixed. A formula with a value below zero costs nothing.

        Raises MissingVariableError, FormulaEvaluationError, and InvalidRequestError if a variable
        that the formula uses isn't a number.
        """
        if isinstance(price, int):
            return Priced(price)
        if variables is None and price.variables:
            fallback = self.prices[action].get(DEFAULT_TIER)
            if isinstance(fallback, int):
                return Priced(fallback)
            raise MissingVariableError(price.text, next(iter(price.variables)), ())
        variables = variables or {}
        cost = to_units(price.evaluate(variables), self.units_per_credit)
        used = readable_variables(variables, price.variables)
        if cost > LARGEST_AMOUNT:
            cause = f"the cost is more than {LARGEST_AMOUNT} units"
            raise FormulaEvaluationError(price.text, used, cause)
        return Priced(max(cost, 0), price.text, used)


def find_price(prices: Mapping[str, Price], tier: str | None) -> Price | None:
    """Return the price for the tier in force, or None if that tier has no access."""
    if tier is not None and tier in prices:
        return prices[tier]
    return prices.get(DEFAULT_TIER)


def to_units(credits_due: Fraction, units_per_credit: int) -> int:
    """Convert credits to smallest units, rounded half up.

    Nothing else rounds, except functions that a formula calls.
    """
    exact = credits_due * units_per_credit
    return (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)


def in_credits(units: int, decimal_places: int) -> str:
    """Format smallest units as credits, for people: 135000 with two places is 1,350.00."""
    whole, part = divmod(abs(units), 10**decimal_places)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole:,}.{part:0{decimal_places}d}" if decimal_places else f"{sign}{whole:,}"

"""Prices in smallest units: exact, and rounded half up once, as decimal arithmetic does it."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from credit_mongo import CreditConfig
from credit_mongo.core.accounts import Account
from credit_mongo.core.formula import exact_variables
from credit_mongo.core.pricing import to_units

_NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
_WIDE = Context(prec=200)
_DECIMALS = st.decimals(
    min_value=-(10**12), max_value=10**12, allow_nan=False, allow_infinity=False, places=6
)


def _half_up(amount: Decimal, places: int) -> int:
    with localcontext(_WIDE):
        shifted = amount.scaleb(places) + Decimal("0.5")
        return int(shifted.to_integral_value(ROUND_FLOOR))


def _cost(config: CreditConfig, action: str, **variables: int | Decimal) -> int:
    account = Account("ann", 0, 1, None, None, _NOW, _NOW)
    return config.rules.quote(account, action, exact_variables(variables), _NOW).cost


@given(amount=_DECIMALS, places=st.integers(0, 9))
def test_units_are_credits_rounded_half_up(amount: Decimal, places: int) -> None:
    """Also where decimals end in a five, and below zero."""
    assert to_units(Fraction(amount), 10**places) == _half_up(amount, places)


@given(
    numerator=st.integers(-(10**20), 10**20),
    denominator=st.integers(1, 10**20),
    places=st.integers(0, 9),
)
def test_no_other_whole_number_is_nearer(numerator: int, denominator: int, places: int) -> None:
    """For any fraction; of two as near, it is the greater."""
    exact = Fraction(numerator, denominator) * 10**places
    units = to_units(Fraction(numerator, denominator), 10**places)
    assert -Fraction(1, 2) < units - exact <= Fraction(1, 2)


@given(
    rate=st.decimals(min_value=0, max_value=1000, places=5),
    base=st.integers(0, 1000),
    tokens=st.one_of(st.integers(0, 10**9), st.decimals(min_value=0, max_value=10**9, places=3)),
    places=st.integers(0, 4),
)
def test_a_formula_costs_what_decimal_arithmetic_says(
    rate: Decimal, base: int, tokens: int | Decimal, places: int
) -> None:
    """From the configuration's text to the units that are charged."""
    config = CreditConfig(
        costs={"ai": {"default": f"{{token}} * {rate:f} + {base}"}}, decimal_places=places
    )
    with localcontext(_WIDE):
        wanted = Decimal(tokens) * rate + base
    assert _cost(config, "ai", token=tokens) == _half_up(wanted, places)


@given(written=st.decimals(min_value=0, max_value=10**9, places=4), places=st.integers(0, 4))
def test_a_fixed_price_is_read_as_written(written: Decimal, places: int) -> None:
    """A float in the configuration is the decimal number that it prints as."""
    for given_as in (written, float(written)):
        config = CreditConfig(costs={"post": {"default": given_as}}, decimal_places=places)
        assert _cost(config, "post") == _half_up(Decimal(str(given_as)), places)

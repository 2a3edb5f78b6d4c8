"""Prices in smallest units: exact, and rounded half up once, as in decimal arithmetic."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from credit_mongo import CreditConfig
from credit_mongo.core.pricing import to_units
from credit_mongo.core.values import Account
from credit_mongo.core.variables import exact_variables

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
    return config.policy.quote(account, action, exact_variables(variables), _NOW).cost


@given(amount=_DECIMALS, places=st.integers(0, 9))
def test_units_are_credits_rounded_half_up(amount: Decimal, places: int) -> None:
    """This holds for decimals that end in a five, and below zero."""
    assert to_units(Fraction(amount), 10**places) == _half_up(amount, places)


@given(
    numerator=st.integers(-(10**20), 10**20),
    denominator=st.integers(1, 10**20),
    places=st.integers(0, 9),
)
def test_no_other_integer_is_nearer(numerator: int, denominator: int, places: int) -> None:
    """For any fraction, no other integer is nearer. Of two equally near, the greater is chosen."""
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
    """The whole way is exact, from the configuration's text to the units charged."""
    config = CreditConfig(
        costs={"ai": {"default": f"{{token}} * {rate:f} + {base}"}}, decimal_places=places
    )
    with localcontext(_WIDE):
        wanted = Decimal(tokens) * rate + base
    assert _cost(config, "ai", token=tokens) == _half_up(wanted, places)


@given(written=st.decimals(min_value=0, max_value=10**9, places=4), places=st.integers(0, 4))
def test_a_fixed_price_is_read_as_written(written: Decimal, places: int) -> None:
    """A float in the configuration counts as the decimal that it prints as."""
    units = _half_up(written, places)
    assume(units or not written)  # Other prices are refused.
    for given_as in (written, float(written)):
        config = CreditConfig(costs={"post": {"default": given_as}}, decimal_places=places)
        assert _cost(config, "post") == units


# Dollars per token for input, output and cached input, as public price lists give them.
_TOKEN_PRICES: tuple[tuple[str, ...], ...] = (
    ("0", "0"),
    ("0", "2.8e-07"),
    ("1.3e-10", "1.3e-10"),
    ("4e-09", "0.0"),
    ("1e-08", "1.2e-06", "0.0"),
    ("1.45e-08", "7e-08"),
    ("1.7e-08", "1.12e-07"),
    ("2e-08", "0"),
    ("2.8e-08", "1.1e-07", "6e-09"),
    ("3e-08", "1.3e-07", "6e-09"),
    ("3.0136e-08", "3.0136e-07", "6.027e-09"),
    ("3.7e-08", "1.48e-07", "9.25e-09"),
    ("4e-08", "7e-08", "2e-08"),
    ("4e-08", "4e-07", "3.6e-08"),
    ("4.15e-08", "0.0"),
    ("4.35e-08", "1.886e-07", "8.1e-09"),
    ("5.5e-08", "4.4e-07", "5.5e-09"),
    ("7e-08", "3.0002e-07", "7e-08"),
    ("7.5e-08", "3e-07", "3.75e-08"),
    ("1.0000000000000001e-07", "2.0000000000000002e-07", "2e-09"),
    ("1.05e-07", "2.1e-07", "2.1e-08"),
    ("1.2e-07", "5e-07", "4e-08"),
    ("1.4e-07", "2.8e-07", "0"),
    ("1.8e-07", "1.28e-06", "2e-08"),
    ("2.25e-07", "9e-07", "4.5e-08"),
    ("5e-07", "6e-06", "1.25e-07"),
    ("1.12e-06", "4.4e-06", "0.0"),
    ("0.000004", "0.00002", "2e-7"),
    ("1.65e-05", "0.000132"),
    ("2.75e-05", "0.0001375", "2.75e-06"),
    ("0.0001", "0.0"),
    ("1.142857142857143e-07", "4e-07", "3.2857142857142855e-08"),
    ("2.0000000000000002e-07", "1.2e-06", "2e-08"),
    ("0.0000021", "0.0000168", "0.00000021"),
    ("1.5e-05", "0.00012"),
    ("-1e-06", "2.5E-06"),
    ("1.", "+5", ".5"),
)
_TOKENS = (("input", 987_654), ("output", 32_123), ("cached", 1))


@pytest.mark.parametrize("prices", _TOKEN_PRICES, ids=",".join)
@pytest.mark.parametrize("places", [0, 2, 9])
def test_token_prices_charge_exactly_what_their_list_says(
    prices: tuple[str, ...], places: int
) -> None:
    """Each becomes a formula through an f-string, as text or a float, and loses nothing."""
    with localcontext(_WIDE):
        wanted = sum(
            (n * Decimal(price) for (_, n), price in zip(_TOKENS, prices, strict=False)), Decimal(0)
        )
    variables: dict[str, int | Decimal] = dict(_TOKENS)
    for written in (prices, tuple(map(float, prices))):
        named = zip(_TOKENS, written, strict=False)
        text = " + ".join(f"{{{name}}} * {price}" for (name, _), price in named)
        config = CreditConfig(costs={"llm": {"default": text}}, decimal_places=places)
        assert _cost(config, "llm", **variables) == max(_half_up(wanted, places), 0)

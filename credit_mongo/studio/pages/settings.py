"""The settings and prices of the configuration, and a calculator."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final

from starlette.responses import Response

from credit_mongo.config import CreditConfig
from credit_mongo.core.formula import Formula
from credit_mongo.core.pricing import DEFAULT_TIER, Price, find_price, in_credits
from credit_mongo.core.values import Account
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    CreditError,
    InvalidRequestError,
    MembershipRequiredError,
    MissingVariableError,
)
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]

_MOST_SHOWN: Final = 200
_ANY_TIME: Final = datetime(2000, 1, 1, tzinfo=timezone.utc)
_PREFIX: Final = "v."
"""In the address, a variable's name has this in front, so that it is no other question."""


async def _show(visit: Visit) -> Response:
    config = visit.studio.config
    facts: dict[str, Any] = {
        "calculation": _calculation(visit, config),
        "tiers": _tiers_of(config),
        "default_tier": DEFAULT_TIER,
        "prefix": _PREFIX,
    }
    if visit.is_fragment:
        return visit.render("calculation.html", **facts)
    return visit.render(
        "settings.html",
        title="Prices and settings",
        actions=sorted(config.costs)[:_MOST_SHOWN],
        actions_left=max(0, len(config.costs) - _MOST_SHOWN),
        prices=_prices(config, [DEFAULT_TIER, *_tiers_of(config)]),
        membership=config.membership,
        caps=dict(config.policy.membership.caps),
        settings=_settings(config),
        **facts,
    )


PAGES: Final = (Page("/settings", _show, title="Prices"),)


@dataclass(frozen=True, slots=True)
class _Calculation:
    """What an action costs a tier."""

    action: str
    tier: str
    variables: dict[str, str]
    """By name, as they were typed. All that the action's formulas use are here."""
    price: str
    cost: int | None = None
    problem: str = ""


def _calculation(visit: Visit, config: CreditConfig) -> _Calculation | None:
    action = visit.asked("action")
    if action is None:
        return None
    prices = config.policy.tariff.prices.get(action)
    if prices is None:
        raise InvalidRequestError("action", f"{action!r:.300} has no price in this configuration")
    tier = visit.asked("tier") or DEFAULT_TIER
    if tier not in (DEFAULT_TIER, *_tiers_of(config)):
        raise InvalidRequestError("tier", f"there is no tier {tier!r:.300}")
    formulas = [price for price in prices.values() if isinstance(price, Formula)]
    names = sorted({name for formula in formulas for name in formula.variables})
    typed = {name: visit.asked(f"{_PREFIX}{name}") or "" for name in names}
    in_force = None if tier == DEFAULT_TIER else tier
    price = find_price(prices, in_force)
    done = _Calculation(action, tier, typed, "" if price is None else _written(price, config))
    try:
        numbers = {name: _number(name, value) for name, value in typed.items() if value}
        somebody = Account("somebody", 0, 0, in_force, None, _ANY_TIME, _ANY_TIME)
        priced = config.policy.price(somebody, action, in_force, exact_variables(numbers) or None)
        return replace(done, cost=priced.cost)
    except MembershipRequiredError as error:
        needed = "another tier" if error.required is None else f"the tier {error.required!r}"
        return replace(done, problem=f"The action needs {needed}.")
    except MissingVariableError as error:
        return replace(done, problem=f"Give a number for {error.missing_variable}.")
    except CreditError as error:
        return replace(done, problem=f"{error}.")


def _number(name: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise InvalidRequestError(name, "must be a number") from None


def _tiers_of(config: CreditConfig) -> list[str]:
    levels = config.policy.membership.levels
    return sorted(levels, key=lambda tier: levels[tier])


def _written(price: Price, config: CreditConfig) -> str:
    return price.text if isinstance(price, Formula) else in_credits(price, config.decimal_places)


def _prices(config: CreditConfig, tiers: list[str]) -> dict[str, list[str]]:
    """Of each action, its price for each tier, as charges find it. Empty: no access."""
    table = {}
    for action in sorted(config.costs)[:_MOST_SHOWN]:
        prices = config.policy.tariff.prices[action]
        found = [find_price(prices, None if tier == DEFAULT_TIER else tier) for tier in tiers]
        table[action] = ["" if price is None else _written(price, config) for price in found]
    return table


def _settings(config: CreditConfig) -> dict[str, Any]:
    """All but prices and tiers. Nothing of it is secret: a configuration has no address."""
    facts = json.loads(config.to_json())
    return {name: value for name, value in facts.items() if name not in ("costs", "membership")}

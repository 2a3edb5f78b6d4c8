"""Configurations: each price as the library reads it, beside a function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from credit_mongo import CreditConfig, MembershipInput

Variables: TypeAlias = Mapping[str, Fraction]


@dataclass(frozen=True)
class Price:
    """A price in credits. ``means`` raises ZeroDivisionError where the price has no value."""

    written: int | float | str
    variables: tuple[str, ...] = ()
    means: Callable[[Variables], Fraction] = lambda _: Fraction(0)

    @property
    def is_fixed(self) -> bool:
        """Whether the price is a number."""
        return not isinstance(self.written, str)


def fixed(written: float) -> Price:
    """Return a fixed price, exactly as written."""
    return Price(written, (), lambda _: Fraction(str(written)))


def _per_token(written: str, rate: str, base: int) -> Price:
    return Price(written, ("token",), lambda v: v["token"] * Fraction(rate) + base)


PRICES: Mapping[str, Mapping[str, Price]] = {
    "generate-post": {"default": fixed(10), "premium": fixed(8), "enterprise": fixed(5)},
    "ai-completion": {
        "default": _per_token("{token} * 0.001 + 10", "0.001", 10),
        "premium": _per_token("{token} * 0.0008 + 8", "0.0008", 8),
    },
    "generate-image": {"premium": fixed(20), "enterprise": fixed(15)},
    "translate": {
        "default": fixed(3),
        "premium": Price("{words} / 100", ("words",), lambda v: v["words"] / 100),
    },
    "share": {
        "default": Price(
            "({a} + {b}) / {parts}", ("a", "b", "parts"), lambda v: (v["a"] + v["b"]) / v["parts"]
        )
    },
    "rebate": {"default": Price("{used} - 20", ("used",), lambda v: v["used"] - 20)},
    "bulk": {
        "default": Price(
            "{n} > 100 && !({n} == 500) ? {n} * 0.5 : {n}",
            ("n",),
            lambda v: v["n"] / 2 if v["n"] > 100 and v["n"] != 500 else v["n"],
        )
    },
    "render": {"default": Price("{n} * 100000000000", ("n",), lambda v: v["n"] * 10**11)},
    "nothing": {"default": fixed(0)},
    "flat": {"default": Price("1 / 3 * 4.5", (), lambda _: Fraction(3, 2))},
}
CENTS: Mapping[str, Mapping[str, Price]] = {
    **PRICES,
    "generate-post": {"default": fixed(13.5), "premium": fixed(0.005), "enterprise": fixed(0.014)},
    "generate-image": {"enterprise": fixed(0.125)},
}


@dataclass(frozen=True)
class Configuration:
    """A configuration as the model knows it.

    Caps are in credits. Without ``levels`` it has no tiers.
    """

    name: str
    prices: Mapping[str, Mapping[str, Price]]
    levels: Mapping[str, int]
    requirements: Mapping[str, str]
    caps: Mapping[str, str]
    decimal_places: int = 0
    remembers_for_seconds: int = 3600
    takes_keys: bool = True
    audits: bool = True
    on_change: Literal["cap", "raise", "add", "keep"] = "cap"

    def for_the_library(self) -> CreditConfig:
        """Return the configuration as the library reads it."""
        membership: MembershipInput = {
            "tiers": dict(self.levels),
            "requirements": dict(self.requirements),
            "credits_caps": {tier: float(cap) for tier, cap in self.caps.items()},
            "on_change": self.on_change,
        }
        return CreditConfig(
            costs={
                action: {tier: price.written for tier, price in by_tier.items()}
                for action, by_tier in self.prices.items()
            },
            membership=membership if self.levels else None,
            decimal_places=self.decimal_places,
            idempotency={"enabled": self.takes_keys, "ttl_seconds": self.remembers_for_seconds},
            audit={"enabled": self.audits},
            operation_timeout_seconds=60,
        )


_TIERS = {"free": 0, "premium": 1, "enterprise": 2}
_REQUIREMENTS = {"generate-image": "premium", "view-reports": "enterprise"}

CONFIGURATIONS: Mapping[str, Configuration] = {
    each.name: each
    for each in (
        Configuration(
            "whole",
            PRICES,
            _TIERS,
            _REQUIREMENTS,
            {"free": "100", "premium": "2000", "enterprise": "10000"},
        ),
        Configuration(
            "cents",
            CENTS,
            # Two tiers at one level: neither is an upgrade of the other.
            {**_TIERS, "partner": 2},
            _REQUIREMENTS,
            {"free": "0", "premium": "19.995", "enterprise": "49.5", "partner": "1"},
            decimal_places=2,
            remembers_for_seconds=60,
        ),
        Configuration(
            "cents without partners",
            CENTS,
            _TIERS,
            {"generate-post": "premium"},
            {"free": "0.5", "premium": "20", "enterprise": "7.25"},
            decimal_places=2,
            on_change="add",
        ),
        Configuration("without tiers", PRICES, {}, {}, {}, remembers_for_seconds=1),
        Configuration(
            "without records",
            PRICES,
            _TIERS,
            {},
            {"free": "1", "premium": "2", "enterprise": "3"},
            takes_keys=False,
            audits=False,
            on_change="raise",
        ),
    )
}

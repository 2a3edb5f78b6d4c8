"""Balances that an application kept in a form of its own, and what they become. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final, Literal, TypeAlias

from bson.decimal128 import Decimal128

from credit_mongo.core.values import LARGEST_AMOUNT

__all__ = ["BalanceKind", "Floats", "Negative", "OldBalance", "Rules", "Unit"]

Floats: TypeAlias = Literal["round", "refuse"]
Negative: TypeAlias = Literal["zero", "debt", "refuse"]
Unit: TypeAlias = Literal["units", "credits"]
BalanceKind: TypeAlias = Literal["whole", "float", "string", "Decimal128", "not a number"]

_NUMBER: Final = re.compile(r"\s*[+-]?\d{1,40}(\.\d{1,40})?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rules:
    """How to convert balances. What no rule allows stays as it is."""

    floats: Floats = "refuse"
    """For what is not a whole number: "round" half up to the smallest unit."""
    negative: Negative = "refuse"
    """For what is below zero: "zero" forgives it, "debt" keeps it with an overdraft."""
    unit: Unit = "units"
    decimal_places: int = 0


@dataclass(frozen=True, slots=True)
class OldBalance:
    """A balance in a document without a transaction of the ledger."""

    user_id: str
    kind: BalanceKind
    value: Any
    units: int | None
    """The balance in smallest units. None if it can't be one."""

    @classmethod
    def of(cls, user_id: str, value: Any, rules: Rules) -> OldBalance:
        """Read what a document has."""
        kind, number = _number(value)
        units = None if number is None else _units(number, rules)
        return cls(user_id, kind if units is not None else "not a number", value, units)

    def lacks(self, rules: Rules) -> str:
        """Return the rule that is missing to convert it, or "" if there is none missing."""
        if self.units is None:
            return "can't be converted"
        if self.kind != "whole" and rules.floats == "refuse":
            return "needs --floats round"
        if self.units < 0 and rules.negative == "refuse":
            return "needs --negative zero or debt"
        return ""

    def to_dict(self, rules: Rules) -> Mapping[str, Any]:
        """Return the facts for JSON."""
        facts = {"user_id": self.user_id, "kind": self.kind, "value": f"{self.value!s:.60}"}
        return {**facts, "units": self.units, "lacks": self.lacks(rules)}


def _number(value: Any) -> tuple[BalanceKind, Decimal | None]:
    if isinstance(value, bool):
        return "not a number", None
    if isinstance(value, int):
        return "whole", Decimal(int(value))
    if isinstance(value, float):
        # As people see it: 0.1 is a tenth.
        return "float", Decimal(repr(value))
    if isinstance(value, Decimal128):
        return "Decimal128", value.to_decimal()
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return "string", Decimal(value.strip())
    return "not a number", None


def _units(number: Decimal, rules: Rules) -> int | None:
    if not number.is_finite() or number.adjusted() > len(str(LARGEST_AMOUNT)):
        return None
    scale = rules.decimal_places if rules.unit == "credits" else 0
    units = int(number.scaleb(scale).to_integral_value(ROUND_HALF_UP))
    return units if abs(units) <= LARGEST_AMOUNT else None

"""A paid request's order, and the payment or the hold that its handler gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from credit_mongo.core.holds import Overage, Timeout
from credit_mongo.core.variables import Unusable, Variables
from credit_mongo.engine.open_holds import OpenHold
from credit_mongo.errors import HoldClosedError

__all__ = [
    "Held",
    "Order",
    "Paid",
    "Terms",
    "stored_variables",
    "variables_of",
]

Stored: TypeAlias = Mapping[str, str | Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Paid:
    """A handler's payment: ``cost`` in smallest units, by the charge ``transaction_id``.

    ``replayed``: the request was completed before. Give the same answer again and do nothing else.
    """

    transaction_id: str
    user_id: str
    action: str
    cost: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Credits that are held for a request until its response has ended.

    ``replayed``: the request was completed before. Give the same answer again and do nothing else.
    """

    hold_id: str
    user_id: str
    action: str
    replayed: bool = False
    _open: OpenHold | None = field(default=None, repr=False, compare=False)

    def use(
        self, *, amount: int | None = None, variables: Mapping[str, object] | None = None
    ) -> None:
        """Note what was used so far, a total, as `OpenHold.use` does."""
        if self._open is None:
            raise HoldClosedError(self.hold_id, "captured")
        self._open.use(amount=amount, variables=variables)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request's hold is to be placed."""

    ttl: float
    overage: Overage
    on_timeout: Timeout


@dataclass(frozen=True, slots=True)
class Order:
    """What a request pays for. ``fingerprint`` is the same for repeats of the request."""

    user_id: str
    action: str
    fingerprint: str
    amount: int | None = None
    variables: Variables | None = None
    key: str | None = field(default=None, repr=False)
    answers_again: bool = False


def stored_variables(variables: Variables | None) -> Stored | None:
    """Variables as a run stores them: numbers as text, other values as the reason against them."""
    if variables is None:
        return None
    return {
        name: value._asdict() if isinstance(value, Unusable) else str(value)
        for name, value in variables.items()
    }


def variables_of(stored: Stored | None) -> Variables | None:
    """The variables that a run stores."""
    if stored is None:
        return None
    return {
        name: Fraction(value) if isinstance(value, str) else Unusable(**value)
        for name, value in stored.items()
    }

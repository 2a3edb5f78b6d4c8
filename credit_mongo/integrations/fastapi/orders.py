"""What a paid request asks for, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from credit_mongo.core.variables import Unusable, Variables
from credit_mongo.errors import CreditError

__all__ = [
    "Order",
    "Paid",
    "RequestCompletedError",
    "RequestInProgressError",
    "stored_variables",
    "variables_of",
]

Stored: TypeAlias = Mapping[str, str | Mapping[str, str]]


class RequestInProgressError(CreditError):
    """A request with this key is being worked on, or settled; retry when it may have ended."""

    code = "REQUEST_IN_PROGRESS"

    def __init__(self) -> None:
        super().__init__("a request with this idempotency key is in progress: retry it later")


class RequestCompletedError(CreditError):
    """The request was done, and paid by this transaction; it is not done again."""

    code = "REQUEST_COMPLETED"

    def __init__(self, transaction_id: str) -> None:
        super().__init__("the request with this idempotency key was completed before")
        self.transaction_id = transaction_id


@dataclass(frozen=True, slots=True)
class Paid:
    """What a handler was paid: ``cost`` in smallest units, by the charge ``transaction_id``.

    ``replayed``: the request was completed before. Give the same answer again, do nothing.
    """

    transaction_id: str
    user_id: str
    action: str
    cost: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks for. ``fingerprint`` is the same for repetitions of the request."""

    user_id: str
    action: str
    fingerprint: str
    amount: int | None = None
    variables: Variables | None = None
    key: str | None = field(default=None, repr=False)
    answers_again: bool = False


def stored_variables(variables: Variables | None) -> Stored | None:
    """Variables as a run keeps them: numbers as text, and why the others are none."""
    if variables is None:
        return None
    return {
        name: value._asdict() if isinstance(value, Unusable) else str(value)
        for name, value in variables.items()
    }


def variables_of(stored: Stored | None) -> Variables | None:
    """The variables that a run keeps."""
    if stored is None:
        return None
    return {
        name: Fraction(value) if isinstance(value, str) else Unusable(**value)
        for name, value in stored.items()
    }

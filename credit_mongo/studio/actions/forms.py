"""Fields of a form, and what was typed into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    check_identifier,
    check_optional,
)
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.moments import parse_moment
from credit_mongo.studio.amounts import units_of

__all__ = ["REASON", "Field", "Typed"]

Kind: TypeAlias = Literal["text", "amount", "number", "moment", "choice", "flag"]
_SHORT_NUMBER: Final = 4


@dataclass(frozen=True, slots=True)
class Field:
    """A field. Its name is the one by which the ledger's errors call it."""

    name: str
    label: str
    hint: str = ""
    kind: Kind = "text"
    is_required: bool = False
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    """Values and the words for them. For a text: suggestions."""


REASON: Final = Field(
    "reason", "Reason", "Kept in the audit log, with your name.", is_required=True
)


class Typed:
    """What was typed, read field by field. Raises InvalidRequestError with the field's name."""

    def __init__(self, values: Mapping[str, str], decimal_places: int) -> None:
        self._values = values
        self._decimal_places = decimal_places

    def text(self, name: str) -> str:
        """A text of 1 to 255 characters."""
        if not (value := self._value(name)):
            raise InvalidRequestError(name, "is missing")
        return check_identifier(name, value)

    def optional_text(self, name: str) -> str | None:
        """The same, or None."""
        return check_optional(check_identifier, name, self._value(name) or None)

    def amount(self, name: str) -> int:
        """An amount above zero, in smallest units."""
        if not (value := self._value(name)):
            raise InvalidRequestError(name, "is missing")
        units = units_of(name, value, self._decimal_places)
        if units < 1:
            raise InvalidRequestError(name, "must be more than zero")
        if units > LARGEST_AMOUNT:
            raise InvalidRequestError(name, "is more than one operation can move")
        return units

    def optional_amount(self, name: str) -> int | None:
        """The same, or None."""
        return self.amount(name) if self._value(name) else None

    def number(self, name: str, otherwise: int) -> int:
        """A whole number."""
        value = self._value(name)
        if not value:
            return otherwise
        if not (value.isascii() and value.isdigit() and len(value) <= _SHORT_NUMBER):
            raise InvalidRequestError(name, "must be a whole number")
        return int(value)

    def moment(self, name: str) -> datetime | None:
        """A moment in UTC, or None."""
        value = self._value(name)
        return parse_moment(name, value) if value else None

    def flag(self, name: str) -> bool:
        """Whether a box is ticked."""
        return self._value(name) == "yes"

    def one_of(self, field: Field) -> str:
        """One of the field's choices."""
        value = self._value(field.name)
        if value not in {choice for choice, _ in field.choices}:
            raise InvalidRequestError(field.name, "is none of the choices")
        return value

    def _value(self, name: str) -> str:
        return self._values.get(name, "").strip()

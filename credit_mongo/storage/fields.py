"""The fields of stored rows, read as what the ledger writes, whatever other software stored there.

Each is given exactly as it is stored, or an AccountDataError names the row, the field and what it
holds. Nothing is rounded, and nothing raises another error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from bson import Decimal128, ObjectId
from bson.datetime_ms import DatetimeMS

from credit_mongo.errors import AccountDataError

__all__ = ["StoredFields", "described", "exact_whole", "milliseconds"]

# Every whole number up to it has a double of its own; beyond, two may share one.
_LARGEST_EXACT_DOUBLE: Final = 2**53 - 1


def exact_whole(value: object) -> int | None:
    """The whole number that a value is, exactly; None if it is none. A bool is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and abs(value) <= _LARGEST_EXACT_DOUBLE and value.is_integer():
        return int(value)
    return None


def milliseconds(moment: datetime | DatetimeMS) -> int:
    """Since 1970, as BSON has it, also of a date that Python has no year for."""
    return int(moment if isinstance(moment, DatetimeMS) else DatetimeMS(moment))


def described(value: object) -> str:
    """What a stored value is, for an error: numbers and dates in full, of all else the type."""
    if value is None:
        return "is missing"
    if isinstance(value, DatetimeMS):
        return f"lies outside the years 1 to 9999 ({int(value)} ms since 1970)"
    if isinstance(value, int | float | Decimal128) and not isinstance(value, bool):
        return f"is {value}"
    return f"is of the type {type(value).__name__}"


class StoredFields:
    """One row of a user's."""

    def __init__(self, row: Mapping[str, Any], user_id: str) -> None:
        self._row = row
        self._user_id = user_id

    @property
    def row_id(self) -> str:
        """Its ``_id`` as callers see it, whatever its type."""
        return str(self._row.get("_id"))

    def checked_id(self) -> str:
        """The same of an ObjectId or a string, by which a page can go on from the row."""
        if isinstance(self._row.get("_id"), ObjectId | str):
            return self.row_id
        raise self._wrong("_id", "an ObjectId or a string")

    def text(self, name: str) -> str:
        """A string that has to be there."""
        value = self._row.get(name)
        if isinstance(value, str):
            return value
        raise self._wrong(name, "a string")

    def optional_text(self, name: str) -> str | None:
        """A string, or None if the field is missing or null."""
        return None if self._row.get(name) is None else self.text(name)

    def whole_number(self, name: str) -> int:
        """A number of smallest units that has to be there."""
        number = exact_whole(self._row.get(name))
        if number is None:
            raise self._wrong(name, "a whole number of smallest units (int64)")
        return number

    def optional_count(self, name: str) -> int:
        """A whole number from 0 on; 0 if it is missing or null."""
        value = self._row.get(name)
        number = 0 if value is None else exact_whole(value)
        if number is None or number < 0:
            raise self._wrong(name, "a whole number (int64) from 0 on")
        return number

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """One of these strings, which has to be there."""
        value = self._row.get(name)
        if isinstance(value, str) and value in allowed:
            return value
        raise self._wrong(name, f"one of {', '.join(allowed)}")

    def moment(self, name: str) -> datetime:
        """A date that has to be there."""
        value = self._row.get(name)
        if isinstance(value, datetime):
            return value
        raise self._wrong(name, "a date of the years 1 to 9999")

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A subdocument; an empty one if it is missing or null."""
        value = self._row.get(name)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        raise self._wrong(name, "a document")

    def _wrong(self, name: str, wanted: str) -> AccountDataError:
        reason = f"{described(self._row.get(name))}: it must be {wanted}"
        return AccountDataError(self._user_id, name, reason, row_id=self.row_id)

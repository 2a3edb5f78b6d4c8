"""The values of a Credit SDK's rows, read exactly, from whatever database they come. Pure."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone, tzinfo
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from bson import Decimal128, ObjectId

from credit_mongo.core.values import LARGEST_BALANCE, to_milliseconds
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.moments import read_moment
from credit_mongo.storage.rows import Raw, checked_metadata

__all__ = [
    "ValueRefusedError",
    "amount_of",
    "id_text",
    "metadata_of",
    "moment_of",
    "number_of",
    "row_id_of",
    "to_units",
]

_NUMBER: Final = re.compile(r"\s*[+-]?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,2})?\s*", re.ASCII)
_DIGITS: Final = re.compile(r"-?\d{1,15}", re.ASCII)
_MOMENT: Final = re.compile(r"(\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(?::\d{2})?)(\.\d{1,9})?(.{0,10})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ROW_ID_BYTES: Final = 12


class ValueRefusedError(Exception):
    """A value that can't be imported. ``reason`` says why, without the value if it is secret."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


def id_text(field: str, value: object) -> str:
    """Return an id as the ledger has ids: as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, UUID | ObjectId):
        return str(value)
    raise _refused(field, value, "an id")


def row_id_of(kind: str, source_id: object) -> ObjectId:
    """Return the ``_id`` of a row: the same for each run. An ObjectId stays what it is."""
    if isinstance(source_id, ObjectId):
        return source_id
    named = f"{kind}:{source_id}".encode("utf-8", "surrogatepass")
    return ObjectId(blake2b(named, digest_size=_ROW_ID_BYTES).digest())


def number_of(field: str, value: object) -> Decimal:
    """Return a number exactly. A float is the number that its shortest text says: 0.1 is a tenth.

    Raises ValueRefusedError.
    """
    if isinstance(value, bool):
        raise _refused(field, value, "a number")
    number: Decimal | None = None
    if isinstance(value, int):
        number = Decimal(int(value))
    elif isinstance(value, Decimal):
        number = value
    elif isinstance(value, float):
        number = Decimal(repr(value))
    elif isinstance(value, Decimal128):
        number = value.to_decimal()
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        number = Decimal(value.strip())
    if number is None or not number.is_finite():
        raise _refused(field, value, "a number")
    return number


def to_units(field: str, number: Decimal, decimal_places: int, *, rounded: bool = False) -> int:
    """Return the smallest units. ``rounded``: half up. Raises ValueRefusedError otherwise."""
    if number.adjusted() > len(str(LARGEST_BALANCE)):
        raise ValueRefusedError(field, f"is {number:.6E}, which is too large")
    try:
        scaled = number.scaleb(decimal_places)
        whole = scaled.to_integral_value(ROUND_HALF_UP)
    except InvalidOperation:
        raise ValueRefusedError(field, f"is {number:.6E}, which can't be converted") from None
    if scaled != whole and not rounded:
        places = "no decimal places" if not decimal_places else f"{decimal_places} decimal places"
        raise ValueRefusedError(field, f"is {number}, but a credit has {places}")
    if abs(whole) > LARGEST_BALANCE:
        raise ValueRefusedError(field, f"is {number}, which is too large")
    return int(whole)


def amount_of(field: str, value: object, decimal_places: int, *, rounded: bool = False) -> int:
    """Return a number of credits in smallest units. Raises ValueRefusedError."""
    if type(value) is int and not decimal_places and abs(value) <= LARGEST_BALANCE:
        return value
    return to_units(field, number_of(field, value), decimal_places, rounded=rounded)


def moment_of(field: str, value: object, zone: tzinfo = timezone.utc) -> datetime:
    """Return a moment in UTC, in whole milliseconds. ``zone`` is that of dates without one.

    SQLite has no dates: Prisma stores milliseconds since 1970 or ISO 8601 text there.
    """
    try:
        if isinstance(value, datetime):
            return to_milliseconds(value if value.tzinfo is not None else _at(value, zone))
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return _from_milliseconds(int(value))
        if isinstance(value, str):
            if _DIGITS.fullmatch(value):
                return _from_milliseconds(int(value))
            return to_milliseconds(read_moment(_six_digits(value), zone))
    except (ValueError, OverflowError):
        pass
    raise _refused(field, value, "a date")


def _at(value: datetime, zone: tzinfo) -> datetime:
    return value.replace(tzinfo=zone)


def _from_milliseconds(value: int) -> datetime:
    seconds, milliseconds = divmod(value, 1000)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.replace(microsecond=milliseconds * 1000)


def _six_digits(text: str) -> str:
    """Return the moment with six digits of a second: some versions of Python take no others."""
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        return text
    begin, fraction, zone = match.groups()
    return f"{begin}{'' if fraction is None else f'{fraction[:7]:0<7}'}{zone.strip()}"


def metadata_of(field: str, value: object) -> Raw | None:
    """Return metadata as the ledger has it: a mapping, or None for none. Raises ValueRefusedError.

    Drivers give JSON as text or as the values that it stands for.
    """
    value = parsed(field, value)
    if not value and (value is None or isinstance(value, dict)):
        return None
    if not isinstance(value, dict):
        raise ValueRefusedError(field, "is not a JSON object")
    try:
        return checked_metadata(value)
    except InvalidRequestError as error:
        raise ValueRefusedError(field, error.reason) from None


def parsed(field: str, value: object) -> Any:
    """Return what JSON stands for. Raises ValueRefusedError."""
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("utf-8", "replace")
    if not isinstance(value, str):
        return value
    try:
        return _DECODER.decode(value)
    except (ValueError, RecursionError):
        raise ValueRefusedError(field, "is not JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def _refused(field: str, value: object, wanted: str) -> ValueRefusedError:
    if value is None:
        return ValueRefusedError(field, "is NULL")
    shown = f"{value!r:.60}" if isinstance(value, str | int | float | Decimal) else ""
    what = shown or f"of the type {type(value).__name__}"
    return ValueRefusedError(field, f"is {what}, which is not {wanted}")

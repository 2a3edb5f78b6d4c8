"""Reads and writes configurations as JSON. Reading is strict; writing keeps every number exact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from credit_mongo.core.formula import Formula
from credit_mongo.errors import ConfigurationError

__all__ = ["MAX_JSON_LENGTH", "parse_json", "to_json_text", "written_price"]

# Ten times a price list of 1,000 models with a formula each. Reading that much takes some seconds.
MAX_JSON_LENGTH: Final = 1_000_000
# More than any number in a configuration has, yet few enough for Python to read as an int.
_MOST_DIGITS: Final = 1_000
_EXTREME_EXPONENT: Final = 999_999
_BYTE_ORDER_MARK = "\ufeff"


def parse_json(text: object) -> dict[str, Any]:
    """Parse a JSON object. Numbers with a fraction become decimals, exactly as written.

    ``text`` is a str, or bytes in UTF-8, UTF-16 or UTF-32. A byte order mark is ignored. Raises
    ConfigurationError if the text isn't a JSON object, has more than 1,000,000 characters or bytes,
    or contains an object with the same key twice. (Python would silently take the last one.)
    """
    if not isinstance(text, str | bytes):
        raise ConfigurationError("", f"must be a str or bytes, not {type(text).__name__}")
    if len(text) > MAX_JSON_LENGTH:
        raise ConfigurationError("", f"is longer than {MAX_JSON_LENGTH:,} characters")
    try:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        decoded = decoded.removeprefix(_BYTE_ORDER_MARK)
        if not decoded.strip():
            raise ConfigurationError("", "is empty, but must be JSON")
        read = json.loads(decoded, parse_float=_decimal, parse_int=_whole, object_pairs_hook=_Pairs)
        values = _plain(read, ())
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise ConfigurationError("", f"is not JSON: {error.msg} ({position})") from None
    except (ValueError, RecursionError):
        raise ConfigurationError("", "is not JSON") from None
    if not isinstance(values, dict):
        raise ConfigurationError("", "must be a JSON object")
    return values


def _decimal(text: str) -> Decimal:
    """Return the number. A longer exponent than Decimal takes becomes one just as far out of range.

    Decimal takes exponents of up to 18 digits.
    """
    digits, _, exponent = text.lower().partition("e")
    if len(exponent) > len(str(_EXTREME_EXPONENT)) + 1:
        exponent = f"{'-' if exponent.startswith('-') else ''}{_EXTREME_EXPONENT}"
    return Decimal(f"{digits}e{exponent}" if exponent else digits)


def _whole(text: str) -> int | Decimal:
    # Python refuses to read thousands of digits as an int. As a Decimal, the number reaches the
    # check of its field, which refuses it with the field's name.
    return int(text) if len(text) <= _MOST_DIGITS else Decimal(text)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as written, with repeated keys."""


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, _Pairs):
        found: dict[str, Any] = {}
        for key, item in value:
            if key in found:
                field = ".".join((*path, key))
                raise ConfigurationError(field, "this key appears twice: remove one of them")
            found[key] = _plain(item, (*path, key))
        return found
    if isinstance(value, list):
        return [_plain(item, (*path, str(number))) for number, item in enumerate(value)]
    return value


def written_price(price: Fraction | Formula) -> int | float | Decimal | str:
    """Return a price or a number of credits as people write it in a configuration."""
    if isinstance(price, Formula):
        return price.text
    if price.denominator == 1:
        return price.numerator
    # A float if it reads back as exactly this number, which is the usual case.
    nearest = float(price)
    return nearest if Fraction(repr(nearest)) == price else _exact_decimal(price)


def _exact_decimal(number: Fraction) -> Decimal:
    """Return a number that was read from a decimal as a decimal again, with all of its digits."""
    places, power = 0, 1
    while power % number.denominator:
        places, power = places + 1, power * 10
    digits = tuple(int(digit) for digit in str(number.numerator * power // number.denominator))
    return Decimal((0, digits, -places))


def to_json_text(value: object, indent: int = 0) -> str:
    """Return indented JSON. Unlike the ``json`` module, write decimals with all of their digits."""
    if isinstance(value, Mapping):
        margin = " " * (indent + 2)
        lines = [
            f"{margin}{json.dumps(key, ensure_ascii=False)}: {to_json_text(item, indent + 2)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}" if lines else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(to_json_text(item, indent) for item in value)}]"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

"""Amounts as people type them, in credits."""

from __future__ import annotations

import re
from typing import Final

from credit_mongo.core.values import LARGEST_BALANCE
from credit_mongo.errors import InvalidRequestError

__all__ = ["units_of"]

# Commas only where they part thousands: "1,5" is one and a half to some, and fifteen to nobody.
_NUMBER: Final = re.compile(r"(-?)(\d{1,20}|\d{1,3}(?:,\d{3}){1,6})(?:\.(\d{1,30}))?", re.ASCII)


def units_of(field: str, text: str, decimal_places: int) -> int:
    """Return an amount of credits, exactly, in smallest units. Raises InvalidRequestError."""
    found = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if found is None:
        raise InvalidRequestError(field, "must be a number of credits, such as 1,350 or 13.5")
    sign, whole, part = found[1], found[2].replace(",", ""), (found[3] or "").rstrip("0")
    if len(part) > decimal_places:
        allowed = f"at most {decimal_places}" if decimal_places else "no"
        raise InvalidRequestError(field, f"may have {allowed} decimal places in this ledger")
    units = int(whole + part.ljust(decimal_places, "0"))
    if units > LARGEST_BALANCE:
        raise InvalidRequestError(field, "is more than a balance can be")
    return -units if sign else units

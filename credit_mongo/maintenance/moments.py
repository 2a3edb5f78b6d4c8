"""Moments as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timezone, tzinfo
from typing import Final

from credit_mongo.errors import InvalidRequestError

__all__ = ["parse_moment", "read_moment"]

# Of other forms, some versions of Python take more than others. The length is bounded because
# Python would take some hundred digits for a fraction of a second.
_MOMENT: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:[Tt ].{1,29})?")


def parse_moment(field: str, text: str, zone: tzinfo = timezone.utc) -> datetime:
    """Return a date (its midnight) or a moment, in ``zone`` unless the text has an offset.

    Raises InvalidRequestError, which names ``field``.
    """
    try:
        return read_moment(text, zone)
    except ValueError:
        raise InvalidRequestError(
            field, "must be a date (2026-01-31) or a moment (2026-01-31T12:00:00Z)"
        ) from None


def read_moment(text: str, zone: tzinfo = timezone.utc) -> datetime:
    """Return the same. Raises ValueError."""
    if not _MOMENT.fullmatch(text):
        raise ValueError
    # Before Python 3.11, Z is no offset.
    moment = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)

"""Refusals as people read them: with amounts in credits.

Errors count in smallest units, and so do the texts that the audit log keeps of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from credit_mongo.core.pricing import in_credits
from credit_mongo.errors import (
    HoldExceededError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    RevokeExceedsGrantError,
)

__all__ = ["in_words"]

# The amounts are at the end of a text. What stands before them is somebody's id, and may hold
# anything, even the same words.
_ENDS: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    InsufficientCreditsError.code: (
        re.compile(r" has (-?\d+) of the (\d+) units required\Z", re.ASCII),
        " has {} of the {} credits required",
    ),
    RefundExceedsChargeError.code: (
        re.compile(r" (\d+) units are refundable, not (\d+)\Z", re.ASCII),
        " {} credits are refundable, not {}",
    ),
    RevokeExceedsGrantError.code: (
        re.compile(r" (\d+) units are revocable, not (\d+)\Z", re.ASCII),
        " {} credits are revocable, not {}",
    ),
    HoldExceededError.code: (
        re.compile(r" is for (\d+) units, not (\d+)\Z", re.ASCII),
        " is for {} credits, not {}",
    ),
}
_LONGEST_NUMBER: Final = 30


def in_words(code: object, text: str | None, decimal_places: int) -> str:
    """Return an error's text with its amounts in credits, or as it is if it has none."""
    pattern, words = _ENDS.get(code, (None, "")) if isinstance(code, str) else (None, "")
    found = pattern.search(text or "") if pattern is not None else None
    if text is None or found is None or max(map(len, found.groups())) > _LONGEST_NUMBER:
        return text or ""
    amounts = (in_credits(int(number), decimal_places) for number in found.groups())
    return text[: found.start()] + words.format(*amounts)

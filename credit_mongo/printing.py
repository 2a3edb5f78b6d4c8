"""Write names and moments for people, safely and always in the same form."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Final

__all__ = ["moment_to_milliseconds", "moment_to_seconds", "printable", "printable_lines"]

# Characters that a terminal obeys, that change the direction of text, or that are invisible: C0,
# DEL, C1, soft hyphens, direction marks and embeddings, line separators, invisible operators, tags,
# lone surrogates. The joiners U+200C and U+200D are allowed, because emoji and the names of some
# languages need them.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """The text with each unsafe character escaped (``\\x1b``, ``\\u202e``).

    The result is safe for terminals, messages and pages. It can't move the cursor, change the
    direction of the text beside it, break the line, or look like another text.
    """
    return _UNSAFE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """As `printable`, for lines of JSON or CSV. It keeps line ends and writes JSON escapes."""
    return _UNSAFE.sub(_escape_in_json, text)


def moment_to_seconds(moment: datetime) -> str:
    """For people: ``2026-01-31T12:00:00Z``. Options that take a moment accept this form."""
    return _in_utc(moment, "seconds")


def moment_to_milliseconds(moment: datetime) -> str:
    """For programs, with the precision of the database: ``2026-01-31T12:00:00.123Z``."""
    return _in_utc(moment, "milliseconds")


def _in_utc(moment: datetime, precision: str) -> str:
    naive = moment if moment.tzinfo is None else moment.astimezone(timezone.utc)
    return f"{naive.replace(tzinfo=None).isoformat('T', precision)}Z"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def _escape_in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    escapes = "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))
    return found[0] if found[0] in "\r\n" else escapes

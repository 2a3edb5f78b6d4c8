"""How names and moments are written where people read them: safely, and always in the same form."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Final

__all__ = ["moment_to_milliseconds", "moment_to_seconds", "printable", "printable_lines"]

# What a terminal obeys, what turns the text around it, what nobody sees: C0, DEL, C1, soft hyphens,
# marks and embeddings of direction, line separators, invisible operators, tags, lone surrogates.
# The joiners U+200C and U+200D stay: emoji and the names of some languages need them.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """The text with an escape (``\\x1b``, ``\\u202e``) for each character that is unsafe to show.

    For terminals, messages and pages: whatever the text is, it cannot move the cursor, change the
    direction of what stands beside it, break the line, or look like another text.
    """
    return _UNSAFE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same for lines of JSON or CSV: line ends stay, and the escapes are those of JSON."""
    return _UNSAFE.sub(_escape_in_json, text)


def moment_to_seconds(moment: datetime) -> str:
    """For people: ``2026-01-31T12:00:00Z``. The options that take a moment take this form, too."""
    return _in_utc(moment, "seconds")


def moment_to_milliseconds(moment: datetime) -> str:
    """For programs, exactly as it is stored: ``2026-01-31T12:00:00.123Z``."""
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

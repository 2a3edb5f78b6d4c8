"""Printed text controls no terminal, hides nothing and stays readable. Moments have one format."""

from __future__ import annotations

import json
import unicodedata
from datetime import datetime, timedelta, timezone

import pytest

from credit_mongo.printing import (
    moment_to_milliseconds,
    moment_to_seconds,
    printable,
    printable_lines,
)

UNSAFE = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *"\u200e\u200f\u061c\u2028\u2029\ufeff\u200b\ud800\U000e0041",
]


@pytest.mark.parametrize("character", UNSAFE, ids=ascii)
def test_a_control_character_is_shown_as_an_escape(character: str) -> None:
    """Plain text shows the character's name. JSON escapes it, so that the value stays the same."""
    shown = printable(f"a{character}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == f"a{character}b"
    text = json.dumps(f"a{character}b", ensure_ascii=False)
    assert json.loads(printable_lines(text)) == f"a{character}b"
    assert character in "\r\n" or character not in printable_lines(text)


def test_only_joiners_and_arabic_signs_remain_of_the_control_and_format_characters() -> None:
    """The Unicode database lists them, so none is forgotten."""
    left = {
        name
        for name in map(chr, range(0x110000))
        if unicodedata.category(name) in ("Cc", "Cf", "Cs", "Zl", "Zp") and printable(name) == name
    }
    arabic = {name for name in left if 0x600 <= ord(name) <= 0x8E2}
    assert left - arabic <= {
        *"\u200c\u200d",
        # Visible signs of rare scripts.
        *map(chr, (0x110BD, 0x110CD, *range(0x13430, 0x13440))),
    }


def test_names_of_all_scripts_stay_as_they_are() -> None:
    """Joined emoji stay whole, too."""
    for name in (
        "Zo\u00eb",
        "\u5f20\u4e09",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f469\u200d\U0001f680",
        "[bold]",
    ):
        assert printable(name) == printable_lines(name) == name


def test_moments_are_shown_in_utc() -> None:
    """Moments show seconds for people and milliseconds for programs."""
    moment = datetime(2026, 1, 31, 13, 0, 5, 123456, timezone(timedelta(hours=1)))
    assert moment_to_seconds(moment) == "2026-01-31T12:00:05Z"
    assert moment_to_milliseconds(moment) == "2026-01-31T12:00:05.123Z"

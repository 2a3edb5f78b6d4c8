"""Cut-offs given as ages, calendar months or dates become moments, or are refused."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_mongo import InvalidRequestError
from credit_mongo.maintenance.archive.cut_off import check_cut_off, months_before, parse_cut_off

UTC = timezone.utc
NOW = datetime(2025, 8, 31, 12, 30, 15, 250_000, tzinfo=UTC)


def at(*parts: int) -> datetime:
    """Return a moment in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0h", NOW),
        ("36h", at(2025, 8, 30, 0, 30, 15, 250_000)),
        ("90d", at(2025, 6, 2, 12, 30, 15, 250_000)),
        (" 2 w ", at(2025, 8, 17, 12, 30, 15, 250_000)),
        ("6mo", at(2025, 2, 28, 12, 30, 15, 250_000)),
        ("1mo", at(2025, 7, 31, 12, 30, 15, 250_000)),
        ("2mo", at(2025, 6, 30, 12, 30, 15, 250_000)),
        ("18mo", at(2024, 2, 29, 12, 30, 15, 250_000)),
        ("8mo", at(2024, 12, 31, 12, 30, 15, 250_000)),
        ("2y", at(2023, 8, 31, 12, 30, 15, 250_000)),
        ("2025-02-28", at(2025, 2, 28)),
        ("2025-02-28T10:00:00", at(2025, 2, 28, 10)),
        ("2025-02-28T10:00:00Z", at(2025, 2, 28, 10)),
        ("2025-02-28T10:00:00+02:00", at(2025, 2, 28, 8)),
        ("2025-02-28 10:00:00.123456", at(2025, 2, 28, 10, 0, 0, 123_000)),
    ],
)
def test_a_cut_off_becomes_a_moment(text: str, expected: datetime) -> None:
    """Months are calendar months. Moments are in UTC and whole milliseconds."""
    assert parse_cut_off(text, NOW) == expected


def test_a_leap_day_less_a_year_is_the_last_of_february() -> None:
    """The year before has no 29 February."""
    assert parse_cut_off("1y", at(2024, 2, 29, 5)) == at(2023, 2, 28, 5)
    assert parse_cut_off("4y", at(2024, 2, 29, 5)) == at(2020, 2, 29, 5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "mo", "6m", "-6mo", "+6mo", "6.5mo", "1e3d", "6 months", "99999999d", "6mo 3d"),
        *("2025-02-30", "2025-2-3", "20250228", "yesterday", "31.01.2025", "9999999y", "²d"),
        *("2025-08-31T99:00:00", "900000d", "6mo\x00", "0000-01-01"),
    ],
)
def test_an_unreadable_cut_off_is_refused(text: str) -> None:
    """The error names the argument."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_cut_off(text, NOW, field="when")
    assert caught.value.field == "when"
    assert "must be an age" in caught.value.reason


@pytest.mark.parametrize(
    "value", ["2025-09-01", "2025-08-31T12:30:16Z", NOW + timedelta(milliseconds=1)]
)
def test_the_future_is_refused(value: Any) -> None:
    """Nothing can be older than a moment that has yet to come."""
    with pytest.raises(InvalidRequestError, match="future"):
        check_cut_off(value, NOW)


@pytest.mark.parametrize("value", [None, 6, 6.0, b"6mo", True, [], timedelta(days=1)])
def test_other_types_are_refused(value: Any) -> None:
    """A moment must be a datetime with a time zone."""
    with pytest.raises(InvalidRequestError) as caught:
        check_cut_off(value, NOW)
    assert caught.value.field == "older_than"
    with pytest.raises(InvalidRequestError):
        check_cut_off(NOW.replace(tzinfo=None), NOW)
    with pytest.raises(InvalidRequestError):
        parse_cut_off(value, NOW)


@given(
    st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2100, 1, 1)),  # noqa: DTZ001
    st.integers(0, 600),
)
def test_months_count_like_a_calendar(moment: datetime, months: int) -> None:
    """The result is that many calendar months earlier, never on a later day or at another time."""
    before = months_before(moment, months)
    assert (moment.year * 12 + moment.month) - (before.year * 12 + before.month) == months
    assert before.time() == moment.time()
    next_day = before + timedelta(days=1)
    assert before.day == moment.day or (before.day < moment.day and next_day.day == 1)


@given(st.text())
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    """Any text either gives a moment or raises the typed error."""
    try:
        assert parse_cut_off(text, NOW) <= NOW
    except InvalidRequestError:
        return

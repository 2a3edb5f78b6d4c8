"""Cut-offs: turn "6mo", "90d", a date or a moment into the moment before which rows are old."""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta, timezone
from typing import Final

from credit_mongo.core.values import check_moment, to_milliseconds
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.moments import read_moment

__all__ = ["check_cut_off", "months_before", "parse_cut_off"]

_AGE: Final = re.compile(r"(\d{1,6})\s*(h|d|w|mo|y)")
_FORMS: Final = "must be an age (36h, 90d, 12w, 6mo, 2y), a date (2026-01-31) or a moment with time"
_MONTHS: Final = {"mo": 1, "y": 12}
_SPANS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def parse_cut_off(text: str, now: datetime, *, field: str = "older_than") -> datetime:
    """Return the moment that ``text`` names, in UTC. Ages count back from ``now``.

    Months and years follow the calendar: six months before 31 August is the last day of February.
    A date begins at midnight UTC, and a moment without an offset is in UTC.

    Raises InvalidRequestError, which names ``field``, if ``text`` is malformed or in the future.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(field, f"must be a str, not {type(text).__name__}")
    now = to_milliseconds(check_moment("now", now))
    text = text.strip()
    try:
        return _check_past(_read(text, now), now, field)
    except (ValueError, OverflowError):
        raise InvalidRequestError(field, _FORMS) from None


def check_cut_off(value: object, now: datetime, *, field: str = "older_than") -> datetime:
    """Check a cut-off: a text for ``parse_cut_off``, or a datetime with a time zone."""
    if isinstance(value, str):
        return parse_cut_off(value, now, field=field)
    return _check_past(check_moment(field, value), now, field)


def months_before(moment: datetime, months: int) -> datetime:
    """Go back by calendar months: the same day and time, or the last day of a shorter month."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def _read(text: str, now: datetime) -> datetime:
    if age := _AGE.fullmatch(text):
        number, unit = int(age[1]), age[2]
        if unit in _MONTHS:
            return months_before(now, number * _MONTHS[unit])
        return now - number * _SPANS[unit]
    return to_milliseconds(read_moment(text).astimezone(timezone.utc))


def _check_past(cut_off: datetime, now: datetime, field: str) -> datetime:
    if cut_off > now:
        raise InvalidRequestError(field, "lies in the future: nothing is that old yet")
    return cut_off

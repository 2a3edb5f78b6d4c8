"""The periods of a usage report: days, weeks and months as the calendar of a time zone has them.

The zone is Python's, not the server's: both need not know the same rules. So the server is told
moments in UTC, of which a day may have 23 or 25 hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from credit_mongo.core.values import check_moment
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.usage.results import Width

__all__ = ["LONGEST_PERIOD", "check_period", "parts_of", "period_before", "width_for", "zone_of"]

LONGEST_PERIOD: Final = timedelta(days=100 * 366)
# What any time zone can count to.
_FIRST: Final = datetime(2, 1, 1, tzinfo=timezone.utc)
_LAST_YEAR: Final = 9998
# About a hundred parts at most, and more than one.
_WIDTHS: Final[tuple[tuple[timedelta, Width], ...]] = (
    (timedelta(days=3, hours=1), "hour"),
    (timedelta(days=92, hours=1), "day"),
    (timedelta(days=2 * 366), "week"),
    (timedelta(days=10 * 366), "month"),
)


def zone_of(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises InvalidRequestError."""
    try:
        # The rules of UTC need no database, which a machine may lack.
        return timezone.utc if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidRequestError(
            "timezone", f"{name!r:.100} is not known here: give a name such as Europe/Berlin"
        ) from None


def check_period(start: object, end: object) -> tuple[datetime, datetime]:
    """Both in UTC. Raises InvalidRequestError."""
    begin, until = check_moment("start", start), check_moment("end", end)
    if begin >= until:
        raise InvalidRequestError("end", "must be later than the start")
    if until - begin > LONGEST_PERIOD:
        raise InvalidRequestError("end", "the period must not be longer than 100 years")
    if begin < _FIRST:
        raise InvalidRequestError("start", "must be in the year 2 or later")
    if until.year > _LAST_YEAR:
        raise InvalidRequestError("end", f"must be in the year {_LAST_YEAR} or earlier")
    return begin.astimezone(timezone.utc), until.astimezone(timezone.utc)


def width_for(start: datetime, end: datetime) -> Width:
    """What a period is divided into."""
    for longest, width in _WIDTHS:
        if end - start <= longest:
            return width
    return "year"


def period_before(start: datetime, end: datetime, zone: tzinfo) -> datetime:
    """Where the period just before it begins.

    Of whole months it has as many months, of whole days as many days, and else it is as long.
    """
    local, until = _local(start, zone), _local(end, zone)
    if _is_midnight(local) and _is_midnight(until):
        if local.day == until.day == 1:
            months = 12 * (until.year - local.year) + until.month - local.month
            month = 12 * local.year + local.month - 1 - months
            if month // 12 < _FIRST.year:
                return _FIRST
            return _moment(local.replace(year=month // 12, month=month % 12 + 1), zone)
        length = until - local
        return _FIRST if local - datetime(2, 1, 2) < length else _moment(local - length, zone)  # noqa: DTZ001
    return max(_FIRST, start - min(end - start, start - _FIRST))


def parts_of(start: datetime, end: datetime, width: Width, zone: tzinfo) -> Iterator[datetime]:
    """Where the parts of the period begin, the first at or before its start."""
    if width == "hour":
        # By the clock, of which one hour is missing and another comes twice in a year.
        moment = start - timedelta(minutes=_local(start, zone).minute)
        moment = moment.replace(second=0, microsecond=0)
        while moment < end:
            yield moment
            moment += timedelta(hours=1)
        return
    local = _floor(_local(start, zone), width)
    while (moment := _moment(local, zone)) < end:
        yield moment
        local = _next(local, width)


def _local(moment: datetime, zone: tzinfo) -> datetime:
    """What a clock and a calendar on the wall show."""
    return moment.astimezone(zone).replace(tzinfo=None)


def _moment(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(timezone.utc)


def _is_midnight(local: datetime) -> bool:
    return local == local.replace(hour=0, minute=0, second=0, microsecond=0)


def _floor(local: datetime, width: Width) -> datetime:
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if width == "week":
        return midnight - timedelta(days=midnight.weekday())
    if width == "day":
        return midnight
    return midnight.replace(day=1) if width == "month" else midnight.replace(month=1, day=1)


def _next(local: datetime, width: Width) -> datetime:
    if width in ("day", "week"):
        return local + timedelta(**{f"{width}s": 1})
    months = local.month if width == "month" else 12
    return local.replace(year=local.year + months // 12, month=months % 12 + 1)

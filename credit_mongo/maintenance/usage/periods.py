"""The periods of a usage report: days, weeks and months in the calendar of a time zone.

Python computes the boundaries, because the server may know other rules for the zone. The server
only gets moments in UTC. A day may have 23 or 25 hours.
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
# Every time zone can represent dates in this range.
_FIRST: Final = datetime(2, 1, 1, tzinfo=timezone.utc)
_LAST_YEAR: Final = 9998
# Chosen to give more than one part and about a hundred at most.
_WIDTHS: Final[tuple[tuple[timedelta, Width], ...]] = (
    (timedelta(days=3, hours=1), "hour"),
    (timedelta(days=92, hours=1), "day"),
    (timedelta(days=2 * 366), "week"),
    (timedelta(days=10 * 366), "month"),
)


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its IANA name. Raises InvalidRequestError if it is unknown."""
    try:
        # UTC works even on a machine without a time zone database.
        return timezone.utc if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidRequestError(
            "timezone", f"{name!r:.100} is not known here: give a name such as Europe/Berlin"
        ) from None


def check_period(start: object, end: object) -> tuple[datetime, datetime]:
    """Check a period and return it in UTC. Raises InvalidRequestError."""
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
    """Return the width of the parts that a period is divided into."""
    for longest, width in _WIDTHS:
        if end - start <= longest:
            return width
    return "year"


def period_before(start: datetime, end: datetime, zone: tzinfo) -> datetime:
    """Return the start of the previous period, which ends at ``start``.

    It has the same number of months if the period is whole months, the same number of days if the
    period is whole days, and otherwise the same length.
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
    """Yield the start of each part of the period. The first is at or before ``start``."""
    if width == "hour":
        # Count in UTC: local time skips one hour and repeats another each year.
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
    """Return the local time in the zone, without the zone."""
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

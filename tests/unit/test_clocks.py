"""The clock that tests move."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from credit_mongo import InvalidRequestError
from credit_mongo.testing.clocks import MovableClock


def test_it_stands_still_until_it_is_moved() -> None:
    """Forward, back, and to a moment of another zone; always in UTC, to the millisecond."""
    clock = MovableClock()
    start = clock()
    assert start == clock()
    assert (start.tzinfo, start.microsecond % 1000) == (timezone.utc, 0)
    clock.advance(timedelta(days=1))
    assert clock() - start == timedelta(days=1)
    clock.advance(timedelta(days=-2))
    assert start - clock() == timedelta(days=1)
    clock.set(datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert clock() == datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("move", "value"),
    [
        ("advance", 60),
        ("advance", None),
        ("set", datetime(2030, 1, 1)),  # noqa: DTZ001 - that is what is wrong
        ("set", "2030-01-01"),
    ],
)
def test_it_is_not_moved_by_what_is_no_time(move: str, value: Any) -> None:
    """A typed error, and the clock stands where it stood."""
    clock = MovableClock()
    start = clock()
    with pytest.raises(InvalidRequestError):
        getattr(clock, move)(value)
    assert clock() == start

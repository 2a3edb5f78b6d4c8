"""The clock that tests move by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from credit_mongo import InvalidRequestError
from credit_mongo.testing.clocks import MovableClock


def test_the_clock_stands_still_until_it_is_moved() -> None:
    """The clock moves forward, back, or to a moment in any zone.

    It stays in UTC and milliseconds.
    """
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
def test_wrong_arguments_do_not_move_the_clock(move: str, value: Any) -> None:
    """A wrong argument raises a typed error and leaves the clock where it was."""
    clock = MovableClock()
    start = clock()
    with pytest.raises(InvalidRequestError):
        getattr(clock, move)(value)
    assert clock() == start

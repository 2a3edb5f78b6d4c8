"""A clock that tests move."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from credit_mongo.core.values import check_moment, to_milliseconds
from credit_mongo.errors import InvalidRequestError

__all__ = ["MovableClock"]


class MovableClock:
    """A clock for ``CreditLedger(clock=…)``. It stands still at its creation time until moved.

    A ledger never compares a given clock with the server's, so you can move it by months. Then give
    ``verify`` and ``repair`` ``max_clock_skew_seconds=None``, or they report rows dated in the
    future. The server's own clock doesn't move, and the server removes expired idempotency records.
    So with a clock moved back more than a day, keys may be forgotten at any moment.
    """

    def __init__(self) -> None:
        self._now = to_milliseconds(datetime.now(timezone.utc))

    def __call__(self) -> datetime:
        """The clock's time, in UTC."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move the clock forward, or back if ``by`` is negative.

        Raises InvalidRequestError unless ``by`` is a timedelta.
        """
        if not isinstance(by, timedelta):
            raise InvalidRequestError("by", f"must be a timedelta, not {type(by).__name__}")
        self._now = to_milliseconds(self._now + by)

    def set(self, moment: datetime) -> None:
        """Move the clock to ``moment``. Raises InvalidRequestError if that has no time zone."""
        self._now = to_milliseconds(check_moment("moment", moment))

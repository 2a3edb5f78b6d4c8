"""A clock that tests move."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from credit_mongo.core.values import check_moment, to_milliseconds
from credit_mongo.errors import InvalidRequestError

__all__ = ["MovableClock"]


class MovableClock:
    """Stands still, at the time when it was made, until it is moved: ``CreditLedger(clock=…)``.

    A ledger with a clock that is given to it never compares it with the server's, so it may be
    moved by months; give ``verify`` and ``repair`` ``max_clock_skew_seconds=None`` then, to which
    rows dated in the future are findings. The server's own clock does not move with it, and it is
    the server that sweeps idempotency records: a clock moved more than a day back makes keys that
    may be forgotten at any moment.
    """

    def __init__(self) -> None:
        self._now = to_milliseconds(datetime.now(timezone.utc))

    def __call__(self) -> datetime:
        """The time, with the time zone UTC."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move it by so much; back, if negative. Raises InvalidRequestError for no timedelta."""
        if not isinstance(by, timedelta):
            raise InvalidRequestError("by", f"must be a timedelta, not {type(by).__name__}")
        self._now = to_milliseconds(self._now + by)

    def set(self, moment: datetime) -> None:
        """Move it to a moment. Raises InvalidRequestError unless that has a time zone."""
        self._now = to_milliseconds(check_moment("moment", moment))

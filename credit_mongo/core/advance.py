"""Advance: post what became due on an account, before any request changes it.

There is no scheduler. The next operation on an account first posts what time has decided: lots that
ended, and holds that nobody settled in time. Each row is dated at the moment when it was due. Reads
do the same without writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Change, Posting
from credit_mongo.core.extras import ActiveHold
from credit_mongo.core.holds import HoldChanged, remove_hold, take_for
from credit_mongo.core.values import Account

__all__ = [
    "CAPTURE",
    "EXPIRE",
    "MAX_DUE_ROWS",
    "NO_REQUEST",
    "Advanced",
    "Advancing",
    "advance",
    "as_of",
    "derived_id",
]

MAX_DUE_ROWS: Final = 128
"""About the most rows of this kind that one commit writes for a user.

All that one lot or one hold leads to is written at once. What remains is posted by the next commit.
"""
NO_REQUEST: Final = "0" * 24
"""The request of rows that are not written."""
EXPIRE: Final = "expire"
CAPTURE: Final = "capture"

_TIME_DIGITS: Final = 8
_ID_BYTES: Final = 12


class Advanced(NamedTuple):
    """An account as time has left it, and what is to be written for that.

    ``is_complete`` is False if there is more than one commit writes.
    """

    account: Account
    postings: tuple[Posting, ...] = ()
    changes: tuple[Change, ...] = ()
    is_complete: bool = True


def advance(
    account: Account, now: datetime, request_id: str, *, most_rows: int | None = None
) -> Advanced:
    """Post what is due on the account by ``now``, oldest first.

    The ids of the rows are derived from ``request_id``, the id of the request being decided. Two
    processes never derive the same id, so a row found under such an id proves which commit wrote
    it.
    """
    if account.extras is None:
        return Advanced(account)
    next_due = account.extras.next_due()
    if next_due is None or next_due > now:
        return Advanced(account)
    due = Advancing(account, request_id, now)
    for at, hold in _moments(account, now):
        if most_rows is not None and len(due.postings) >= most_rows:
            return due.advanced(is_complete=False)
        if hold is not None:
            due.end_hold(hold, at)
        due.end_lots(at)
    return due.advanced()


def _moments(account: Account, now: datetime) -> Iterator[tuple[datetime, ActiveHold | None]]:
    """Yield the moments at which something ends, each with the hold that ends then, if any.

    Lots that end at the same moment as a hold go first: from that moment on nobody can use them.
    """
    extras = account.extras
    assert extras is not None  # noqa: S101 - the caller has looked
    lots = {lot.expires_at for lot in extras.all_lots if lot.expires_at is not None}
    ends: list[tuple[datetime, int, ActiveHold | None]] = [(at, 0, None) for at in lots]
    ends += [(hold.expires_at, number, hold) for number, hold in enumerate(extras.holds, start=1)]
    for at, _, hold in sorted(ends, key=lambda end: end[:2]):
        if at <= now:
            yield at, hold


def as_of(account: Account, now: datetime) -> Account:
    """Return the account as time has left it, without the rows that nobody has written yet."""
    advanced = advance(account, now, NO_REQUEST).account
    return advanced._replace(seq=account.seq, updated_at=account.updated_at)


class Advancing:
    """Writes rows on an account, one after another, for one request."""

    def __init__(self, account: Account, request_id: str, now: datetime) -> None:
        self._account = account
        self._request_id = request_id
        self._now = now
        self.postings: list[Posting] = []
        self._changes: list[Change] = []

    @property
    def account(self) -> Account:
        """The account after the rows so far."""
        return self._account

    def advanced(self, *, is_complete: bool = True) -> Advanced:
        """Return everything so far."""
        return Advanced(self._account, tuple(self.postings), tuple(self._changes), is_complete)

    def end_lots(self, at: datetime) -> int:
        """Post the end of each lot that has ended by ``at``. Returns how many units ended."""
        # Each row has its own state of the account, so the lots end one by one.
        ended = Breakdown(self._account).ended_lots(at)
        for leg in ended:
            breakdown = Breakdown(self._account)
            breakdown.move(leg)
            self._post(breakdown, EXPIRE, EXPIRE, at)
        return -sum(leg.amount for leg in ended)

    def end_hold(self, hold: ActiveHold, at: datetime) -> None:
        """End a hold that nobody settled: charge what was last reported, or nothing."""
        breakdown = Breakdown(self._account)
        taken = take_for(breakdown, hold, hold.used if hold.settles_at_end else hold.claimed)
        remove_hold(breakdown, hold.hold_id)
        if taken.cost:
            self._post(
                breakdown,
                CAPTURE,
                hold.action,
                at,
                details={"holdId": hold.hold_id, "uncollected": taken.uncollected},
                facts={"uncollected": taken.uncollected} if taken.uncollected else None,
                hold_id=hold.hold_id,
            )
        else:
            self._account = breakdown.account()
        changes = {
            "captured": taken.hold.captured,
            "uncollected": taken.hold.uncollected,
            "status": "expired",
            "updated_at": at,
        }
        self._changes.append(HoldChanged(hold.hold_id, self._request_id, changes))

    def _post(
        self,
        breakdown: Breakdown,
        operation: str,
        action: str,
        at: datetime,
        *,
        details: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        hold_id: str | None = None,
    ) -> None:
        before, after = self._account, breakdown.account()
        # A last change that is dated after now is dated wrong: see ``Policy.time_for``.
        last = before.updated_at if before.updated_at <= self._now else at
        self._account = after._replace(seq=before.seq + 1, updated_at=max(at, last))
        self.postings.append(
            Posting(
                derived_id(self._request_id, self._account.seq),
                operation,
                action,
                self._account,
                before.credits,
                after.credits - before.credits,
                details or {},
                facts=facts,
                written_at=self._now,
                legs=breakdown.legs(),
                hold_id=hold_id,
            )
        )


def derived_id(request_id: str, number: int) -> str:
    """Derive the id of a row that a request leads to: 24 hexadecimal digits.

    ``number`` tells a request's rows apart: it is the row's ``seq``. (One request can lead to rows
    in several commits.) The first four bytes are the time of the request's own id, as in every
    ObjectId, so both sort alike. The rest is a hash of that id and the number, so no two requests
    derive the same id.
    """
    digest = hashlib.blake2b(f"{request_id}/{number}".encode(), digest_size=_ID_BYTES)
    return request_id[:_TIME_DIGITS] + digest.hexdigest()[_TIME_DIGITS:]

"""Advance: post what became due on an account, before any request changes it.

There is no scheduler. The next operation on an account first posts what has become due, dated at
the moment it was due. Reads do the same without writing. Nothing becomes due yet: expiring credits
and holds will use this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.values import Account

__all__ = ["MAX_DUE_ROWS", "Advance", "Due", "advance", "derived_id", "nothing_due"]

MAX_DUE_ROWS: Final = 128
"""The most rows of this kind that one commit writes."""

_TIME_DIGITS: Final = 8
_ID_BYTES: Final = 12


class Due(NamedTuple):
    """Something that became due at ``at``: an amount, and the account with its other changes.

    ``advance`` sets the account's balance, ``seq`` and time.
    """

    operation: str
    action: str
    at: datetime
    account: Account
    amount: int


Advance: TypeAlias = Callable[[Account, datetime], Sequence[Due]]
"""Returns what is due on an account by a moment, oldest first, at most ``MAX_DUE_ROWS``."""


def nothing_due(account: Account, now: datetime) -> Sequence[Due]:  # noqa: ARG001 - an Advance
    """Return nothing, because time alone doesn't change accounts yet."""
    return ()


def advance(
    due_on: Advance, request: Request[Any], account: Account, now: datetime
) -> tuple[Posting, ...]:
    """Return the postings for what is due on the account by ``now``.

    Their ids are derived from the id of the request being decided. Two processes never derive the
    same id, so a row found under such an id proves which commit wrote it.
    """
    postings = []
    for ordinal, due in enumerate(due_on(account, now)):
        after = due.account._replace(
            credits=account.credits + due.amount,
            seq=account.seq + 1,
            updated_at=max(due.at, account.updated_at),
        )
        postings.append(
            Posting(
                derived_id(request.transaction_id, ordinal),
                due.operation,
                due.action,
                after,
                account.credits,
                due.amount,
                {},
                written_at=now,
            )
        )
        account = after
    return tuple(postings)


def derived_id(transaction_id: str, ordinal: int) -> str:
    """Derive the id of a row that was due before a request: 24 hexadecimal digits.

    The first four bytes are the time of the request's own id, as in every ObjectId, so both sort
    alike. The rest is a hash of that id and the ordinal, so no two requests derive the same id.
    """
    digest = hashlib.blake2b(f"{transaction_id}/{ordinal}".encode(), digest_size=_ID_BYTES)
    return transaction_id[:_TIME_DIGITS] + digest.hexdigest()[_TIME_DIGITS:]

"""Advance: post what time alone has decided about an account, before anything else touches it.

Nothing is scheduled. Whoever next works on an account first posts what became due since, dated as
it was due; reads do the same without writing. No kind of account has anything due yet; credits that
expire and holds that end will.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.values import Account

__all__ = ["MOST_DUE", "Advance", "Due", "advance", "derived_id", "nothing_due"]

MOST_DUE: Final = 128
"""How many rows of this kind one commit writes at most."""

_TIME_DIGITS: Final = 8
_ID_BYTES: Final = 12


class Due(NamedTuple):
    """What became due at ``at``: an amount, and whatever else changes about the account.

    ``advance`` itself sets the account's balance, ``seq`` and time.
    """

    operation: str
    action: str
    at: datetime
    account: Account
    amount: int


Advance: TypeAlias = Callable[[Account, datetime], Sequence[Due]]
"""What is due on an account by a moment, oldest first, at most ``MOST_DUE`` of it."""


def nothing_due(account: Account, now: datetime) -> Sequence[Due]:  # noqa: ARG001 - an Advance
    """What is due on an account that time does not change."""
    return ()


def advance(
    due_on: Advance, request: Request[Any], account: Account, now: datetime
) -> tuple[Posting, ...]:
    """Post what is due on the account by ``now``.

    The ids follow from that of the request that led to it. Two processes never make the same ones,
    so a row that is found proves whose commit wrote it.
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
    """Derive the id of a row that a request led to: 24 hex digits, as sortable by time as its own.

    The first four bytes are the time, as in every ObjectId; the rest is a hash of the request's id
    and the ordinal, so that no two requests derive the same.
    """
    digest = hashlib.blake2b(f"{transaction_id}/{ordinal}".encode(), digest_size=_ID_BYTES)
    return transaction_id[:_TIME_DIGITS] + digest.hexdigest()[_TIME_DIGITS:]

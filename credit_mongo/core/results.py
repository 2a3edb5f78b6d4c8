"""The results that callers get. All are frozen. Credits are whole numbers of the smallest unit.

``replayed`` is True if an earlier call with the same idempotency key did the work. Comparisons
ignore it, so the result of a repeated request equals the first result. Metadata and keys of the
caller stay out of every ``repr``, because reprs end up in logs. Web frameworks that know pydantic
can return each result as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from credit_mongo.core.serialization import Metadata
from credit_mongo.core.values import Account

__all__ = [
    "AuditLog",
    "Erasure",
    "Quote",
    "Transaction",
    "User",
    "user_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account. ``credits`` is the balance in smallest units, ``seq`` counts its transactions."""

    user_id: str
    credits: int
    membership_tier: str | None
    membership_expires_at: datetime | None
    seq: int
    created_at: datetime
    updated_at: datetime
    replayed: bool = field(default=False, compare=False)


def user_of(account: Account) -> User:
    """Return an account as callers see it."""
    return User(
        user_id=account.user_id,
        credits=account.credits,
        membership_tier=account.membership_tier,
        membership_expires_at=account.membership_expires_at,
        seq=account.seq,
        created_at=account.created_at,
        updated_at=account.updated_at,
    )


@dataclass(frozen=True, slots=True)
class Quote:
    """What an action would cost now. ``cost`` and ``balance`` are in smallest units.

    ``tier`` is the tier in force, or None. ``affordable`` is True if the balance covers the cost.
    """

    action: str
    tier: str | None
    cost: int
    balance: int
    affordable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A record of the ledger: the ``seq``-th change of a user's balance.

    ``amount`` is in smallest units, negative if credits were taken. ``refund_of`` is the id of the
    charge that a refund belongs to.
    """

    transaction_id: str
    user_id: str
    seq: int
    operation: str
    action: str
    amount: int
    balance_before: int
    balance_after: int
    metadata: Metadata | None = field(repr=False)
    idempotency_key: str | None = field(repr=False)
    refund_of: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLog:
    """A record of an attempt, successful or refused.

    ``status`` is "success" or "failed". ``details`` are the library's own facts, ``metadata`` the
    caller's. If the attempt made a transaction, ``audit_id`` is its ``transaction_id``.
    """

    audit_id: str
    user_id: str
    operation: str
    action: str
    status: str
    details: Metadata
    metadata: Metadata | None = field(repr=False)
    error_message: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """How many rows of each kind were erased with a user.

    ``erasure_id`` is the id of the record that stays. ``paid_requests`` belong to the FastAPI
    integration. ``transactions_in_files`` were not erased: they are in archive files, which the
    ledger cannot reach. Erase them where those files are kept.
    """

    erasure_id: str
    user_id: str
    users: int
    transactions: int
    audit_logs: int
    idempotency_records: int
    archived_transactions: int
    archived_audit_logs: int
    transactions_in_files: int
    paid_requests: int
    erased_at: datetime

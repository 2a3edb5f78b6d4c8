"""What callers get back. All frozen; credits are whole numbers of the smallest unit.

``replayed`` tells that an idempotency key had done it before. It takes no part in comparisons: the
answer to a repeated request equals the first. The caller's metadata and keys stay out of every
``repr``: that is what lands in logs. A web framework that knows pydantic can return each as JSON.
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
    """An account: its balance in smallest units, its tier, and how many transactions it has."""

    user_id: str
    credits: int
    membership_tier: str | None
    membership_expires_at: datetime | None
    seq: int
    created_at: datetime
    updated_at: datetime
    replayed: bool = field(default=False, compare=False)


def user_of(account: Account) -> User:
    """An account as callers see it."""
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
    """What an action would cost now; ``tier`` is the one in force, None without one."""

    action: str
    tier: str | None
    cost: int
    balance: int
    affordable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A record of the ledger: the ``seq``-th change of a user's balance (negative for charges)."""

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
    """A record of an attempt. ``details`` are the library's own facts, ``metadata`` the caller's.

    ``audit_id`` is the ``transaction_id`` of the transaction that the attempt made, if it made one.
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
    """How many rows of each kind went with a user; ``erasure_id`` is that of the record of it.

    ``paid_requests`` are of the FastAPI integration. ``transactions_in_files`` have not gone: they
    were archived to files, which nothing here can reach. Whoever keeps those has to see to them.
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

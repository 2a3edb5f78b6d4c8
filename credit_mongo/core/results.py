"""The results that callers get. All are frozen. Credits are whole numbers of the smallest unit.

``replayed`` is True if an earlier call with the same idempotency key did the work. Comparisons
ignore it, so the result of a repeated request equals the first result. Metadata and keys of the
caller stay out of every ``repr``, because reprs end up in logs. Web frameworks that know pydantic
can return each result as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from credit_mongo.core.extras import NO_EXTRAS
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.values import Account

__all__ = [
    "AuditLog",
    "CreditLot",
    "Erasure",
    "Quote",
    "Transaction",
    "TransactionLeg",
    "User",
    "user_of",
]


@dataclass(frozen=True, slots=True)
class CreditLot:
    """Credits of a user that are kept apart. ``amount`` is what is left, in smallest units.

    ``lot_id`` is the id of the grant that opened the lot. Lots with the lower ``priority`` are used
    first, then those that end sooner, then the older ones. From ``expires_at`` on, the credits are
    gone, unless a hold keeps them. None means no end.
    """

    lot_id: str
    amount: int
    expires_at: datetime | None
    priority: int
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account. Amounts are in smallest units.

    ``credits`` is the balance, all ``lots`` included. ``held`` is what active holds keep of it, and
    ``overdraft`` how far it may go below zero. A charge can take what is ``available``:
    ``credits - held + overdraft``. ``seq`` counts the account's transactions.
    """

    user_id: str
    credits: int
    membership_tier: str | None
    membership_expires_at: datetime | None
    seq: int
    created_at: datetime
    updated_at: datetime
    held: int = 0
    overdraft: int = 0
    lots: tuple[CreditLot, ...] = ()
    available: int = field(init=False)
    replayed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        # The class is frozen, and this follows from the others.
        object.__setattr__(self, "available", self.credits - self.held + self.overdraft)


def user_of(account: Account) -> User:
    """Return an account as callers see it."""
    extras = account.extras or NO_EXTRAS
    return User(
        held=extras.held,
        overdraft=extras.overdraft,
        lots=tuple(CreditLot(*lot) for lot in extras.all_lots),
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

    ``balance`` is what a charge can take: without what is held, with the overdraft. ``tier`` is the
    tier in force, or None. ``affordable`` is True if the balance covers the cost.
    """

    action: str
    tier: str | None
    cost: int
    balance: int
    affordable: bool


@dataclass(frozen=True, slots=True)
class TransactionLeg:
    """A part of a transaction's amount, in one lot or (``lot_id`` None) in the base."""

    lot_id: str | None
    amount: int
    expires_at: datetime | None
    priority: int
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A record of the ledger: the ``seq``-th change of a user's balance.

    ``amount`` is in smallest units, negative if credits were taken. ``refund_of`` is the id of the
    charge that a refund belongs to, ``revoke_of`` of the grant that a revocation takes back, and
    ``hold_id`` of the hold that a capture belongs to. ``legs`` are the parts of the amount, in
    order, if lots are among them. ``uncollected`` is what a capture or a revocation was to take but
    could not.

    A transaction that time led to, such as the end of a lot, is dated when it was due
    (``created_at``) and was written later (``written_at``).
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
    legs: tuple[TransactionLeg, ...] = ()
    revoke_of: str | None = None
    hold_id: str | None = None
    uncollected: int = 0
    written_at: datetime | None = None


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
    integration. ``holds`` were active, ended or archived. ``transactions_in_files`` were not
    erased: they are in archive files, which the ledger cannot reach. Erase them where those files
    are kept.
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
    holds: int
    erased_at: datetime

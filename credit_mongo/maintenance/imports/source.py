"""What an import reads, whichever database it comes from. Values are as the driver gives them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from credit_mongo.maintenance.imports.tables import Kind, Table
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["Source", "SourceAudit", "SourceKey", "SourceTransaction", "SourceUser"]


class SourceUser(NamedTuple):
    """A user."""

    id: Any
    credits: Any
    membership_tier: Any
    membership_expires_at: Any
    created_at: Any
    updated_at: Any


class SourceTransaction(NamedTuple):
    """A transaction. It doesn't say which operation it is."""

    id: Any
    user_id: Any
    action: Any
    amount: Any
    balance_before: Any
    balance_after: Any
    created_at: Any
    metadata: Any


class SourceAudit(NamedTuple):
    """An attempt. ``action`` is the operation; the metadata of a success name its transaction."""

    id: Any
    user_id: Any
    action: Any
    status: Any
    created_at: Any
    metadata: Any
    error_message: Any


class SourceKey(NamedTuple):
    """An idempotency record. Only its result says which transaction it belongs to."""

    key: Any
    result: Any
    expires_at: Any
    created_at: Any


class Source(Protocol):
    """A deployment's database. All methods block, and raise LedgerImportError.

    A page of users and all rows of these users are read in one snapshot, as far as the database
    has snapshots.
    """

    @property
    def name(self) -> str:
        """The database for people and for the job's document, without user name and password."""

    def shared_with(self, database: LedgerDatabase) -> list[str]:
        """Return the names of collections that are also the ledger's."""

    def open(self) -> dict[Kind, Table]:
        """Connect, and find the tables."""

    def close(self) -> None:
        """Close all connections."""

    def begin(self) -> None:
        """Begin a snapshot, if the database has them. What was begun before ends."""

    def count(self, kind: Kind) -> int:
        """Return how many rows a table has."""

    def latest(self, kind: Kind, field: str) -> Any:
        """Return the largest value of a column. None if there is no row or no such column."""

    def users(self, after: Any, limit: int) -> list[SourceUser]:
        """Return the next users in the order of their ids."""

    def users_by_ids(self, ids: Sequence[Any]) -> list[SourceUser]:
        """Return these users."""

    def changed_users(self, since: datetime, limit: int) -> list[Any] | None:
        """Return the ids of users with rows since a moment. None if there are more than limit."""

    def transactions(self, user_ids: Sequence[Any], limit: int) -> list[SourceTransaction]:
        """Return up to ``limit`` transactions of these users."""

    def audit_logs(self, user_ids: Sequence[Any], limit: int) -> list[SourceAudit]:
        """Return up to ``limit`` audit rows of these users."""

    def next_transactions(
        self, user_id: Any, after: SourceTransaction | None, limit: int
    ) -> list[SourceTransaction]:
        """Return one user's next transactions, in the order of ``created_at`` and ``id``."""

    def next_audit_logs(
        self, user_id: Any, after: SourceAudit | None, limit: int
    ) -> list[SourceAudit]:
        """Return one user's next audit rows, in the order of ``created_at`` and ``id``."""

    def keys(
        self, after: Any, since: datetime | None, now: datetime, limit: int
    ) -> list[SourceKey]:
        """Return the next idempotency records that have not expired, in the order of their keys."""

    def count_keys(self, now: datetime) -> int:
        """Return how many idempotency records have not expired."""

    def sum_of_amounts(self) -> Decimal:
        """Return the exact sum of all transactions' amounts."""

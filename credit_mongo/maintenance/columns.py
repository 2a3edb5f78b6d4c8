"""The columns of files with transactions and audit rows, and the fields that are stored."""

from __future__ import annotations

from typing import Final

__all__ = ["AUDIT_COLUMNS", "COLUMNS", "MOMENTS", "NUMBERS", "PARTS"]

COLUMNS: Final = {
    "transaction_id": "_id",
    "user_id": "userId",
    "seq": "seq",
    "operation": "operation",
    "action": "action",
    "amount": "amount",
    "balance_before": "balanceBefore",
    "balance_after": "balanceAfter",
    "metadata": "metadata",
    "idempotency_key": "idempotencyKey",
    "refund_of": "refundOf",
    "created_at": "createdAt",
    "legs": "legs",
    "revoke_of": "revokeOf",
    "hold_id": "holdId",
    "uncollected": "uncollected",
    "written_at": "writtenAt",
}
"""The columns of transactions: the fields of ``Transaction``."""

AUDIT_COLUMNS: Final = {
    "audit_id": "_id",
    "user_id": "userId",
    "operation": "operation",
    "action": "action",
    "status": "status",
    "details": "details",
    "metadata": "metadata",
    "error_message": "errorMessage",
    "created_at": "createdAt",
}
"""The columns of audit rows: the fields of ``AuditLog``."""

NUMBERS: Final = frozenset({"seq", "amount", "balance_before", "balance_after", "uncollected"})
"""The columns that are whole numbers."""
MOMENTS: Final = frozenset({"created_at", "written_at"})
"""The columns that are moments."""
PARTS: Final = frozenset({"metadata", "legs"})
"""The columns that are documents, written as JSON."""

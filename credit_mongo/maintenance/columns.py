"""The columns of files with transactions and audit rows, and the fields that are stored."""

from __future__ import annotations

from typing import Final

__all__ = ["AUDIT_COLUMNS", "COLUMNS", "NUMBERS"]

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

NUMBERS: Final = frozenset({"seq", "amount", "balance_before", "balance_after"})
"""The columns that are whole numbers."""

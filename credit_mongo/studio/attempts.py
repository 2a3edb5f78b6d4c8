"""Attempts as the audit log has them, for the pages that list them."""

from __future__ import annotations

from typing import Any, Final

from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.results import AuditLog
from credit_mongo.core.values import check_identifier, check_optional
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.records import RowFilter, RowsPage
from credit_mongo.studio.visits import Visit

__all__ = ["LIMIT", "OPERATION_NAMES", "attempts_of_user", "facts_of", "wanted_attempts"]

LIMIT: Final = 50
OPERATION_NAMES: Final = tuple(sorted(OPERATIONS))
_ROWS_AT_ONCE: Final = 250
_MOST_ROWS: Final = 2_000


def wanted_attempts(visit: Visit, status: str | None) -> RowFilter:
    """What the address asks for. Raises InvalidRequestError."""
    return RowFilter(
        action=check_optional(check_identifier, "action", visit.asked("action")),
        operation=visit.asked_one_of("operation", ("", *OPERATION_NAMES)) or None,
        status=status,
        code=check_optional(check_identifier, "code", visit.asked("code")),
        since=visit.asked_moment("from"),
        until=visit.asked_moment("to"),
    )


async def attempts_of_user(
    ledger: CreditLedger, user_id: str, wanted: RowFilter, cursor: str | None
) -> RowsPage[AuditLog]:
    """One user's attempts, also of a user who doesn't exist. The ledger's own pages are read until
    enough rows pass the filter, or until so many were looked at."""
    limit = LIMIT if wanted.operation is None and wanted.code is None else _ROWS_AT_ONCE
    rows: list[AuditLog] = []
    examined = 0
    while True:
        page = await ledger.get_audit_log(
            user_id,
            limit=limit,
            cursor=cursor,
            status=wanted.status,
            action=wanted.action,
            start_date=wanted.since,
            end_date=wanted.until,
            include_archived=True,
        )
        rows += [row for row in page if _passes(row, wanted)]
        examined += len(page)
        cursor = page.next_cursor
        if cursor is None or len(rows) >= LIMIT or examined >= _MOST_ROWS:
            return RowsPage(tuple(rows), cursor, examined if limit > LIMIT and cursor else None)


def _passes(row: AuditLog, wanted: RowFilter) -> bool:
    return wanted.operation in (None, row.operation) and wanted.code in (
        None,
        row.details.get("code"),
    )


def facts_of(visit: Visit, page: RowsPage[AuditLog], wanted: RowFilter) -> dict[str, Any]:
    """What the templates of both lists need."""
    return {
        "page": page,
        "wanted": wanted,
        "user_id": visit.asked("user") or "",
        "operations": OPERATION_NAMES,
        "is_filtered": wanted != RowFilter(status=wanted.status) or visit.asked("user") is not None,
    }

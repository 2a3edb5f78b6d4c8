"""``credit-mongo audit``: list a user's attempts, including refused ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import (
    Cursor,
    Limit,
    PeriodEnd,
    PeriodStart,
    ShowMetadata,
    json_text,
    moment_of,
    plain,
    shown,
    shown_moment,
    whole_number,
    with_ledger,
)
from credit_mongo.cli.output import AsJson, note, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.results import AuditLog

_COLUMNS: Final[dict[str, Callable[[AuditLog], object]]] = {
    "when": lambda row: shown_moment(row.created_at),
    "status": lambda row: row.status,
    "operation": lambda row: row.operation or None,
    "action": lambda row: row.action,
    "amount": lambda row: None if _moves_nothing(row) else row.details.get("amount"),
    "error": lambda row: row.error_message or None,
    "id": lambda row: row.audit_id,
}


@app.command("audit", rich_help_panel="Records")
def audit(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    limit: Limit = "50",
    cursor: Cursor = None,
    start: PeriodStart = None,
    end: PeriodEnd = None,
    action: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Only this action.")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(metavar="success|failed", show_default=False, help="Only these attempts."),
    ] = None,
    metadata: ShowMetadata = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """List a user's attempts, newest first, including refused ones. The user need not exist.

    Amounts are in smallest units. A note says what a hold has kept or given up. If the
    ledger has decimal places, a terminal shows credits, and
    piped lines have both. Moments are in UTC. Metadata is only shown with --metadata.
    """
    options: dict[str, Any] = {
        "limit": whole_number("--limit", limit),
        "cursor": cursor,
        "start_date": moment_of("from", start),
        "end_date": moment_of("to", end),
        "action": action,
        "status": status,
    }
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    page = with_ledger(where, settings, lambda ledger: ledger.get_audit_log(user, **options))
    if as_json:
        rows = [_facts(row, metadata=metadata) for row in page]
        facts = {"database": where.database, "user_id": user, "attempts": rows}
        show_facts({**facts, "next_cursor": page.next_cursor})
        return DONE
    columns = dict(_COLUMNS)
    if any(_note(row, settings) for row in page):
        columns["note"] = lambda row: _note(row, settings)
    if metadata:
        columns["metadata"] = lambda row: json_text(row.metadata)
    show_rows(
        [*columns],
        [[cell(row) for cell in columns.values()] for row in page],
        whole="id",
        amounts=("amount",),
        decimal_places=settings.decimal_places,
        is_listing=True,
    )
    if not page:
        note(f"{user}: no such attempts")
    if page.next_cursor is not None:
        note(f"next page: --cursor {page.next_cursor}")
    return DONE


def _facts(row: AuditLog, *, metadata: bool) -> dict[str, Any]:
    facts = asdict(row)
    return {name: plain(value) for name, value in facts.items() if metadata or name != "metadata"}


def _moves_nothing(row: AuditLog) -> bool:
    """Whether the attempt was on a hold, whose amount is held and not taken."""
    return row.operation in OPERATIONS and not OPERATIONS[row.operation].moves_credits


def _note(row: AuditLog, settings: CreditConfig) -> str | None:
    """What was held or released, or None if this attempt changed no hold."""
    details = {"amount": "held", "released": "released"} if _moves_nothing(row) else {}
    for name, verb in details.items():
        if row.details.get(name) is not None:
            return f"{shown(row.details[name], settings)} {verb}"
    return None

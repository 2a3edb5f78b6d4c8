"""``credit-mongo audit``: list a user's attempts, including refused ones."""

from __future__ import annotations

import json
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
    moment_of,
    plain,
    shown_moment,
    whole_number,
    with_ledger,
)
from credit_mongo.cli.output import AsJson, note, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.core.results import AuditLog

_COLUMNS: Final = ("when", "status", "operation", "action", "amount", "error", "id")


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

    Amounts are in smallest units. If the ledger has decimal places, a terminal shows credits, and
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
    show_rows(
        (*_COLUMNS, "metadata") if metadata else _COLUMNS,
        [_cells(row, metadata=metadata) for row in page],
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


def _cells(row: AuditLog, *, metadata: bool) -> tuple[object, ...]:
    cells = (
        shown_moment(row.created_at),
        row.status,
        row.operation or None,
        row.action,
        row.details.get("amount"),
        row.error_message or None,
        row.audit_id,
    )
    if not metadata:
        return cells
    text = None if row.metadata is None else json.dumps(plain(row.metadata), ensure_ascii=False)
    return (*cells, text)

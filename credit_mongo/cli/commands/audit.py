"""``credit-mongo audit``: what was attempted on a user, refused attempts too."""

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
    shown,
    shown_moment,
    whole_number,
    with_ledger,
)
from credit_mongo.cli.output import AsJson, show, show_facts, show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.core.results import AuditLog

_COLUMNS: Final = {"when (UTC)": 0, "status": 0, "operation": 0, "action": 0, "outcome": 0, "id": 0}


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
    """List what was attempted on a user, newest first, also on one that does not exist.

    The outcome is the amount in smallest units, or why it was refused; of a ledger with decimal
    places amounts are in credits as well: -1350 (-13.50). Metadata is shown with --metadata only.
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
    columns = {**_COLUMNS, "metadata": 0} if metadata else _COLUMNS
    show_rows(columns, [_cells(row, settings, metadata=metadata) for row in page], whole="id")
    if not page:
        show(f"{user}: no such attempts")
    if page.next_cursor is not None:
        show(f"next page: --cursor {page.next_cursor}")
    return DONE


def _facts(row: AuditLog, *, metadata: bool) -> dict[str, Any]:
    facts = asdict(row)
    return {name: plain(value) for name, value in facts.items() if metadata or name != "metadata"}


def _cells(row: AuditLog, settings: CreditConfig, *, metadata: bool) -> tuple[object, ...]:
    amount = row.details.get("amount")
    cells = (
        shown_moment(row.created_at),
        row.status,
        row.operation or "-",
        row.action,
        row.error_message or shown(amount, settings),
        row.audit_id,
    )
    return (*cells, json.dumps(plain(row.metadata), ensure_ascii=False)) if metadata else cells

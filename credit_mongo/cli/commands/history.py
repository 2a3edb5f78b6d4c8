"""``credit-mongo history``: list a user's transactions, page by page."""

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
from credit_mongo.core.results import Transaction

_COLUMNS: Final[dict[str, Callable[[Transaction], object]]] = {
    "seq": lambda row: row.seq,
    "when": lambda row: shown_moment(row.created_at),
    "operation": lambda row: row.operation or None,
    "action": lambda row: row.action,
    "amount": lambda row: row.amount,
    "balance": lambda row: row.balance_after,
    "transaction": lambda row: row.transaction_id,
}
_PRIVATE: Final = ("metadata", "idempotency_key")


@app.command("history", rich_help_panel="Records")
def history(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    limit: Limit = "50",
    cursor: Cursor = None,
    start: PeriodStart = None,
    end: PeriodEnd = None,
    action: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Only this action.")
    ] = None,
    include_archived: Annotated[
        bool, typer.Option("--include-archived", help="Include the archive collections.")
    ] = False,
    metadata: ShowMetadata = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """List a user's transactions, newest first.

    Amounts are in smallest units, and negative for what was taken. If the ledger has decimal
    places, a terminal shows credits, and piped lines have both. Moments are in UTC. Metadata and
    idempotency keys are only shown with --metadata.

    A note says what a capture or a revocation was to take but could not (uncollected), and that a
    transaction was written later than it is dated: time led to it, as to the expiry of a lot. With
    --json, each transaction has its parts by lot, and when it was written.
    """
    options: dict[str, Any] = {
        "limit": whole_number("--limit", limit),
        "cursor": cursor,
        "start_date": moment_of("from", start),
        "end_date": moment_of("to", end),
        "action": action,
        "include_archived": include_archived,
    }
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    page = with_ledger(where, settings, lambda ledger: ledger.get_history(user, **options))
    if as_json:
        rows = [_facts(row, metadata=metadata) for row in page]
        facts = {"database": where.database, "user_id": user, "transactions": rows}
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
        whole="transaction",
        amounts=("amount", "balance"),
        decimal_places=settings.decimal_places,
        is_listing=True,
    )
    if not page:
        hint = "" if include_archived else "; --include-archived shows archived ones"
        note(f"{user}: no such transactions{hint}")
    if page.next_cursor is not None:
        note(f"next page: --cursor {page.next_cursor}")
    return DONE


def _facts(row: Transaction, *, metadata: bool) -> dict[str, Any]:
    return {
        name: plain(value)
        for name, value in asdict(row).items()
        if metadata or name not in _PRIVATE
    }


def _note(row: Transaction, settings: CreditConfig) -> str | None:
    parts = [f"{shown(row.uncollected, settings)} uncollected"] if row.uncollected else []
    parts += [] if row.written_at is None else ["written later"]
    return ", ".join(parts) or None

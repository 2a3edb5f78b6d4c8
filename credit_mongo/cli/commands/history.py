"""``credit-mongo history``: list a user's transactions, page by page."""

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
from credit_mongo.core.results import Transaction

_COLUMNS: Final = ("seq", "when", "operation", "action", "amount", "balance", "transaction")
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

    Amounts are in smallest units, and negative for charges. If the ledger has decimal places, a
    terminal shows credits, and piped lines have both. Moments are in UTC. Metadata and idempotency
    keys are only shown with --metadata.
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
    show_rows(
        (*_COLUMNS, "metadata") if metadata else _COLUMNS,
        [_cells(row, metadata=metadata) for row in page],
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


def _cells(row: Transaction, *, metadata: bool) -> tuple[object, ...]:
    cells = (
        row.seq,
        shown_moment(row.created_at),
        row.operation or None,
        row.action,
        row.amount,
        row.balance_after,
        row.transaction_id,
    )
    if not metadata:
        return cells
    text = None if row.metadata is None else json.dumps(plain(row.metadata), ensure_ascii=False)
    return (*cells, text)

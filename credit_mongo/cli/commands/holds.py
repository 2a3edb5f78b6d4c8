"""``credit-mongo holds``: list a user's holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import (
    Limit,
    ShowMetadata,
    json_text,
    plain,
    shown_moment,
    whole_number,
    with_ledger,
)
from credit_mongo.cli.output import AsJson, note, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.core.operations.hold_results import Hold

_COLUMNS: Final = ("ends", "status", "action", "amount", "captured", "used", "hold")


@app.command("holds", rich_help_panel="Records")
def holds(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="active|captured|released|expired",
            show_default=False,
            help="Only these holds.",
        ),
    ] = None,
    limit: Limit = "50",
    metadata: ShowMetadata = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """List a user's holds as of now, newest first.

    A hold keeps credits for work under way. Captured is what was charged so far, used what the work
    last reported. Amounts are in smallest units. If the ledger has decimal places, a terminal shows
    credits, and piped lines have both. Moments are in UTC. Metadata is only shown with --metadata.
    """
    number = whole_number("--limit", limit)
    options: dict[str, Any] = {"status": status, "limit": number}
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    found = with_ledger(where, settings, lambda ledger: ledger.get_holds(user, **options))
    if as_json:
        listed = [_facts(hold, metadata=metadata) for hold in found]
        show_facts({"database": where.database, "user_id": user, "holds": listed})
        return DONE
    show_rows(
        (*_COLUMNS, "metadata") if metadata else _COLUMNS,
        [_cells(hold, metadata=metadata) for hold in found],
        whole="hold",
        amounts=("amount", "captured", "used"),
        decimal_places=settings.decimal_places,
        is_listing=True,
    )
    if not found:
        note(f"{user}: no such holds")
    elif len(found) == number:
        note(f"only the newest {number} are shown: --limit shows more, up to 1000")
    return DONE


def _facts(hold: Hold, *, metadata: bool) -> dict[str, Any]:
    left_out = {"replayed"} if metadata else {"replayed", "metadata"}
    return {name: plain(value) for name, value in asdict(hold).items() if name not in left_out}


def _cells(hold: Hold, *, metadata: bool) -> tuple[object, ...]:
    cells = (
        shown_moment(hold.expires_at),
        hold.status,
        hold.action,
        hold.amount,
        hold.captured,
        hold.used,
        hold.hold_id,
    )
    return (*cells, json_text(hold.metadata)) if metadata else cells

"""``credit-mongo refund``: give credits back, of a charge or without one."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import Action, DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("refund", rich_help_panel="Accounts")
def refund(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In smallest units.")],
    *,
    action: Action,
    transaction: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            show_default=False,
            help="The charge to refund. The refund can't exceed what is left of it.",
        ),
    ] = None,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Give credits back to a user: AMOUNT smallest units.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and refunds nothing twice. --json doesn't print a key in advance, so give your
    own. If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    units = whole_number("AMOUNT", amount)
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.refund(
            user, units, action=action, transaction_id=transaction, **options
        ),
    )

"""``credit-mongo revoke``: take back a grant."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import Action, DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("revoke", rich_help_panel="Accounts")
def revoke(
    transaction: Annotated[
        str, typer.Argument(metavar="TRANSACTION", help="The grant's id, as history shows it.")
    ],
    *,
    action: Action,
    amount: Annotated[
        str | None,
        typer.Option(
            metavar="N", show_default=False, help="Smallest units. Default: all that is left of it."
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
    """Take back a grant, such as one whose payment was charged back.

    The credits come from the lot that the grant went into, then from the balance outside of lots,
    then from the user's overdraft. What was spent or is held beyond that stays uncollected.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and revokes nothing twice. --json doesn't print a key in advance, so give your
    own. If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    units = None if amount is None else whole_number("--amount", amount)
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.revoke(transaction, units, action=action, **options),
    )

"""``credit-mongo charge``: charge a user the price of an action, or a given amount."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import (
    DryRun,
    Invocation,
    Key,
    MetadataText,
    perform,
    variables_from,
)
from credit_mongo.cli.output import AsJson


@app.command("charge", rich_help_panel="Accounts")
def charge(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    action: Annotated[str, typer.Argument(metavar="ACTION", help="What it's for.")],
    *,
    amount: Annotated[
        str | None,
        typer.Option(metavar="N", show_default=False, help="Smallest units, instead of the price."),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER", show_default=False, help="A variable of the price's formula."
        ),
    ] = None,
    config: ConfigFile = None,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Charge a user the price of ACTION in --config, or the smallest units of --amount.

    Without --config, no action requires a tier. The idempotency key is printed before anything is
    sent. Repeating the command with the key gives the same answer and charges nothing twice. --json
    doesn't print a key in advance, so give your own. If the ledger has decimal places, credits are
    shown too: 1350 (13.50).
    """
    if amount is None and config is None:
        raise typer.BadParameter("give --amount N, or --config with the prices")
    units = None if amount is None else whole_number("--amount", amount)
    variables = variables_from(variable or [])
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.charge(
            user, action, amount=units, variables=variables, **options
        ),
    )

"""``credit-mongo charge``: take credits, an amount or what an action costs."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import Asked, DryRun, Key, MetadataText, do, variables_from
from credit_mongo.cli.output import AsJson


@app.command("charge", rich_help_panel="Accounts")
def charge(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    action: Annotated[str, typer.Argument(metavar="ACTION", help="What for.")],
    *,
    amount: Annotated[
        str | None,
        typer.Option(metavar="N", show_default=False, help="In smallest units, not the price."),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER", show_default=False, help="For a price that is a formula."
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
    """Charge a user what ACTION costs by --config, or --amount of smallest units.

    Without --config no tier is asked for: anyone may be charged for anything. The idempotency key
    is printed before anything is sent; asked again with it, the answer is the same, and nothing is
    taken twice. With --json, give a key of your own to be sure of that. In a ledger with decimal
    places, amounts are shown in credits as well: 1350 (13.50).
    """
    if amount is None and config is None:
        raise typer.BadParameter("--amount N is needed, or --config FILE with the prices")
    units = None if amount is None else whole_number("--amount", amount)
    variables = variables_from(variable or [])
    where = Connecting.to(uri, database, timeout)
    asked = Asked(where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json)
    return do(
        asked,
        lambda ledger, options: ledger.charge(
            user, action, amount=units, variables=variables, **options
        ),
    )

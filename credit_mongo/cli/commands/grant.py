"""``credit-mongo grant``: give a user credits."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import Action, DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("grant", rich_help_panel="Accounts")
def grant(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In smallest units.")],
    *,
    action: Action,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Give a user credits: AMOUNT smallest units.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and grants nothing twice. --json doesn't print a key in advance, so give your
    own. If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    units = whole_number("AMOUNT", amount)
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation, lambda ledger, options: ledger.grant(user, units, action=action, **options)
    )

"""``credit-mongo overdraft``: let a user's balance go below zero."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.operations import DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("overdraft", rich_help_panel="Accounts")
def overdraft(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    limit: Annotated[
        str, typer.Argument(metavar="LIMIT", help="In smallest units. 0: no overdraft.")
    ],
    *,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Let a user's balance go LIMIT smallest units below zero.

    The next grants repay a debt. A limit below the present debt is allowed: charges are refused
    until enough is repaid.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and changes nothing twice. --json doesn't print a key in advance, so give your
    own. If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    units = whole_number("LIMIT", limit)
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(invocation, lambda ledger, options: ledger.set_overdraft(user, units, **options))

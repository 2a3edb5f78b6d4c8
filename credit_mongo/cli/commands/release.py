"""``credit-mongo release``: free the credits of a hold."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.operations import DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("release", rich_help_panel="Accounts")
def release(
    hold: Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id, as holds shows it.")],
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
    """End an active hold without charging anything more, so that its credits can be spent.

    Work that still uses the hold goes on, but can't be charged any more. Say who did it and why in
    --metadata, which the audit log keeps.

    The idempotency key is printed before anything is sent. Releasing a hold again changes nothing,
    with or without the key. --json doesn't print a key in advance, so give your own. If the ledger
    has decimal places, credits are shown too: 1350 (13.50).
    """
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(invocation, lambda ledger, options: ledger.release_hold(hold, **options))

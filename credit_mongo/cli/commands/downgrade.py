"""``credit-mongo downgrade``: move a user to a lower tier."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.operations import DryRun, Invocation, Key, MetadataText, NoExpiry, perform
from credit_mongo.cli.output import AsJson


@app.command("downgrade", rich_help_panel="Accounts")
def downgrade(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    tier: Annotated[str, typer.Argument(metavar="TIER", help="The tier to move to.")],
    *,
    no_expiry: NoExpiry = False,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Move a user to a lower tier, and set the balance without lots by the tier's cap.

    By default, credits above the cap are lost: membership.on_change in the configuration decides.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and does nothing twice. --json doesn't print a key in advance, so give your own.
    """
    if config is None:
        raise typer.BadParameter("--config is missing: it defines the tiers")
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.downgrade_tier(
            user, tier, clear_expiration=no_expiry, **options
        ),
    )

"""``credit-mongo downgrade``: move a user to a lower tier."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.operations import Asked, DryRun, Key, MetadataText, NoExpiry, do
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
    """Move a user to a lower tier, and set the balance to the tier's cap: more than that is lost.

    The idempotency key is printed before anything is sent. With the same key again, the answer is
    the same, and nothing happens twice. With --json, give a key of your own to be sure of that.
    """
    if config is None:
        raise typer.BadParameter("--config is needed: it says what tiers there are")
    where = Connecting.to(uri, database, timeout)
    asked = Asked(where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json)
    return do(
        asked,
        lambda ledger, options: ledger.downgrade_tier(
            user, tier, clear_expiration=no_expiry, **options
        ),
    )

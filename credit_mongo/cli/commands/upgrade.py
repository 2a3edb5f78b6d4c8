"""``credit-mongo upgrade``: move a user to a higher tier."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.operations import (
    DryRun,
    ExpiresAt,
    Invocation,
    Key,
    MetadataText,
    NoExpiry,
    expiry_of,
    perform,
)
from credit_mongo.cli.output import AsJson


@app.command("upgrade", rich_help_panel="Accounts")
def upgrade(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    tier: Annotated[str, typer.Argument(metavar="TIER", help="The tier to move to.")],
    *,
    expires_at: ExpiresAt = None,
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
    """Move a user to a higher tier, and set the balance without lots by its cap.

    Without --expires-at or --no-expiry, an expiry in the future stays and a past one is removed.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and does nothing twice. --json doesn't print a key in advance, so give your own.
    """
    if config is None:
        raise typer.BadParameter("--config is missing: it defines the tiers")
    moment = expiry_of(expires_at, never=no_expiry)
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.upgrade_tier(
            user, tier, membership_expires_at=moment, **options
        ),
    )

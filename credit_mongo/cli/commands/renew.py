"""``credit-mongo renew``: renew a user's tier until a new expiry."""

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
from credit_mongo.core.values import Keep


@app.command("renew", rich_help_panel="Accounts")
def renew(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    expires_at: ExpiresAt = None,
    no_expiry: NoExpiry = False,
    no_refill: Annotated[
        bool, typer.Option("--no-refill", help="Leave the balance as it is.")
    ] = False,
    allow_earlier: Annotated[
        bool,
        typer.Option("--allow-earlier", help="Allow an expiry before the present one."),
    ] = False,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Renew a user's tier until a new expiry, and set the balance without lots.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and does nothing twice. --json doesn't print a key in advance, so give your own.
    """
    if config is None:
        raise typer.BadParameter("--config is missing: it defines the tiers")
    moment = expiry_of(expires_at, never=no_expiry)
    if isinstance(moment, Keep):
        raise typer.BadParameter("the new expiry is missing: give --expires-at DATE or --no-expiry")
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.renew_tier(
            user,
            membership_expires_at=moment,
            refill=not no_refill,
            allow_earlier=allow_earlier,
            **options,
        ),
    )

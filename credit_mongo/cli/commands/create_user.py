"""``credit-mongo create-user``: open an account."""

from __future__ import annotations

from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import moment_of, whole_number
from credit_mongo.cli.operations import DryRun, ExpiresAt, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson


@app.command("create-user", rich_help_panel="Accounts")
def create_user(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    opening_credits: Annotated[
        str, typer.Option("--credits", metavar="N", help="Opening credits, in smallest units.")
    ] = "0",
    tier: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The first tier. Needs --config."),
    ] = None,
    expires_at: ExpiresAt = None,
    idempotency_key: Key = None,
    metadata: MetadataText = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Open an account for a user, with its first credits and tier.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and does nothing twice. --json doesn't print a key in advance, so give your own.
    """
    if tier is not None and config is None:
        raise typer.BadParameter("--tier needs --config, which defines the tiers")
    units, moment = (
        whole_number("--credits", opening_credits),
        moment_of("--expires-at", expires_at),
    )
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, options: ledger.create_user(
            user, credits=units, membership_tier=tier, membership_expires_at=moment, **options
        ),
    )

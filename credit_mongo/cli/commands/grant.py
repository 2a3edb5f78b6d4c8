"""``credit-mongo grant``: give a user credits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.ledgers import moment_of, whole_number
from credit_mongo.cli.operations import Action, DryRun, Invocation, Key, MetadataText, perform
from credit_mongo.cli.output import AsJson
from credit_mongo.core.extras import BASE_PRIORITY


@app.command("grant", rich_help_panel="Accounts")
def grant(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In smallest units.")],
    *,
    action: Action,
    expires_at: Annotated[
        str | None,
        typer.Option(
            "--expires-at",
            metavar="DATE",
            show_default=False,
            help="When what is left of these credits expires, UTC. Default: never.",
        ),
    ] = None,
    priority: Annotated[
        str,
        typer.Option(
            "--priority", metavar="N", help="From 0 to 100. Lower numbers are used first."
        ),
    ] = str(BASE_PRIORITY),
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            show_default=False,
            help="Where the credits come from. Keeps them apart from those of other sources.",
        ),
    ] = None,
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

    With --expires-at, --source or a --priority other than 50, the credits are kept apart, as a lot
    that balance shows. A debt is repaid first.

    The idempotency key is printed before anything is sent. Repeating the command with the key gives
    the same answer and grants nothing twice. --json doesn't print a key in advance, so give your
    own. If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    units = whole_number("AMOUNT", amount)
    options: dict[str, Any] = {
        "action": action,
        "expires_at": moment_of("--expires-at", expires_at),
        "priority": whole_number("--priority", priority),
        "source": source,
    }
    where = Connecting.to(uri, database, timeout)
    invocation = Invocation(
        where, settings_of(where, config), idempotency_key, metadata, dry_run, as_json
    )
    return perform(
        invocation,
        lambda ledger, common: ledger.grant(user, units, **options, **common),
        lot_ends=options["expires_at"],
    )

"""``credit-mongo balance``: show a user's credits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import plain, shown, with_ledger
from credit_mongo.cli.output import AsJson, show, show_facts


@app.command("balance", rich_help_panel="Accounts")
def balance(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.")],
    *,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Show a user's balance in smallest units. With --json, also the tier, its expiry and seq.

    If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    found = with_ledger(where, settings, lambda ledger: ledger.get_user(user))
    if as_json:
        facts = {name: plain(value) for name, value in asdict(found).items() if name != "replayed"}
        show_facts({"database": where.database, **facts})
    else:
        show(shown(found.credits, settings))
    return DONE

"""``credit-mongo balance``: show a user's credits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, astuple
from typing import Annotated, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import plain, shown, shown_moment, with_ledger
from credit_mongo.cli.output import AsJson, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.core.breakdown import is_used_after_base
from credit_mongo.core.extras import BASE_PRIORITY, Lot
from credit_mongo.core.results import User

_COLUMNS: Final = ("lot", "amount", "expires", "priority", "source")
_NO_LOT: Final = "in no lot"


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
    """Show a user's balance as of now, in smallest units.

    With it come the lots in the order of their use, what holds keep, the overdraft, and what a
    charge can take, if the user has any of these. With --json, also the tier, its expiry and seq.
    If the ledger has decimal places, credits are shown too: 1350 (13.50).
    """
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)
    found = with_ledger(where, settings, lambda ledger: ledger.get_user(user))
    if as_json:
        facts = {name: plain(value) for name, value in asdict(found).items() if name != "replayed"}
        show_facts({"database": where.database, **facts})
    else:
        _show(found, settings)
    return DONE


def _show(user: User, settings: CreditConfig) -> None:
    show(shown(user.credits, settings))
    rare = {"held": user.held, "overdraft": user.overdraft}
    if any(rare.values()):
        parts = {"available": user.available, **{n: amount for n, amount in rare.items() if amount}}
        show(", ".join(f"{name} {shown(amount, settings)}" for name, amount in parts.items()))
    if user.lots:
        show_rows(
            _COLUMNS,
            [*_rows(user)],
            whole="lot",
            amounts=("amount",),
            decimal_places=settings.decimal_places,
        )


def _rows(user: User) -> Iterator[tuple[object, ...]]:
    """The parts of the balance in the order of their use: the lots, and what is in none."""
    base = user.credits - sum(lot.amount for lot in user.lots)
    base_is_next = base != 0
    for lot in user.lots:
        if base_is_next and is_used_after_base(Lot(*astuple(lot))):
            base_is_next = False
            yield _NO_LOT, base, None, BASE_PRIORITY, None
        yield lot.lot_id, lot.amount, shown_moment(lot.expires_at), lot.priority, lot.source
    if base_is_next:
        yield _NO_LOT, base, None, BASE_PRIORITY, None

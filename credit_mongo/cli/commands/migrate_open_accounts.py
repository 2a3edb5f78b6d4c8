"""``credit-mongo migrate open-accounts``: give existing users an account, each once."""

from __future__ import annotations

import gc
from typing import Annotated, Any, get_args

import typer
from bson import json_util

from credit_mongo.cli.commands.migrate import migrate
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE, FOUND
from credit_mongo.cli.ledgers import plain, shown, whole_number
from credit_mongo.cli.output import AsJson, progress, show, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.maintenance.old_balances import Floats, Negative, Rules, Unit
from credit_mongo.maintenance.open_accounts import OpenedAccounts, open_accounts
from credit_mongo.storage.database import LedgerDatabase

_COLUMNS = ("user", "kind", "value", "units", "lacks")


@migrate.command("open-accounts")
def open_accounts_command(
    *,
    opening_credits: Annotated[
        str, typer.Option("--credits", metavar="N", help="Opening credits, in smallest units.")
    ],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", show_default=False, help="Only documents that this query finds."
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The first tier. Needs --config."),
    ] = None,
    floats: Annotated[
        str,
        typer.Option(
            metavar="round|refuse",
            help="Balances that are floats, strings or Decimal128: round them half up.",
        ),
    ] = "refuse",
    negative: Annotated[
        str,
        typer.Option(
            metavar="zero|debt|refuse",
            help="Balances below zero: forgive them, or keep them with an overdraft.",
        ),
    ] = "refuse",
    balances_in: Annotated[
        str | None,
        typer.Option(
            metavar="units|credits",
            show_default=False,
            help="The unit of old balances. Needed if a credit has decimal places.",
        ),
    ] = None,
    full_speed: Annotated[
        bool, typer.Option("--full-speed", help="Do not slow down while users are being charged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing. List what would be done.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Open an account for each user's document that has none. The credits are its first row.

    Run it again after it was interrupted. Nobody gets the credits twice, not even users who have
    spent them all. An old balance becomes the account's first transaction instead, if the options
    allow to convert it. Exit code 1: documents were left as they are. The reasons are shown.
    """
    units = whole_number("--credits", opening_credits)
    if tier is not None and config is None:
        raise typer.BadParameter("--tier needs --config, which defines the tiers")
    query = _query(where)
    at = Connecting.to(uri, database, timeout)
    settings = settings_of(at, config)
    rules = _rules(floats, negative, balances_in, settings)

    async def work(found: Database) -> OpenedAccounts:
        # Millions of rows come and go, none of them in a cycle. Collecting less often saves time.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with progress("Opening", "accounts") as advance:
            return await open_accounts(
                LedgerDatabase.of(found, settings.collections, settings.users),
                settings,
                units,
                where=query,
                tier=tier,
                rules=rules,
                dry_run=dry_run,
                full_speed=full_speed,
                on_progress=advance,
            )

    opened = at.run_on_ledger(settings, work)
    if as_json:
        show_facts({"database": at.database, "dry_run": dry_run, **plain(opened.to_dict())})
    else:
        _show(opened, at.database, shown(units, settings), dry_run=dry_run)
    return FOUND if opened.left else DONE


def _show(opened: OpenedAccounts, database: str, units: str, *, dry_run: bool) -> None:
    rows = [tuple(_text(each) for each in example.values()) for example in opened.examples]
    if rows and (dry_run or opened.left):
        show_rows(_COLUMNS, rows)
    for reason, count in sorted(opened.left.items()):
        show(f"left: {count:,} × {reason}")  # noqa: RUF001
    would = "would be " if dry_run else ""
    done = (
        f"{opened.opened:,} accounts {would}opened with {units}, "
        f"{opened.converted:,} old balances {would}converted, "
        f"{opened.signed_up:,} users signed up meanwhile"
    )
    show(f"{database}: {done}{' (dry run: nothing was written)' if dry_run else ''}")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _query(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        # Extended JSON also has ids and dates: {"_id": {"$oid": "…"}}.
        found = json_util.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise typer.BadParameter("--where is not JSON") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("--where must be a JSON object")
    return found


def _rules(floats: str, negative: str, balances_in: str | None, settings: CreditConfig) -> Rules:
    for option, value, allowed in (
        ("--floats", floats, get_args(Floats)),
        ("--negative", negative, get_args(Negative)),
        ("--balances-in", balances_in or "units", get_args(Unit)),
    ):
        if value not in allowed:
            raise typer.BadParameter(f"{option} must be {' or '.join(allowed)}, not {value[:40]!r}")
    places = settings.decimal_places
    converts = floats != "refuse" or negative != "refuse"
    if places and converts and balances_in is None:
        raise typer.BadParameter(
            f"--balances-in is missing: a credit has {places} decimal places, so say whether old "
            "balances are in credits or in units"
        )
    return Rules(floats, negative, balances_in or "units", places)  # type: ignore[arg-type]

"""``credit-mongo users``: list the users, page by page."""

from __future__ import annotations

import contextlib
import shlex
from datetime import datetime, timezone
from typing import Annotated, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import Cursor, Limit, plain, shown_moment, whole_number
from credit_mongo.cli.output import AsJson, note, show_facts
from credit_mongo.cli.tables import show_rows
from credit_mongo.config import CreditConfig
from credit_mongo.core.advance import as_of
from credit_mongo.core.values import LARGEST_BALANCE, Account, check_identifier, check_optional
from credit_mongo.errors import AccountDataError, InvalidRequestError
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.pages import LARGEST_LIMIT
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.users import StoredUsers

_COLUMNS: Final = ("user", "balance", "tier", "tier expires", "seq")
_NAMES: Final = ("credits", "membership_tier", "membership_expires_at", "seq")


@app.command("users", rich_help_panel="Accounts")
def users(
    *,
    tier: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Only users in this tier."),
    ] = None,
    below: Annotated[
        str | None,
        typer.Option(
            metavar="N", show_default=False, help="Only users with less than N smallest units."
        ),
    ] = None,
    limit: Limit = "50",
    cursor: Cursor = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """List users by id, with balance, tier and seq (the number of transactions).

    Balances are in smallest units, and as of now: without lots that have expired. If the ledger has
    decimal places, a terminal shows credits, and piped lines have both. Expired tiers are listed
    too. Expiries are in UTC. The cursor is the last
    id of a page. With --below, the server reads users by id until a page is full: balances have no
    index, because each charge would pay for it.
    """
    count = whole_number("--limit", limit)
    if not 1 <= count <= LARGEST_LIMIT:
        raise InvalidRequestError("limit", f"must be from 1 to {LARGEST_LIMIT}")
    after = check_optional(check_identifier, "cursor", cursor)
    tier = check_optional(check_identifier, "tier", tier)
    most = None if below is None else min(whole_number("--below", below), LARGEST_BALANCE)
    where = Connecting.to(uri, database, timeout)
    settings = settings_of(where, config)

    async def work(found: Database) -> list[Raw]:
        ledger = LedgerDatabase.of(found, settings.collections, settings.users)
        users = ledger.users
        # Documents with ids of another type don't belong to the ledger.
        query: Raw = {"_id": users.ids_above(after)}
        query |= _conditions(users, tier, most)
        rows: list[Raw] = []
        async for row in ledger[ledger.names.users].find(query, users.fields, sort=[("_id", 1)]):
            facts = _facts(row, users, settings)
            # Time may have taken credits, and nobody has written that yet.
            if most is None or _is_below(facts["credits"], most):
                rows.append(facts)
            if len(rows) > count:
                break
        return rows

    rows = where.run_on_ledger(settings, work)
    page, more = rows[:count], len(rows) > count
    next_cursor = page[-1]["user_id"] if more else None
    if as_json:
        listed = [{name: plain(value) for name, value in row.items()} for row in page]
        show_facts({"database": where.database, "users": listed, "next_cursor": next_cursor})
        return DONE
    show_rows(
        _COLUMNS,
        [_cells(row) for row in page],
        whole="user",
        amounts=("balance",),
        decimal_places=settings.decimal_places,
        is_listing=True,
    )
    if not page:
        note(f"{where.database}: no such users")
    if next_cursor is not None:
        note(f"next page: --cursor {shlex.quote(next_cursor)}")
    return DONE


def _conditions(users: StoredUsers, tier: str | None, below: int | None) -> Raw:
    names = users.names
    conditions: Raw = {} if tier is None else {names.membership_tier: tier}
    if below is not None:
        # Time may take credits only of accounts that have extras.
        conditions["$or"] = [
            {names.credits: {"$lt": below}},
            {names.credits: {"$gte": below}, names.extras: {"$type": "object"}},
        ]
    return conditions


def _facts(row: Raw, users: StoredUsers, settings: CreditConfig) -> Raw:
    facts = {name: row.get(getattr(users.names, name)) for name in _NAMES}
    # Other software may have written anything, which is shown as it is.
    with contextlib.suppress(AccountDataError):
        facts["credits"] = _credits_now(users.account_from(row), settings)
    return {"user_id": users.user_id_of(row), **facts}


def _credits_now(account: Account, settings: CreditConfig) -> int:
    now = settings.policy.time_for(account, datetime.now(timezone.utc))
    return as_of(account, now).credits


def _is_below(amount: object, most: int) -> bool:
    # The server has compared what is no number of Python.
    return not isinstance(amount, int | float) or amount < most


def _cells(row: Raw) -> tuple[object, ...]:
    expires_at = shown_moment(row["membership_expires_at"])
    return row["user_id"], row["credits"], row["membership_tier"], expires_at, row["seq"]

"""Deployments of the Credit SDK in SQL databases: tables as Prisma makes them, and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

__all__ = ["TABLES", "create_tables", "fill", "insert"]

_ROWS_AT_ONCE: Final = 5_000
_OPENING: Final = 1_000_000
_COST: Final = 10
_FIRST: Final = datetime(2025, 1, 1, tzinfo=timezone.utc)


def _text(length: int = 191) -> sa.String:
    return sa.String(length)


def _moment() -> sa.types.TypeEngine[datetime]:
    moment = sa.DateTime().with_variant(postgresql.TIMESTAMP(precision=3), "postgresql")
    return moment.with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def tables_of(amount: sa.types.TypeEngine[Any]) -> sa.MetaData:
    """Return the tables, with amounts of a type."""
    metadata = sa.MetaData()
    column = sa.Column
    sa.Table(
        *("User", metadata, column("id", _text(), primary_key=True)),
        *(column("credits", amount, nullable=False), column("membershipTier", _text())),
        column("membershipExpiresAt", _moment()),
        column("createdAt", _moment(), nullable=False),
        column("updatedAt", _moment(), nullable=False),
    )
    sa.Table(
        *("Transaction", metadata, column("id", _text(), primary_key=True)),
        *(column("userId", _text(), nullable=False), column("action", _text(), nullable=False)),
        *(column(each, amount) for each in ("amount", "balanceBefore", "balanceAfter")),
        *(column("metadata", _json()), column("createdAt", _moment(), nullable=False)),
        sa.Index("Transaction_userId_createdAt_idx", "userId", "createdAt"),
    )
    sa.Table(
        *("AuditLog", metadata, column("id", _text(), primary_key=True)),
        *(column("userId", _text(), nullable=False), column("action", _text(), nullable=False)),
        *(column("status", _text()), column("metadata", _json()), column("errorMessage", sa.Text)),
        column("createdAt", _moment(), nullable=False),
        sa.Index("AuditLog_userId_createdAt_idx", "userId", "createdAt"),
    )
    sa.Table(
        *("IdempotencyRecord", metadata, column("key", _text(), primary_key=True)),
        *(column("result", _json()), column("createdAt", _moment(), nullable=False)),
        column("expiresAt", _moment(), nullable=False),
        sa.Index("IdempotencyRecord_expiresAt_idx", "expiresAt"),
    )
    return metadata


TABLES: Final = tables_of(sa.Integer())
"""With whole amounts."""


def create_tables(engine: sa.Engine, tables: sa.MetaData = TABLES) -> None:
    """Create the tables anew."""
    tables.drop_all(engine)
    tables.create_all(engine)


def insert(engine: sa.Engine, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows in bulk, in the fastest way that the driver has."""
    if not rows:
        return
    with engine.begin() as connection:
        if engine.dialect.name != "postgresql":
            connection.execute(TABLES.tables[table].insert(), rows)
            return
        names = list(rows[0])
        driver: Any = connection.connection.driver_connection
        columns = ", ".join(f'"{name}"' for name in names)
        with driver.cursor().copy(f'COPY "{table}" ({columns}) FROM STDIN') as copy:
            for row in rows:
                copy.write_row([_as_text(row[name]) for name in names])


def _as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def fill(engine: sa.Engine, *, users: int, transactions: int, keys: int) -> None:
    """Fill the tables: users who take turns to be charged, each charge with its audit row.

    The last charges have keys.
    """
    for rows in _in_parts(_users(users, transactions)):
        insert(engine, "User", rows)
    for first in range(0, transactions, _ROWS_AT_ONCE):
        numbers = range(first, min(first + _ROWS_AT_ONCE, transactions))
        insert(engine, "Transaction", [_transaction(each, users) for each in numbers])
        insert(engine, "AuditLog", [_audit(each, users) for each in numbers])
    for first in range(transactions - keys, transactions, _ROWS_AT_ONCE):
        numbers = range(first, min(first + _ROWS_AT_ONCE, transactions))
        insert(engine, "IdempotencyRecord", [_key(each) for each in numbers])


def _in_parts(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == _ROWS_AT_ONCE:
            yield part
            part = []
    yield part


def _moment_of(number: int) -> datetime:
    # Naive, in UTC, as Prisma stores it.
    return (_FIRST + timedelta(milliseconds=17 * number)).replace(tzinfo=None)


def _user_id(number: int) -> str:
    return f"cluser{number * 2654435761 % 2**32:08x}{number:08d}"


def _users(users: int, transactions: int) -> Iterator[dict[str, Any]]:
    for number in range(users):
        charges = transactions // users + (number < transactions % users)
        yield {
            "id": _user_id(number),
            "credits": _OPENING - _COST * charges,
            "membershipTier": "pro",
            "membershipExpiresAt": None,
            "createdAt": _moment_of(0),
            "updatedAt": _moment_of(users * (charges - 1) + number),
        }


def _transaction(number: int, users: int) -> dict[str, Any]:
    earlier, user = divmod(number, users)
    before = _OPENING - _COST * earlier
    return {
        "id": f"cltran{number:020d}",
        "userId": _user_id(user),
        "action": "generate-post",
        "amount": -_COST,
        "balanceBefore": before,
        "balanceAfter": before - _COST,
        "metadata": {"post": number, "model": "small"},
        "createdAt": _moment_of(number),
    }


def _audit(number: int, users: int) -> dict[str, Any]:
    row = _transaction(number, users)
    told = {"operation": row["action"], "cost": _COST, "transactionId": row["id"]}
    balances = {name: row[name] for name in ("balanceBefore", "balanceAfter")}
    return {
        "id": f"claudi{number:020d}",
        "userId": row["userId"],
        "action": "charge",
        "status": "success",
        "metadata": {**told, **balances, **row["metadata"]},
        "errorMessage": None,
        "createdAt": row["createdAt"],
    }


def _key(number: int) -> dict[str, Any]:
    result = {"success": True, "transactionId": f"cltran{number:020d}", "cost": _COST}
    return {
        "key": f"key-{number:012d}",
        "result": result,
        "createdAt": _moment_of(number),
        "expiresAt": _moment_of(number) + timedelta(days=36500),
    }

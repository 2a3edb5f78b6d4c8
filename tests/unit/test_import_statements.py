"""The statements of an import, as each dialect writes them. Not all of them can be run here."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from sqlalchemy.dialects import mssql, mysql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy_cockroachdb.psycopg import (  # type: ignore[import-untyped]
    CockroachDBDialect_psycopg,
)

from credit_mongo.errors import InvalidRequestError, LedgerImportError
from credit_mongo.maintenance.imports.source_urls import parse_url
from credit_mongo.maintenance.imports.sql_source import Statements
from credit_mongo.maintenance.imports.tables import KINDS, Names, find_tables

DIALECTS: dict[str, Any] = {
    "postgresql": PGDialect_psycopg,
    "cockroachdb": CockroachDBDialect_psycopg,
    "sqlserver": mssql.dialect,
    "mysql": mysql.dialect,
    "sqlite": sqlite.dialect,
}
PRISMAS = {
    "User": ["id", "credits", "membershipTier", "membershipExpiresAt", "createdAt", "updatedAt"],
    "Transaction": [
        *("id", "userId", "action", "amount", "balanceBefore", "balanceAfter", "metadata"),
        "createdAt",
    ],
    "AuditLog": ["id", "userId", "action", "status", "metadata", "errorMessage", "createdAt"],
    "IdempotencyRecord": ["key", "result", "createdAt", "expiresAt"],
}
AT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def compiled(statement: Any, dialect: str) -> str:
    """A statement as a dialect writes it."""
    options = {"render_postcompile": True}
    text = str(statement.compile(dialect=DIALECTS[dialect](), compile_kwargs=options))
    return " ".join(text.split())


def statements() -> Statements:
    """For a deployment as Prisma makes it."""
    tables = find_tables(Names.of({}), PRISMAS, lambda name: PRISMAS[name])
    return Statements(tables, "dbo")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_statement_compiles(dialect: str) -> None:
    """With quoted names, which Prisma's need, and without a value in the text."""
    made = statements()
    all_of_them = [
        *(made.count(kind) for kind in KINDS),
        made.latest("users", "updated_at"),
        made.sample("transactions", "created_at"),
        made.users(None, 10),
        made.users("ann", 10),
        made.users_by_ids(["ann", "bob"]),
        made.changed("transactions", "created_at", AT, 10),
        made.of_users("transactions", ["ann", "bob"], 10),
        made.of_users("audit_logs", ["ann", "bob"], 10),
        made.next_of_user("transactions", "ann", None, 10),
        made.next_of_user("audit_logs", "ann", (AT, "x"), 10),
        made.keys("k", AT, AT, 10),
        made.count_keys(AT),
        made.expiries(AT),
        made.amounts(),
        made.sum_of_amounts(),
    ]
    for statement in all_of_them:
        text = compiled(statement, dialect)
        assert text.startswith("SELECT ")
        assert "'ann'" not in text
        assert "Transaction" not in text.replace('"Transaction"', "").replace(
            "`Transaction`", ""
        ).replace("[Transaction]", "")


def test_pages_are_read_as_each_dialect_limits_them() -> None:
    """In the order of the ids, which each database compares in its own way."""
    made = statements().users("ann", 10)
    assert compiled(made, "sqlserver").startswith("SELECT TOP")
    assert "[User].id > " in compiled(made, "sqlserver").replace("dbo.", "")
    assert compiled(made, "cockroachdb") == compiled(made, "postgresql")
    for dialect in ("postgresql", "mysql", "sqlite"):
        assert " LIMIT " in compiled(made, dialect)
    for dialect in DIALECTS:
        assert "ORDER BY" in compiled(made, dialect)


def test_sums_do_not_overflow() -> None:
    """SQL Server would sum 32-bit numbers up in 32 bits."""
    text = compiled(statements().sum_of_amounts(), "sqlserver")
    assert "sum(CAST(dbo.[Transaction].amount AS NUMERIC(38, 10)))" in text


URLS = {
    "postgresql://u:p@h:1/d?schema=s&connection_limit=1&sslmode=require": (
        "postgresql+psycopg://u:p@h:1/d?sslmode=require",
        "s",
    ),
    "postgres://u:p@h/d": ("postgresql+psycopg://u:p@h/d", None),
    "mysql://u:p@h:3306/d": ("mysql+pymysql://u:p@h:3306/d?charset=utf8mb4", None),
    "mariadb://h/d": ("mariadb+pymysql://h/d?charset=utf8mb4", None),
    "cockroachdb://u:p@h:26257/d?sslmode=require": (
        "cockroachdb+psycopg://u:p@h:26257/d?sslmode=require",
        None,
    ),
    "file:./dev.db": ("sqlite:///./dev.db", None),
    "file:/data/dev.db?connection_limit=1": ("sqlite:////data/dev.db", None),
    "sqlite:///dev.db": ("sqlite:///dev.db", None),
    "sqlite:////data/100%.db": ("sqlite:////data/100%.db", None),
    "sqlserver://h:1433;database=d;user=sa;password=p@;encrypt=true": (
        "mssql+pyodbc://sa:p%40@h:1433/d?driver=ODBC+Driver+18+for+SQL+Server&Encrypt=yes",
        None,
    ),
    "postgresql+pg8000://h/d": ("postgresql+pg8000://h/d", None),
    "mongodb://u:p@h/d": ("mongodb://u:p@h/d", None),
}


@pytest.mark.parametrize("url", URLS)
def test_prisma_s_addresses_become_the_driver_s(url: str) -> None:
    """Without the parameters that only Prisma knows."""
    assert tuple(parse_url(url)) == URLS[url]


@pytest.mark.parametrize("url", ["", "h/d", "oracle://u:secret@h/d", "postgresql://u:secret@[h/d"])
def test_another_address_is_refused_without_being_shown(url: str) -> None:
    """It may have a password."""
    with pytest.raises(LedgerImportError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_tables_are_found_by_the_usual_names() -> None:
    """Prisma's models, or plurals with snake_case."""
    columns = {
        "users": ["id", "credits", "membership_tier", "updated_at"],
        "transactions": [
            *("id", "user_id", "action", "amount", "balance_before", "balance_after"),
            "created_at",
        ],
    }
    names = Names.of({}, ["audit_logs", "idempotency_records"])
    found = find_tables(names, columns, lambda name: columns[name])
    assert found["users"].columns["membership_tier"] == "membership_tier"
    assert "membership_expires_at" not in found["users"].columns
    assert found["transactions"].columns["balance_before"] == "balance_before"


def test_what_is_missing_is_named_with_what_there_is() -> None:
    """And with the option that names it."""
    with pytest.raises(LedgerImportError, match=r"looked for 'AuditLog', .*--without audit_logs"):
        find_tables(
            Names.of({}), [name for name in PRISMAS if name != "AuditLog"], lambda n: PRISMAS[n]
        )
    with pytest.raises(LedgerImportError, match=r"no column 'amount'.*--map transactions\.amount="):
        find_tables(Names.of({}), PRISMAS, lambda name: [c for c in PRISMAS[name] if c != "amount"])
    with pytest.raises(InvalidRequestError, match=r"must name one of users, transactions"):
        Names.of({"accounts": "x"})

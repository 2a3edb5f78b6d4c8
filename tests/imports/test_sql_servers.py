"""Deployments on PostgreSQL and MariaDB become a ledger's books."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.credit_sdk import create_tables, insert, tables_of
from credit_mongo import CreditLedger, LedgerImportError
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.report import ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.storage.database import LedgerDatabase
from tests.imports.conftest import Server
from tests.integration.commands import run, where
from tests.integration.deployments import CONFIG, Deployment, check_books, filled, imported
from tests.integration.promises import Database, rows


def save(server: Server, deployment: Deployment, amount: Any = None) -> None:
    """Store a deployment in tables as Prisma makes them."""
    create_tables(server.engine, tables_of(amount or sa.Integer()))
    for table, found in deployment.tables().items():
        insert(server.engine, table, [_naive(row) for row in found])


def _naive(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _stored(value) for name, value in row.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    # As JavaScript has numbers.
    return json.loads(json.dumps(value, default=float)) if isinstance(value, dict) else value


async def test_a_deployment_is_imported_and_then_what_is_new(
    database: Database, server: Server
) -> None:
    """Users, rows, refusals and keys, with Prisma's own address."""
    deployment = filled()
    save(server, deployment)
    url = f"{server.url}?schema=public&connection_limit=5"
    if server.kind != "postgresql":
        url = f"{server.url}?connection_limit=5"
    report = await imported(database, url)
    assert report.agrees, report.to_dict()
    assert (report.users, report.transactions, report.audit_logs) == (3, 5, 6)
    await check_books(database)
    async with CreditLedger(database, CONFIG) as ledger:
        charged = await ledger.charge("ann", "post", idempotency_key="k-charge")
        assert (charged.replayed, charged.balance_after) == (True, 90)
    deployment.move("bob", "charge", -10, key="k-bob", metadata={"größe": "ß"})
    deployment.fail("cat")
    save(server, deployment)
    report = await imported(database, url)
    assert report.agrees, report.to_dict()
    assert (report.since is not None, report.transactions, report.audit_logs) == (True, 1, 2)
    await check_books(database)
    [row] = await rows(database, "transactions", idempotencyKey="k-bob")
    assert row["metadata"] == {"größe": "ß"}


@pytest.mark.parametrize("kind", ["Numeric", "Double"])
async def test_two_decimals_become_units_exactly(
    database: Database, server: Server, kind: str
) -> None:
    """As decimals of the database, and as its floats."""
    deployment = Deployment()
    deployment.sign_up("ann", Decimal("0.30"))
    for _ in range(3):
        deployment.move("ann", "charge", Decimal("-0.10"))
    deployment.sign_up("bob", Decimal("10000000.07"))
    save(server, deployment, sa.Numeric(16, 2) if kind == "Numeric" else sa.Double())
    config = CONFIG.model_copy(update={"decimal_places": 2})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
    source, rules = source_of(server.url, Names.of({})), ImportRules(decimal_places=2)
    report = await import_credit_sdk(source, LedgerDatabase.of(database), rules)
    assert report.agrees, report.to_dict()
    assert [row["credits"] for row in await rows(database, "users")] == [0, 1000000007]
    await check_books(database)


HAND_WRITTEN = {
    "postgresql": (
        "CREATE TABLE customers (id SERIAL PRIMARY KEY, points INTEGER, plan VARCHAR(50))",
        "CREATE TABLE transactions (id UUID PRIMARY KEY, user_id INTEGER, action VARCHAR(255), "
        "amount INTEGER, balance_before INTEGER, balance_after INTEGER, metadata JSONB, "
        "created_at TIMESTAMPTZ)",
        "INSERT INTO customers (points, plan) VALUES (40, 'pro'), (7, NULL)",
        "INSERT INTO transactions VALUES ('11111111-1111-4111-8111-111111111111', 1, 'post', -10, "
        "50, 40, '{}', '2026-01-01 13:00:00+01')",
    ),
    "mariadb": (
        "CREATE TABLE customers (id INTEGER AUTO_INCREMENT PRIMARY KEY, points INTEGER, "
        "plan VARCHAR(50))",
        "CREATE TABLE transactions (id VARCHAR(36) PRIMARY KEY, user_id INTEGER, "
        "action VARCHAR(255), amount INTEGER, balance_before INTEGER, balance_after INTEGER, "
        "metadata JSON, created_at DATETIME)",
        "INSERT INTO customers (points, plan) VALUES (40, 'pro'), (7, NULL)",
        "INSERT INTO transactions VALUES ('11111111-1111-4111-8111-111111111111', 1, 'post', -10, "
        "50, 40, '{}', '2026-01-01 12:00:00')",
    ),
}


async def test_hand_written_tables_are_mapped(
    database: Database, replica_set_uri: str, server: Server
) -> None:
    """Numbers as ids, snake_case, another table for users, and no audit log."""
    server.execute(*HAND_WRITTEN[server.kind])
    at = where(replica_set_uri, database)
    assert (await run("init", *at))[0] == 0
    options = [
        *("--map", "users=customers", "--map", "users.credits=points"),
        *("--map", "users.membership_tier=plan"),
        *("--without", "audit_logs", "--without", "idempotency_records"),
    ]
    for _ in range(2):
        code, output, errors = await run(
            "import", "credit-sdk", *options, "--json", *at, CREDIT_SDK_URL=server.url
        )
        assert (code, errors) == (0, ""), output + errors
    users = {row["_id"]: row["credits"] for row in await rows(database, "users")}
    assert users == {"1": 40, "2": 7}
    [row] = await rows(database, "transactions", operation="charge")
    assert (row["userId"], row["createdAt"].hour) == ("1", 12)
    await check_books(database)


async def test_bad_addresses_are_one_line_without_the_password(
    database: Database, replica_set_uri: str, server: Server
) -> None:
    """A wrong password, and a database that there isn't."""
    at = where(replica_set_uri, database)
    assert (await run("init", *at))[0] == 0
    errors = ""
    for url in (
        server.address("wrong%20hidden"),
        server.address(server.own.password, "nowhere"),
        server.url,
    ):
        code, output, errors = await run("import", "credit-sdk", *at, CREDIT_SDK_URL=url)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert "hidden" not in errors
        assert server.own.password not in errors
    assert "there is no table for users" in errors


async def test_rows_that_write_the_user_in_another_case_are_the_user_s(
    database: Database, maria: Server
) -> None:
    """MariaDB's usual collation takes both for the same."""
    deployment = Deployment()
    deployment.sign_up("ann", 10)
    deployment.move("ann", "charge", -1)
    deployment.move("ann", "charge", -2)
    save(maria, deployment)
    maria.execute("UPDATE `Transaction` SET `userId` = 'ANN' WHERE id = 'ctx00000000'")
    report: ImportReport = await imported(database, maria.url)
    assert report.agrees, report.to_dict()
    assert [row["_id"] for row in await rows(database, "users")] == ["ann"]
    await check_books(database)


async def test_the_deployment_may_change_while_it_is_imported(
    database: Database, postgres: Server
) -> None:
    """Each page is one snapshot: a user's balance and rows always belong together."""
    deployment = Deployment()
    for number in range(100):
        deployment.sign_up(f"u{number:03d}", 1000)
        deployment.move(f"u{number:03d}", "charge", -1)
    save(postgres, deployment)
    charge = (
        "INSERT INTO \"Transaction\" SELECT id || '-' || :n, id, 'post', -1, credits, "
        "credits - 1, '{}', now() AT TIME ZONE 'UTC' FROM \"User\"",
        'UPDATE "User" SET credits = credits - 1',
    )
    done = 0

    def on_progress(_read: int, _total: int | None) -> None:
        nonlocal done
        if done < 3:
            done += 1
            postgres.execute(*charge, values={"n": done})

    report = await imported(database, postgres.url, on_progress=on_progress)
    assert report.left == 0, report.to_dict()
    report = await imported(database, postgres.url)
    assert report.agrees, json.dumps(report.to_dict())
    assert {row["credits"] for row in await rows(database, "users")} == {996}
    await check_books(database)


async def test_a_server_that_goes_away_is_one_line(database: Database, postgres: Server) -> None:
    """What was imported stays, and the next run goes on from there."""
    deployment = Deployment()
    for number in range(200):
        deployment.sign_up(f"u{number:03d}", 5)
    save(postgres, deployment)
    is_cut = False

    def cut(_read: int, _total: int | None) -> None:
        nonlocal is_cut
        if not is_cut:
            is_cut = True
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
            )

    with pytest.raises(LedgerImportError, match="can't read postgresql://127") as caught:
        await imported(database, postgres.url, on_progress=cut)
    assert postgres.own.password not in str(caught.value)
    assert 0 < len(await rows(database, "users")) < 200
    assert (await imported(database, postgres.url)).agrees
    await check_books(database)


async def test_cockroachdb_s_dialect_reads_over_postgresql_s_wire(
    database: Database, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no CockroachDB here. Its dialect speaks the same protocol to another server."""
    from sqlalchemy_cockroachdb.base import (  # type: ignore[import-untyped]
        CockroachDBDialect,
    )

    # The server is asked for the version of CockroachDB, which it isn't.
    monkeypatch.setattr(
        CockroachDBDialect, "_get_server_version_info", lambda _dialect, _connection: (23, 1)
    )
    monkeypatch.setattr(CockroachDBDialect, "get_table_names", _postgres_names)
    monkeypatch.setattr(CockroachDBDialect, "get_columns", _postgres_columns)
    save(postgres, filled())
    url = postgres.url.replace("postgresql://", "cockroachdb://")
    report = await imported(database, url)
    assert report.agrees, report.to_dict()
    assert report.source.startswith("cockroachdb://")
    await check_books(database)


def _postgres_names(_dialect: Any, connection: Any, schema: str | None = None, **_: Any) -> Any:
    found = connection.execute(
        sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    )
    return [row[0] for row in found]


def _postgres_columns(
    _dialect: Any, connection: Any, table: str, schema: str | None = None, **_: Any
) -> Any:
    found = connection.execute(
        sa.text("SELECT column_name FROM information_schema.columns WHERE table_name = :t"),
        {"t": table},
    )
    return [{"name": row[0], "type": sa.String(), "nullable": True} for row in found]

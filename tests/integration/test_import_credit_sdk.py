"""``credit-mongo import credit-sdk``: a deployment's books become the ledger's."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest

from credit_mongo import CreditLedger, IdempotencyConflictError
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import run, where
from tests.integration.deployments import (
    CONFIG,
    Deployment,
    SqliteFile,
    check_books,
    filled,
    imported,
)
from tests.integration.promises import Database, rows


@pytest.mark.parametrize("dates", ["milliseconds", "text"])
async def test_users_and_all_their_rows_become_the_ledger_s(
    database: Database, tmp_path: Path, dates: str
) -> None:
    """With operations, keys and refusals. A balance without a transaction opens the account."""
    file = SqliteFile(tmp_path / "sdk.db", dates=dates)
    file.save(filled())
    report = await imported(database, file.url)
    assert report.agrees, report.to_dict()
    assert (report.users, report.transactions, report.audit_logs) == (3, 5, 6)
    assert report.idempotency_records == 3
    assert (report.openings, report.opening_units) == (2, 107)
    await check_books(database)
    async with CreditLedger(database, CONFIG) as ledger:
        assert [await ledger.get_balance(name) for name in ("ann", "bob", "cat")] == [490, 30, 7]
        user = await ledger.get_user("ann")
        assert (user.membership_tier, user.seq) == ("pro", 5)
        history = (await ledger.get_history("ann")).items
        told = [(row.operation, row.action, row.amount) for row in history]
        assert told == [
            ("charge", "post", -10),
            ("upgrade_tier", "upgrade_tier", 406),
            ("refund", "sorry", 4),
            ("charge", "post", -10),
            ("create_user", "create_user", 100),
        ]
        assert history[3].metadata == {"job": 1}
    [failed] = await rows(database, "audit_logs", status="failed")
    assert (failed["operation"], failed["action"]) == ("charge", "render")
    assert (failed["errorMessage"], failed["metadata"]) == ("Insufficient credits", {"job": 7})


async def test_a_repeated_request_gets_the_answer_of_before_the_switch(
    database: Database, tmp_path: Path
) -> None:
    """Nothing is charged again. A key with another request is refused."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    await imported(database, file.url)
    async with CreditLedger(database, CONFIG) as ledger:
        charged = await ledger.charge("ann", "post", idempotency_key="k-charge")
        assert (charged.replayed, charged.cost, charged.balance_after) == (True, 10, 90)
        refunded = await ledger.refund("ann", 4, action="sorry", idempotency_key="k-refund")
        assert (refunded.replayed, refunded.balance_after) == (True, 94)
        upgraded = await ledger.upgrade_tier("ann", "pro", idempotency_key="k-upgrade")
        assert (upgraded.replayed, upgraded.new_credits) == (True, 500)
        with pytest.raises(IdempotencyConflictError):
            await ledger.charge("bob", "post", idempotency_key="k-charge")
    await check_books(database)


async def test_the_next_run_imports_what_is_new(database: Database, tmp_path: Path) -> None:
    """From where the last one ended: new users, rows, refusals, keys and tiers, each once."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    file.save(deployment)
    first = await imported(database, file.url)
    assert first.since is None
    nothing = await imported(database, file.url)
    assert (nothing.users, nothing.transactions, nothing.audit_logs) == (0, 0, 0)
    assert nothing.since is not None
    assert nothing.agrees
    deployment.sign_up("dan", 5)
    deployment.move("dan", "charge", -5, key="k-dan")
    deployment.move("cat", "grant", 1, action="gift")
    deployment.fail("cat")
    deployment.users["bob"] |= {"membershipTier": "free", "updatedAt": deployment.now}
    file.save(deployment)
    second = await imported(database, file.url)
    assert second.agrees, second.to_dict()
    assert (second.users, second.transactions, second.audit_logs) == (3, 2, 3)
    assert second.idempotency_records == 1
    await check_books(database)


async def test_rows_that_were_committed_late_are_put_in_their_place(
    database: Database, tmp_path: Path
) -> None:
    """The user's rows are written again, as long as the ledger has not changed the account."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    deployment.sign_up("ann", 100)
    deployment.move("ann", "charge", -10, key="late")
    deployment.move("ann", "charge", -10, key="early")
    late = {name: rows.pop(0) for name, rows in deployment.rows.items()}
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.agrees, report.to_dict()
    assert report.opening_units == 90
    for name, row in late.items():
        deployment.rows[name].append(row)
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.agrees, report.to_dict()
    history = await rows(database, "transactions", userId="ann")
    assert sorted(row["amount"] for row in history) == [-10, -10, 100]
    assert {row["idempotencyKey"] for row in history} == {None, "early", "late"}
    await check_books(database)


async def test_a_dry_run_lists_what_is_wrong_and_writes_nothing(
    database: Database, tmp_path: Path
) -> None:
    """It counts what it would import."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    report = await imported(database, file.url, dry_run=True)
    assert (report.users, report.transactions, report.dry_run) == (3, 5, True)
    assert report.agrees
    assert not any(each.agrees for each in report.compared[:3])
    for name in await database.list_collection_names():
        if name != "ledger_settings" and not name.startswith("system."):
            assert await rows(database, name) == []


async def test_two_decimals_become_units_exactly(database: Database, tmp_path: Path) -> None:
    """Also from a database that gives floats. What doesn't fit is refused, or rounded by a rule."""
    file = SqliteFile(tmp_path / "sdk.db", amounts="REAL")
    deployment = Deployment()
    deployment.sign_up("ann", Decimal("0.30"))
    deployment.move("ann", "charge", Decimal("-0.10"))
    deployment.move("ann", "charge", Decimal("-0.20"))
    deployment.sign_up("bob", Decimal("100000000.07"))
    deployment.sign_up("cat", Decimal("0.125"))
    deployment.move("cat", "charge", Decimal("-0.001"))
    file.save(deployment)
    config = CONFIG.model_copy(update={"decimal_places": 2})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
    rules = ImportRules(decimal_places=2)
    at = LedgerDatabase.of(database)
    report = await import_credit_sdk(source_of(file.url, Names.of({})), at, rules)
    assert report.left == 1
    assert report.troubles[0].reason == "credits is 0.124, but a credit has 2 decimal places"
    assert [row["credits"] for row in await rows(database, "users")] == [0, 10000000007]
    rules = ImportRules(decimal_places=2, fractions="round")
    report = await import_credit_sdk(source_of(file.url, Names.of({})), at, rules)
    assert report.agrees, report.to_dict()
    assert [row["credits"] for row in await rows(database, "users", _id="cat")] == [12]
    await check_books(database)


async def test_the_command_prints_a_comparison(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """As text and as JSON, with exit code 0."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    at = where(replica_set_uri, database)
    assert (await run("init", *at))[0] == 0
    code, output, errors = await run("import", "credit-sdk", "--from", file.url, *at)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "opened: 2 users had 107 before their first transaction",
        "users: 3 = 3",
        "sum of balances: 527 = 527",
        "transactions: 5 = 5",
        "sum of amounts: 420 = 420",
        "audit logs: 6 = 6",
        "idempotency records: 3 = 3",
        f"{database.name}: 3 users, 5 transactions, 6 audit logs and 3 keys imported from "
        f"sqlite:{file.path}",
    ]
    code, output, _ = await run("import", "credit-sdk", "--from", file.url, "--json", *at)
    assert code == 0
    assert json.loads(output)["agrees"] is True
    await asyncio.sleep(0)
    await check_books(database)

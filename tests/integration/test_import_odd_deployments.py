"""Deployments with odd balances, rows and names: settled by a named rule, or named and left."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from credit_mongo import CreditLedger
from credit_mongo.errors import LedgerImportError
from credit_mongo.maintenance.imports import long_histories, pages, planning
from credit_mongo.maintenance.imports.rules import ImportRules
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


def raced() -> Deployment:
    """Two charges at once, as the SDK has them: both rows begin with the same balance."""
    deployment = Deployment()
    deployment.sign_up("ann", 100)
    deployment.add_transaction("ann", "post", -10, 100, 90)
    deployment.add_transaction("ann", "post", -10, 100, 90)
    deployment.users["ann"]["credits"] = 80
    deployment.sign_up("bob", 5)
    return deployment


async def test_balances_that_do_not_follow_are_named_and_left(
    database: Database, tmp_path: Path
) -> None:
    """The other users are imported."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(raced())
    report = await imported(database, file.url)
    assert (report.left, report.users, report.agrees) == (1, 1, False)
    assert [tuple(each) for each in report.troubles] == [
        (
            "ann",
            "transactions",
            "ctx00000001",
            "begins with 100, but the one before ends with 90 (units): "
            "--balances adjust or recompute",
        ),
        (
            "ann",
            "users",
            None,
            "credits are 80, but the last transaction ends with 90 (units): "
            "--balances adjust or recompute",
        ),
    ]
    assert report.differing == [("ann", "has no account in the ledger")]
    await check_books(database)


@pytest.mark.parametrize(
    ("rule", "settled", "balances"),
    [
        ("recompute", 1, [(0, 100), (100, 90), (90, 80)]),
        ("adjust", 2, [(0, 100), (100, 90), (90, 100), (100, 90), (90, 80)]),
    ],
)
async def test_a_rule_settles_balances_that_do_not_follow(
    database: Database, tmp_path: Path, rule: Any, settled: int, balances: list[tuple[int, int]]
) -> None:
    """The user has the same credits as in the deployment, and a history that explains them."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(raced())
    report = await imported(database, file.url, ImportRules(balances=rule))
    assert report.agrees, report.to_dict()
    assert sum(report.settled.values()) == settled
    history = sorted(
        await rows(database, "transactions", userId="ann"), key=lambda row: int(row["seq"])
    )
    assert [(row["balanceBefore"], row["balanceAfter"]) for row in history] == balances
    await check_books(database)
    again = await imported(database, file.url, ImportRules(balances=rule), everything=True)
    assert (again.users, again.agrees) == (0, True)


@pytest.mark.parametrize(("rule", "left"), [("debt", -20), ("zero", 0)])
async def test_a_balance_below_zero_is_forgiven_or_kept(
    database: Database, tmp_path: Path, rule: Any, left: int
) -> None:
    """By default the user is left. What comes after the debt follows from it."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    deployment.sign_up("ann", 10)
    deployment.move("ann", "charge", -30)
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.troubles[0].reason == (
        "the balance is below zero (-20 units): --negative zero or debt"
    )
    rules = ImportRules(negative=rule)
    report = await imported(database, file.url, rules)
    assert report.agrees, report.to_dict()
    [user] = await rows(database, "users")
    assert user["credits"] == left
    await check_books(database)
    deployment.move("ann", "grant", 50, action="gift")
    file.save(deployment)
    report = await imported(database, file.url, rules)
    assert report.agrees, report.to_dict()
    [user] = await rows(database, "users")
    assert user["credits"] == 30
    assert (await imported(database, file.url, rules, everything=True)).users == 0
    await check_books(database)
    async with CreditLedger(database, CONFIG) as ledger:
        assert (await ledger.get_user("ann")).available == 30


ODD: dict[str, tuple[str, str]] = {
    "NULL": ("amount = NULL", "amount is NULL"),
    "no number": ("amount = 'many'", "amount is 'many', which is not a number"),
    "no date": ("createdAt = 'soon'", "createdAt is 'soon', which is not a date"),
    "the future": ("createdAt = 7258118400000", "createdAt is 2200-01-01, in the future"),
    "no JSON": ("metadata = '{job'", "metadata is not JSON"),
    "a list": ("metadata = '[1]'", "metadata is not a JSON object"),
    "large metadata": (
        "metadata = '{\"a\": \"' || hex(zeroblob(9000)) || '\"}'",
        "metadata takes 18013 bytes of at most 16384",
    ),
    "no action": ("action = ''", "action must have 1 to 255 characters, not 0"),
    "too large": ("amount = 9007199254740992", "amount is 9007199254740992, more than"),
    "a fraction": ("amount = -1.5", "amount is -1.5, but a credit has no decimal places"),
    "a long id": ("id = hex(zeroblob(150))", "id must have 1 to 255 characters, not 300"),
}


@pytest.mark.parametrize("odd", ODD)
async def test_a_row_that_the_ledger_cannot_have_is_named(
    database: Database, tmp_path: Path, odd: str
) -> None:
    """Its user is left as a whole. The others are imported."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    change, reason = ODD[odd]
    file.execute(f"UPDATE \"Transaction\" SET {change} WHERE id = 'ctx00000001'")  # noqa: S608
    report = await imported(database, file.url)
    assert (report.left, report.users) == (1, 2)
    assert report.troubles[0].user_id == "bob"
    assert report.troubles[0].reason.startswith(reason)
    assert [row["_id"] for row in await rows(database, "users")] == ["ann", "cat"]
    await check_books(database)


async def test_users_whom_the_ledger_cannot_have_are_named(
    database: Database, tmp_path: Path
) -> None:
    """Ids of 300 characters, tiers that are not configured, audit rows without a transaction."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    deployment.sign_up("d" * 300, 5)
    deployment.sign_up("eve", 5, "gold")
    deployment.add_audit("cat", "charge", "success", {"transactionId": "gone"})
    file.save(deployment)
    rules = ImportRules(tiers=frozenset({"free", "pro"}))
    report = await imported(database, file.url, rules)
    assert {each.user_id[:4]: each.reason for each in report.troubles} == {
        "dddd": "the id must have 1 to 255 characters, not 300",
        "eve": "membershipTier 'gold' is not configured",
    }
    assert (report.left, report.orphaned_audits, report.agrees) == (2, 1, False)
    await check_books(database)


async def test_users_that_differ_only_in_case_are_two_users(
    database: Database, tmp_path: Path
) -> None:
    """Each with their own rows."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    deployment.sign_up("Ann", 10)
    deployment.sign_up("ann", 20)
    deployment.move("Ann", "charge", -1)
    deployment.move("ann", "charge", -2)
    file.save(deployment)
    assert (await imported(database, file.url)).agrees
    assert {row["_id"]: row["credits"] for row in await rows(database, "users")} == {
        "Ann": 9,
        "ann": 18,
    }
    await check_books(database)


async def test_an_account_that_the_ledger_has_changed_is_left(
    database: Database, tmp_path: Path
) -> None:
    """If the deployment has gone on with it, too. Its books stay right."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    file.save(deployment)
    await imported(database, file.url)
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.charge("ann", "post")
        await ledger.create_user("dan", credits=3)
    deployment.move("ann", "charge", -10)
    deployment.sign_up("dan", 5)
    deployment.move("bob", "charge", -10)
    file.save(deployment)
    report = await imported(database, file.url)
    assert not report.agrees
    assert [each.user_id for each in report.troubles] == ["ann"]
    assert [user_id for user_id, _ in report.differing] == ["dan"]
    assert [row["credits"] for row in await rows(database, "users", _id="bob")] == [20]
    await check_books(database)


async def test_keys_that_do_not_fit_are_named_by_their_transaction(
    database: Database, tmp_path: Path
) -> None:
    """A key is never shown. Keys that have expired stay behind."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    deployment.add_key("secret-1", {"success": True})
    deployment.add_key("secret-2", {"transactionId": "gone"})
    deployment.add_key("secret-3", {"transactionId": "ctx00000000"})
    deployment.add_key("expired", {"transactionId": "ctx00000001"}, lives=timedelta(days=1))
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.keys_without_transaction == 1
    assert [(each.row_id, each.reason) for each in report.troubles] == [
        (None, "result names no transactionId"),
        ("ctx00000000", "its transaction has another key already"),
    ]
    assert "secret" not in str(report.to_dict())
    assert len(await rows(database, "idempotency_records")) == 3
    await check_books(database)


async def test_a_user_with_many_rows_is_imported_in_slices(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its refusals, and what is new since. A trouble at its end leaves nothing of it."""
    monkeypatch.setattr(pages, "_MOST_ROWS", 20)
    monkeypatch.setattr(planning, "ROWS_PER_PIECE", 7)
    monkeypatch.setattr(long_histories, "ROWS_PER_PIECE", 7)
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    deployment.sign_up("ann", 1000)
    deployment.sign_up("bob", 10)
    for number in range(50):
        operation = ("charge", "refund", "grant")[number % 3]
        amount = -10 if operation == "charge" else 3
        deployment.move("ann", operation, amount, key=f"k{number}")
        deployment.fail("ann")
    file.save(deployment)
    file.execute("UPDATE \"Transaction\" SET action = '' WHERE id = 'ctx00000049'")
    report = await imported(database, file.url)
    assert (report.left, report.users) == (1, 1)
    assert [row["_id"] for row in await rows(database, "users")] == ["bob"]
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.agrees, report.to_dict()
    assert (report.users, report.transactions, report.audit_logs) == (1, 50, 100)
    operations = [row["operation"] for row in await rows(database, "transactions", userId="ann")]
    assert {name: operations.count(name) for name in operations} == {
        "create_user": 1,
        "charge": 17,
        "refund": 17,
        "grant": 16,
    }
    await check_books(database)
    deployment.move("ann", "charge", -10)
    deployment.fail("ann")
    file.save(deployment)
    report = await imported(database, file.url)
    assert report.agrees, report.to_dict()
    assert (report.users, report.transactions, report.audit_logs) == (1, 1, 2)
    await check_books(database)


BAD: dict[str, tuple[list[str], str]] = {
    "no such file": (["--from", "sqlite:///nowhere/sdk.db"], "can't connect sqlite:nowhere"),
    "no address": (["--from", "sdk.db"], "the address is not like DIALECT://"),
    "another database": (["--from", "oracle://u:hidden@h/d"], "'oracle' is not supported"),
    "no server": (
        ["--from", "postgresql://u:hidden@127.0.0.1:1/d"],
        "can't connect postgresql://127.0.0.1:1/d: connection failed",
    ),
    "no MySQL": (["--from", "mysql://u:hidden@127.0.0.1:1/d"], "can't connect mysql://"),
    "no port": (["--from", "postgresql://u:hidden@127.0.0.1:x/d"], "the address is malformed"),
    "no driver": (["--from", "sqlserver://h;user=u;password=hidden"], "install the driver"),
    "no MongoDB database": (["--from", "mongodb://u:hidden@127.0.0.1:1/"], "names no database"),
    "no table": (
        ["--from", "FILE", "--map", "users=Customer"],
        "there is no table for users: looked for 'Customer'. There are 'AuditLog', "
        "'IdempotencyRecord', 'Transaction', 'User'. Name the right one: --map users=TABLE",
    ),
    "no column": (
        ["--from", "FILE", "--map", "users.credits=points"],
        "the table 'User' has no column 'points'. It has 'createdAt', 'credits', ",
    ),
    "a map of nothing": (["--from", "FILE", "--map", "users"], "--map must be like TABLE=NAME"),
    "no such field": (
        ["--from", "FILE", "--map", "users.name=x"],
        "--map: must be like users=TABLE or users.FIELD=COLUMN, of id, credits,",
    ),
    "no such rule": (["--from", "FILE", "--balances", "x"], "--balances must be refuse or adjust"),
    "no such zone": (["--from", "FILE", "--time-zone", "Moon"], "--time-zone"),
    "no such date": (["--from", "FILE", "--since", "soon"], "--since: must be a date"),
    "without users": (["--from", "FILE", "--without", "users"], "--without: must name one of"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_input_is_one_line(
    database: Database, replica_set_uri: str, tmp_path: Path, bad: str
) -> None:
    """It says what and where, with exit code 2, and shows no password."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    at = where(replica_set_uri, database)
    assert (await run("init", *at))[0] == 0
    given, said = BAD[bad]
    options = [file.url if each == "FILE" else each for each in given]
    code, output, errors = await run("import", "credit-sdk", *options, *at)
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1, errors
    assert said in errors
    assert "hidden" not in errors
    assert await rows(database, "users") == []


async def test_another_deployment_is_refused(database: Database, tmp_path: Path) -> None:
    """A ledger has one origin."""
    for name in ("one", "two"):
        SqliteFile(tmp_path / f"{name}.db").save(filled())
    await imported(database, f"sqlite:///{tmp_path}/one.db")
    with pytest.raises(Exception, match=r"filled from sqlite:.*one\.db, not from .*two\.db"):
        await imported(database, f"sqlite:///{tmp_path}/two.db")


async def test_a_late_row_before_a_correction_of_the_import_is_put_in_its_place(
    database: Database, tmp_path: Path
) -> None:
    """The history is written again, so that no row is dated before the one before it."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    deployment.sign_up("ann", 100)
    deployment.move("ann", "charge", -10)
    late_at = deployment.now + timedelta(seconds=1)
    user = deployment.users["ann"]
    user |= {"credits": 95, "updatedAt": late_at + timedelta(seconds=5)}
    file.save(deployment)
    rules = ImportRules(balances="adjust")
    assert (await imported(database, file.url, rules)).agrees
    deployment.add_transaction("ann", "post", -1, 90, 89, at=late_at)
    user["credits"] = 94
    file.save(deployment)
    report = await imported(database, file.url, rules)
    assert report.agrees, report.to_dict()
    history = sorted(await rows(database, "transactions"), key=lambda row: int(row["seq"]))
    assert [row["amount"] for row in history] == [100, -10, -1, 5]
    await check_books(database)


async def test_a_ledger_is_not_filled_in_another_unit_than_before(
    database: Database, tmp_path: Path
) -> None:
    """A rule for odd balances must not turn all balances into a hundredth of what they are."""
    deployment = Deployment()
    deployment.sign_up("ann", 100)
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(deployment)
    in_cents = ImportRules(decimal_places=2, balances="adjust")
    await imported(database, file.url, in_cents)
    before = await rows(database, "users")
    assert before[0]["credits"] == 10_000
    with pytest.raises(LedgerImportError, match="amounts in credits, not in units"):
        await imported(database, file.url, replace(in_cents, amounts_in="units"), everything=True)
    assert await rows(database, "users") == before
    assert (await imported(database, file.url, in_cents)).agrees

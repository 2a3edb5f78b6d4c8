"""The switch to the ledger, and each way back from it, as the guide describes them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import pytest

from credit_mongo import CreditConfig, CreditLedger, UserMapping
from credit_mongo.maintenance.imports import pages
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
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

ADJUST: Final = replace(ImportRules(), balances="adjust")


async def test_keys_of_a_user_who_was_left_come_with_the_user(
    database: Database, tmp_path: Path
) -> None:
    """A later run with a rule imports the user, and a repeated charge is still replayed."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    deployment.users["ann"]["credits"] += 1
    deployment.sign_up("dan", 9)
    deployment.now += timedelta(minutes=5)
    deployment.move("dan", "charge", -1)
    file.save(deployment)
    report = await imported(database, file.url)
    assert (report.left, report.keys_without_transaction) == (1, 3)
    report = await imported(database, file.url, ADJUST)
    assert (report.left, report.idempotency_records) == (0, 3), report.to_dict()
    assert [each.what for each in report.compared if not each.agrees] == []
    async with CreditLedger(database, CONFIG) as ledger:
        assert (await ledger.charge("ann", "post", idempotency_key="k-charge")).replayed
    await check_books(database)


@pytest.mark.parametrize("dates", ["milliseconds", "text"])
async def test_keys_that_expire_on_the_day_of_the_switch_are_no_difference(
    database: Database, tmp_path: Path, dates: str
) -> None:
    """Both sides count what lives, to the second, however the deployment stores dates."""
    file = SqliteFile(tmp_path / "sdk.db", dates=dates)
    deployment = Deployment(now=datetime.now(timezone.utc) - timedelta(hours=12))
    deployment.sign_up("ann", 100)
    for hours in range(1, 24, 2):
        deployment.move("ann", "charge", -1)
        row_id = deployment.rows["Transaction"][-1]["id"]
        told = {"success": True, "transactionId": row_id, "cost": 1, "balanceAfter": 1}
        deployment.add_key(f"k{hours}", told, lives=timedelta(hours=hours))
    file.save(deployment)
    for _ in range(2):
        report = await imported(database, file.url)
        assert report.agrees, report.to_dict()
    await check_books(database)


DATES: Final = {
    "milliseconds": "milliseconds",
    "with a T": "text",
    "with a space": "text",
    "in another zone": "text",
}


@pytest.mark.parametrize("dates", DATES)
def test_the_last_run_looks_only_at_users_of_the_last_minute(tmp_path: Path, dates: str) -> None:
    """However the deployment stores dates. Of several zones, it may look at a day more."""
    file = SqliteFile(tmp_path / "sdk.db", dates=DATES[dates])
    deployment = Deployment()
    for name in ("ann", "bob", "cat", "dan"):
        deployment.sign_up(name, 100)
        deployment.move(name, "charge", -1)
        deployment.now += timedelta(hours=30 if name == "ann" else 2)
    file.save(deployment)
    dated = (("User", "updatedAt"), ("Transaction", "createdAt"), ("AuditLog", "createdAt"))
    for table, column in dated:
        text = {"with a space": ("T", " "), "in another zone": ("Z", "-05:00")}.get(dates, ("", ""))
        change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'  # noqa: S608
        file.execute(change, *text)
    source = source_of(file.url, Names.of({}))
    source.open()
    try:
        since = deployment.now - timedelta(hours=2, minutes=1)
        expected = {"bob", "cat", "dan"} if dates == "in another zone" else {"dan"}
        assert set(source.changed_users(since, 10) or ()) == expected
        assert source.changed_users(deployment.now + timedelta(days=2), 10) == []
    finally:
        source.close()


async def test_a_row_that_went_to_another_user_leaves_only_that_user(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the application merges two users. All others are imported meanwhile."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    for name in ("ann", "bob", "cat"):
        deployment.sign_up(name, 100)
        deployment.move(name, "charge", -10)
    file.save(deployment)
    assert (await imported(database, file.url)).agrees
    deployment.now += timedelta(minutes=5)
    deployment.move("bob", "charge", -1)
    file.save(deployment)
    file.execute("UPDATE \"Transaction\" SET \"userId\" = 'ann' WHERE id = 'ctx00000002'")
    # The transaction that gives it to ann comes before the one that takes it from cat.
    monkeypatch.setattr(pages, "_FIRST_PAGE", 2)
    report = await imported(database, file.url, ADJUST, everything=True)
    assert {trouble.user_id for trouble in report.troubles} == {"ann"}, report.to_dict()
    assert "import once more" in report.troubles[0].reason
    assert [row["credits"] for row in await rows(database, "users", _id="bob")] == [89]
    report = await imported(database, file.url, ADJUST, everything=True)
    assert report.left == 0, report.to_dict()
    await check_books(database)


async def charge_in_the_ledger(database: Database) -> None:
    """Start the application on the ledger."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.charge("ann", "post", idempotency_key="after")
        await ledger.grant("bob", 7, action="welcome")
        await ledger.refund("ann", 3, action="sorry")


async def test_going_back_to_the_deployment_after_the_ledger_was_charged(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The exported amounts, applied to the deployment, make both sides equal."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    file.save(deployment)
    assert (await imported(database, file.url)).agrees
    switch = datetime.now(timezone.utc).isoformat(timespec="seconds")
    await charge_in_the_ledger(database)
    output = tmp_path / "since.jsonl"
    options = ("--from", switch, "--format", "jsonl", "--output", str(output))
    code, _, errors = await run("export", *options, *where(replica_set_uri, database))
    assert (code, errors) == (0, "")
    since = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(row["amount"] for row in since) == [-10, 3, 7]
    for row in sorted(since, key=itemgetter("created_at")):
        deployment.move(row["user_id"], row["operation"], row["amount"], action=row["action"])
    file.save(deployment)
    again = database.client[f"{database.name}_again"]
    assert (await imported(again, file.url)).agrees
    for name in (database, again):
        assert {row["_id"]: row["credits"] for row in await rows(name, "users")} == {
            user_id: user["credits"] for user_id, user in deployment.users.items()
        }
    await check_books(again)
    await database.client.drop_database(again.name)


async def test_beginning_anew_after_the_collections_were_dropped(
    database: Database, tmp_path: Path
) -> None:
    """Without any option, all is imported again: also if the import's own document was forgotten.

    Rows are dated hours apart, so that a run that looks only at what is new would miss them.
    """
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = Deployment()
    for number in range(3):
        deployment.sign_up(f"u{number}", 100)
        deployment.move(f"u{number}", "charge", -10, key=f"k{number}")
        deployment.now += timedelta(hours=3)
    file.save(deployment)
    for forgets in (True, False):
        report = await imported(database, file.url)
        assert report.agrees, report.to_dict()
        assert (report.since, report.users, report.idempotency_records) == (None, 3, 3)
        for name in ("users", "transactions", "audit_logs", "idempotency_records"):
            await database.drop_collection(name)
        if forgets:
            await database.drop_collection("ledger_imports")
    report = await imported(database, file.url)
    assert (report.agrees, report.since, report.users) == (True, None, 3), report.to_dict()
    await check_books(database)


async def test_beginning_anew_on_the_application_s_own_documents(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """Only the account's fields go. The documents stay."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    config = CreditConfig(
        costs={"post": {"default": 10}},
        collections={"users": "members"},
        users=UserMapping(credits="points", membership_tier="plan"),
    )
    path = tmp_path / "credits.json"
    path.write_text(config.to_json())
    at = (*where(replica_set_uri, database), "--config", str(path))
    await database["members"].insert_one({"_id": "ann", "email": "ann@example.org"})
    assert (await run("init", *at))[0] == 0
    for _ in range(2):
        code, output, errors = await run("import", "credit-sdk", "--from", file.url, *at)
        assert (code, errors) == (0, ""), output + errors
        fields: dict[str, Any] = dict.fromkeys(("points", "seq", "plan", "membershipExpiresAt"), "")
        assert [row["email"] for row in await rows(database, "members", _id="ann")] == [
            "ann@example.org"
        ]
        await database["members"].update_many({}, {"$unset": {**fields, "creditExtras": ""}})
        for name in ("transactions", "audit_logs", "idempotency_records", "ledger_imports"):
            await database[name].delete_many({})
    assert len(await rows(database, "members")) == 3

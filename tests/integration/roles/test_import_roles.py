"""Moving in: the import needs its own role and no more, and open-accounts the application's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from bson import Int64

from credit_mongo import CreditLedger
from tests.integration.access_control import UNAUTHORIZED, GuardedReplicaSet, code_of
from tests.integration.commands import run
from tests.integration.deployments import BEGIN, CONFIG, SqliteFile, check_books, filled
from tests.integration.promises import Client, rows
from tests.integration.roles.grants import APP, ROLES, dump

IMPORT: Final = ("import", "credit-sdk")
RECOMPUTE: Final = ("--balances", "recompute")
OPEN: Final = ("migrate", "open-accounts", "--credits", "50")


async def test_the_importer_can_import_all_that_an_import_can_meet(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """What is new, rows that were committed late, refusals, and keys."""
    file = SqliteFile(tmp_path / "sdk.db")
    deployment = filled()
    deployment.move("bob", "charge", -1)
    file.save(deployment)
    at = ("--uri", guarded.uri_of("creditImporter", APP), "--database", APP)
    for options in ((), (), ("--all",)):
        code, output, errors = await run(*IMPORT, "--from", file.url, *RECOMPUTE, *options, *at)
        assert (code, errors) == (0, ""), output + errors
        deployment.move("bob", "charge", -1, key=f"k-bob-{len(deployment.rows['Transaction'])}")
        deployment.fail("ann")
        # Committed late: dated before a row that was imported.
        deployment.rows["Transaction"][-1]["createdAt"] = BEGIN + timedelta(seconds=9)
        file.save(deployment)
    await check_books(administrator[APP])
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], CONFIG) as ledger,
    ):
        assert (await ledger.charge("ann", "post", idempotency_key="k-charge")).replayed


async def test_no_other_role_for_daily_work_can_import(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """One line says which right is missing. Nothing is written."""
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(filled())
    before = await dump(administrator)
    for role in set(ROLES) - {"creditImporter", "creditRestorer"}:
        at = ("--uri", guarded.uri_of(role, APP), "--database", APP)
        code, output, errors = await run(*IMPORT, "--from", file.url, *at)
        assert (code, output, errors.count("\n")) == (2, "", 1), (role, errors)
        assert "credit-mongo roles" in errors
    assert await dump(administrator) == before


async def test_the_application_s_role_can_open_accounts_and_the_reader_can_not(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Old balances are converted, too, and debts."""
    users = administrator[APP]["users"]
    async with guarded.client_of("creditReader", APP) as client:
        assert await code_of(client[APP]["users"].insert_one({"_id": "x"})) == UNAUTHORIZED
    await administrator[APP].command({"collMod": "users", "validator": {}})
    await users.insert_many(
        [{"_id": "ann"}, {"_id": "bob", "credits": 2.5}, {"_id": "cat", "credits": Int64(-7)}]
    )
    options = ("--floats", "round", "--negative", "debt", "--database", APP)
    reader, runtime = (guarded.uri_of(f"credit{name}", APP) for name in ("Reader", "Runtime"))
    before = await dump(administrator)
    assert (await run(*OPEN, *options, "--uri", reader, "--dry-run"))[0] == 0
    code, _, errors = await run(*OPEN, *options, "--uri", reader)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert await dump(administrator) == before
    for _ in range(2):
        code, output, errors = await run(*OPEN, *options, "--uri", runtime)
        assert (code, errors) == (0, ""), output + errors
    balances = {row["_id"]: row["credits"] for row in await rows(administrator[APP], "users")}
    assert balances == {"ann": 50, "bob": 3, "cat": -7}
    await check_books(administrator[APP])

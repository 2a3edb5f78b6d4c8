"""Deployments in MongoDB, and ledgers whose accounts are on the application's own documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, ObjectId

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, LedgerImportError, UserMapping
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.report import ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.maintenance.verification.verify import verify
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
from tests.integration.promises import Client, Database, rows

MAPPING = UserMapping(id_type="objectId", credits="points", membership_tier="plan")
MAPPED = CreditConfig(
    costs={"post": {"default": 10}},
    membership={"tiers": {"free": 0, "pro": 1}, "credits_caps": {"free": 100, "pro": 500}},
    collections={"users": "members"},
    users=MAPPING,
)


def object_id(text: str) -> ObjectId:
    """An id as Prisma gives on MongoDB."""
    return ObjectId(text.encode().hex().ljust(24, "0")[:24])


async def save(database: Database, deployment: Deployment, *, object_ids: bool = False) -> None:
    """Store a deployment as Prisma does, with ObjectIds or its own text ids."""
    for name, found in deployment.tables().items():
        await database[name].delete_many({})
        documents = [_document(row, object_ids=object_ids) for row in found]
        if documents:
            await database[name].insert_many(documents)


def _document(row: dict[str, Any], *, object_ids: bool) -> dict[str, Any]:
    document = dict(row)
    document["_id"] = document.pop("id" if "id" in row else "key")
    if object_ids and "key" not in row:
        document["_id"] = object_id(row["id"][-12:])
        if "userId" in row:
            document["userId"] = object_id(row["userId"])
    for name in ("metadata", "result"):
        told = document.get(name)
        if object_ids and isinstance(told, dict) and "transactionId" in told:
            document[name] = {**told, "transactionId": str(object_id(told["transactionId"][-12:]))}
    return document


def deployment_uri(replica_set_uri: str, database: Database) -> str:
    """The address of the deployment's database."""
    base, _, options = replica_set_uri.partition("/?")
    return f"{base.rstrip('/')}/{database.name}_sdk?{options}"


@pytest.mark.parametrize("object_ids", [False, True])
async def test_collections_of_the_sdk_become_the_ledger_s(
    client: Client, database: Database, replica_set_uri: str, *, object_ids: bool
) -> None:
    """With text ids and with ObjectIds, which become text. The next run imports what is new."""
    there = client[f"{database.name}_sdk"]
    deployment = filled()
    await save(there, deployment, object_ids=object_ids)
    url = deployment_uri(replica_set_uri, database)
    report = await imported(database, url)
    assert report.agrees, report.to_dict()
    assert (report.users, report.transactions, report.audit_logs) == (3, 5, 6)
    assert report.idempotency_records == 3
    await check_books(database)
    ann = str(object_id("ann")) if object_ids else "ann"
    async with CreditLedger(database, CONFIG) as ledger:
        charged = await ledger.charge(ann, "post", idempotency_key="k-charge")
        assert (charged.replayed, charged.balance_after) == (True, 90)
    deployment.move("bob", "charge", -10)
    await save(there, deployment, object_ids=object_ids)
    report = await imported(database, url)
    assert (report.agrees, report.transactions) == (True, 1), report.to_dict()
    await check_books(database)
    await client.drop_database(there.name)


async def test_decimals_and_doubles_of_mongodb_are_exact(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """Floats as their shortest text says."""
    there = client[f"{database.name}_sdk"]
    deployment = Deployment()
    deployment.sign_up("ann", 0.3)
    deployment.add_transaction("ann", "post", -0.1, 0.4, Decimal128("0.30"))
    await save(there, deployment)
    config = CONFIG.model_copy(update={"decimal_places": 2})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
    source = source_of(deployment_uri(replica_set_uri, database), Names.of({}))
    rules = ImportRules(decimal_places=2)
    report = await import_credit_sdk(source, LedgerDatabase.of(database), rules)
    assert report.agrees, report.to_dict()
    assert [row["credits"] for row in await rows(database, "users")] == [30]
    await client.drop_database(there.name)


async def test_the_ledger_s_own_collections_are_refused(
    database: Database, replica_set_uri: str
) -> None:
    """A deployment whose collections the ledger uses stays where it is."""
    await save(database, filled())
    names = CollectionNames(users="User")
    config = CONFIG.model_copy(update={"collections": names})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
    url = deployment_uri(replica_set_uri, database).replace("_sdk", "")
    at = LedgerDatabase.of(database, names)
    with pytest.raises(LedgerImportError, match="'User' is the ledger's own collection"):
        await import_credit_sdk(source_of(url, Names.of({})), at, ImportRules())


async def test_no_server_is_one_line(database: Database, replica_set_uri: str) -> None:
    """After ten seconds, or sooner where the port is closed. The password is not shown."""
    at = where(replica_set_uri, database)
    assert (await run("init", *at))[0] == 0
    url = "mongodb://u:hidden@127.0.0.1:1/d?serverSelectionTimeoutMS=100"
    code, output, errors = await run("import", "credit-sdk", "--from", url, *at)
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert "can't connect to d: no usable server" in errors
    assert "hidden" not in errors


async def mapped(database: Database, url: str, **options: Any) -> ImportReport:
    """Import onto the application's own documents."""
    async with CreditLedger(database, MAPPED) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
    at = LedgerDatabase.of(database, MAPPED.collections, MAPPING)
    return await import_credit_sdk(source_of(url, Names.of({})), at, ImportRules(), **options)


async def test_accounts_open_on_the_application_s_documents(
    database: Database, tmp_path: Path
) -> None:
    """Their other fields stay. Who has no document gets one, and a damaged balance is named."""
    names = {each: str(object_id(each)) for each in ("ann", "bob", "cat", "dan")}
    deployment = Deployment()
    for name in names.values():
        deployment.sign_up(name, 10, "pro")
        deployment.move(name, "charge", -1, key=f"k-{name}")
    deployment.sign_up("no ObjectId", 5)
    file = SqliteFile(tmp_path / "sdk.db")
    file.save(deployment)
    await database["members"].insert_many(
        [
            {"_id": object_id("ann"), "email": "ann@example.org", "plan": "free"},
            {"_id": object_id("bob"), "email": "bob@example.org", "points": None},
            {"_id": object_id("dan"), "points": "many"},
        ]
    )
    report = await mapped(database, file.url)
    assert {each.user_id: each.reason[:30] for each in report.troubles} == {
        names["dan"]: f"user {names['dan']!r}: the stored points"[:30],
        "no ObjectId": "the id must be an ObjectId: 24 hexadecimal digits"[:30],
    }
    found = {row["_id"]: row for row in await rows(database, "members")}
    ann = found[object_id("ann")]
    assert (ann["email"], ann["points"], ann["plan"], ann["seq"]) == (
        "ann@example.org",
        9,
        "pro",
        2,
    )
    assert [found[object_id(each)]["points"] for each in ("bob", "cat", "dan")] == [9, 9, "many"]
    books = await verify(database, collections=MAPPED.collections, users=MAPPING)
    assert {each.user_id for each in books.findings} == {names["dan"]}
    deployment.move(names["cat"], "charge", -1)
    file.save(deployment)
    report = await mapped(database, file.url)
    assert report.transactions == 1
    assert [row["points"] for row in await rows(database, "members", _id=object_id("cat"))] == [8]

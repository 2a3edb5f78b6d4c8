"""ensure_indexes and scripts/init_indexes.py, on a real replica set."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import Decimal128, Int64
from pymongo import AsyncMongoClient, IndexModel
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, WriteError

from credit_mongo import (
    CollectionNames,
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    IndexChange,
    IndexReport,
)
from credit_mongo.local import find_mongod
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.indexes import ensure_indexes
from tests.integration.commands import run, run_program

pytestmark = pytest.mark.drivers("pymongo", "motor")

Database = AsyncDatabase[dict[str, Any]]

ROOT = Path(__file__).parents[2]
NAMES = CollectionNames()
OF_ACTION = [("action", 1), ("userId", 1), ("createdAt", -1), ("seq", -1)]
NAME_OF_ACTION = "action_1_userId_1_createdAt_-1_seq_-1"
INDEXES = {
    "users": {"membershipTier_1": [("membershipTier", 1)]},
    "transactions": {
        "userId_1_createdAt_-1_seq_-1": [("userId", 1), ("createdAt", -1), ("seq", -1)],
        NAME_OF_ACTION: OF_ACTION,
        "refundOf_1": [("refundOf", 1)],
        "revokeOf_1": [("revokeOf", 1)],
        "createdAt_1": [("createdAt", 1)],
    },
    "audit_logs": {
        "userId_1_createdAt_-1__id_-1": [("userId", 1), ("createdAt", -1), ("_id", -1)],
        "status_1": [("status", 1)],
        "status_1_userId_1_createdAt_-1__id_-1": [
            *(("status", 1), ("userId", 1), ("createdAt", -1), ("_id", -1)),
        ],
        "status_1_createdAt_1": [("status", 1), ("createdAt", 1)],
    },
    "idempotency_records": {
        "expiresAt_1": [("expiresAt", 1)],
        "userId_1_createdAt_1": [("userId", 1), ("createdAt", 1)],
    },
    "holds": {
        "userId_1_createdAt_-1__id_-1": [("userId", 1), ("createdAt", -1), ("_id", -1)],
        "userId_1_expiresAt_1": [("userId", 1), ("expiresAt", 1)],
    },
    "paid_requests": {
        "expiresAt_1": [("expiresAt", 1)],
        "leaseUntil_1": [("leaseUntil", 1)],
        "userId_1": [("userId", 1)],
    },
}
# 6 collections, 17 indexes, and the validators of users and holds.
WANTED = 25


async def indexes_of(database: Database, collection: str) -> dict[str, dict[str, Any]]:
    found = dict(await database[collection].index_information())
    found.pop("_id_", None)
    return {name: dict(index) for name, index in found.items()}


async def options_of(database: Database, collection: str) -> dict[str, Any]:
    [found] = await (await database.list_collections(filter={"name": collection})).to_list()
    return dict(found["options"])


def only(changes: tuple[IndexChange, ...]) -> IndexChange:
    [change] = changes
    return change


async def run_in_mongosh(database: Database, remedy: str) -> None:
    """There is no mongosh here; a remedy that is one command with a JSON document needs none."""
    await database.command(json.loads(remedy.removeprefix("db.runCommand(").removesuffix(")")))


@asynccontextmanager
async def failing(
    client: AsyncMongoClient[dict[str, Any]], command: str, code: int, *, app: str, times: int = 1
) -> AsyncIterator[None]:
    """Let the server refuse the next ``command`` of the application with an error code."""
    data = {"failCommands": [command], "errorCode": code, "appName": app}
    try:
        await client.admin.command(
            {"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data}
        )
    except OperationFailure:
        pytest.skip("the server has no fail points: start it with enableTestCommands=1")
    try:
        yield
    finally:
        await client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


# Indexes


async def test_an_empty_database_gets_all_collections_and_indexes_and_the_validator(
    database: Database,
) -> None:
    """What the documents want is there afterwards, with its options, and is reported."""
    report = await ensure_indexes(database, NAMES)

    assert len(report.created) == len(report.changes) == WANTED
    for collection, wanted in INDEXES.items():
        found = await indexes_of(database, collection)
        assert {name: index["key"] for name, index in found.items()} == wanted
    users = await options_of(database, "users")
    assert "$jsonSchema" in users["validator"]
    assert (users["validationLevel"], users["validationAction"]) == ("moderate", "error")
    ttl = (await indexes_of(database, "idempotency_records"))["expiresAt_1"]
    assert ttl["expireAfterSeconds"] == 0
    transactions = await indexes_of(database, "transactions")
    assert transactions["refundOf_1"]["sparse"] is transactions["revokeOf_1"]["sparse"] is True
    assert "$jsonSchema" in (await options_of(database, "holds"))["validator"]
    active = (await indexes_of(database, "holds"))["userId_1_expiresAt_1"]
    assert active["partialFilterExpression"] == {"status": "active"}


async def test_a_second_run_keeps_everything(database: Database) -> None:
    """It can be part of every start of an application."""
    first = await ensure_indexes(database, NAMES)
    second = await ensure_indexes(database, NAMES)

    assert len(second.kept) == WANTED
    things = [(change.collection, change.name, change.kind) for change in first.changes]
    assert [(c.collection, c.name, c.kind) for c in second.changes] == things


async def test_a_fitting_index_of_another_name_is_kept(database: Database) -> None:
    """The server refuses a second one (code 85); the first does the work."""
    await database["transactions"].create_index(OF_ACTION, name="by_action")
    await database["idempotency_records"].create_index(
        "expiresAt", name="sweep", expireAfterSeconds=0
    )
    report = await ensure_indexes(database, NAMES)

    assert {c.name for c in report.kept if c.kind == "index"} == {"by_action", "sweep"}
    assert not report.conflicts
    names = await indexes_of(database, "idempotency_records")
    assert list(names) == ["sweep", "userId_1_createdAt_1"]
    created = set(INDEXES["transactions"]) - {NAME_OF_ACTION}
    assert set(await indexes_of(database, "transactions")) == {"by_action", *created}


async def test_a_database_of_an_earlier_version_gets_the_new_indexes_and_keeps_its_own(
    database: Database,
) -> None:
    """What the ledger no longer needs is named with the command that drops it, once it is made."""
    await database["transactions"].create_index("action")
    report = await ensure_indexes(database, NAMES)

    assert not report.conflicts
    left = only(tuple(change for change in report.kept if change.remedy))
    assert (left.collection, left.name, left.kind) == ("transactions", "action_1", "index")
    assert left.remedy == 'db.getCollection("transactions").dropIndex("action_1")'
    found = await indexes_of(database, "transactions")
    assert found.keys() == {"action_1", *INDEXES["transactions"]}

    await database["transactions"].drop_index("action_1")
    assert not any(c.reason or c.remedy for c in (await ensure_indexes(database, NAMES)).changes)


@pytest.mark.parametrize(
    "index",
    [
        IndexModel("action", name="mine"),
        IndexModel("action", sparse=True),
        IndexModel([("action", 1), ("userId", 1)]),
    ],
)
async def test_no_index_of_the_application_is_taken_for_one_of_an_earlier_version(
    database: Database, index: IndexModel
) -> None:
    """Nobody is told to drop what the ledger has not made."""
    await database["transactions"].create_indexes([index])
    assert not any(change.remedy for change in (await ensure_indexes(database, NAMES)).changes)


async def test_the_queries_of_former_indexes_still_have_one(database: Database) -> None:
    """All rows of an action are found by an index that begins with it; failures by their status."""
    await ensure_indexes(database, NAMES)
    for collection, query in (
        ("transactions", {"action": "generate-post"}),
        ("audit_logs", {"status": "failed"}),
        ("audit_logs", {"status": "success"}),
    ):
        plan = await database.command(
            {"explain": {"find": collection, "filter": query}, "verbosity": "queryPlanner"}
        )
        stages = str(plan["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in stages
        assert "COLLSCAN" not in stages


async def test_another_ttl_is_changed_in_place(database: Database) -> None:
    """Dropping the index to build it again would leave none meanwhile."""
    await database["idempotency_records"].create_index(
        "expiresAt", name="sweep", expireAfterSeconds=3600
    )
    change = only((await ensure_indexes(database, NAMES)).changed)

    assert (change.collection, change.name) == ("idempotency_records", "sweep")
    assert change.reason == "expireAfterSeconds: 3600 → 0"
    found = await indexes_of(database, "idempotency_records")
    assert found["sweep"]["expireAfterSeconds"] == 0
    assert not (await ensure_indexes(database, NAMES)).changed


async def test_an_index_without_ttl_becomes_one_with_it(database: Database) -> None:
    """The Credit SDK's own schema has a plain index there, and records that stay for ever."""
    await database["idempotency_records"].create_index("expiresAt")
    change = only((await ensure_indexes(database, NAMES)).changed)

    assert change.reason == "expireAfterSeconds: no TTL → 0"
    found = await indexes_of(database, "idempotency_records")
    assert found["expiresAt_1"]["expireAfterSeconds"] == 0


async def test_a_hidden_index_is_shown_again(database: Database) -> None:
    """Hidden, it costs every write, and the refund's look-up scans the whole collection."""
    await database["transactions"].create_index("refundOf", sparse=True, hidden=True)
    change = only((await ensure_indexes(database, NAMES)).changed)

    assert change.reason == "hidden: True → False"
    assert "hidden" not in (await indexes_of(database, "transactions"))["refundOf_1"]


@pytest.mark.parametrize(
    ("collection", "index"),
    [
        ("transactions", IndexModel(OF_ACTION, unique=True)),
        ("transactions", IndexModel(OF_ACTION, unique=True, name="one_each")),
        ("transactions", IndexModel(OF_ACTION, collation={"locale": "fr"}, name=NAME_OF_ACTION)),
        ("transactions", IndexModel("refundOf")),
        ("users", IndexModel("membershipTier", expireAfterSeconds=60)),
        ("users", IndexModel("membershipTier", expireAfterSeconds=60, name="short")),
    ],
)
async def test_an_index_with_other_options_is_a_conflict_and_the_rest_is_done(
    database: Database, collection: str, index: IndexModel
) -> None:
    """It stays, the report names it and its remedy, and the remedy resolves it."""
    name = index.document["name"]
    await database[collection].create_indexes([index])
    before = await indexes_of(database, collection)
    report = await ensure_indexes(database, NAMES)

    conflict = only(report.conflicts)
    assert (conflict.collection, conflict.kind) == (collection, "index")
    assert repr(name) in conflict.reason
    assert conflict.remedy == f'db.getCollection("{collection}").dropIndex("{name}")'
    assert (await indexes_of(database, collection))[name] == before[name]
    assert len(report.created) + len(report.kept) == WANTED - 1

    await database[collection].drop_index(name)
    assert only((await ensure_indexes(database, NAMES)).created).name == conflict.name


@pytest.mark.parametrize(
    ("collection", "index", "is_in_the_way"),
    [
        ("transactions", IndexModel("orderId", unique=True), True),
        ("transactions", IndexModel("metadata.orderId", unique=True), True),
        ("transactions", IndexModel([("userId", 1), ("orderId", 1)], unique=True), True),
        ("transactions", IndexModel("idempotencyKey", unique=True, sparse=True), True),
        ("transactions", IndexModel("userId", unique=True), True),
        ("audit_logs", IndexModel("requestId", unique=True), True),
        ("idempotency_records", IndexModel("orderId", unique=True), True),
        ("users", IndexModel("email", unique=True), True),
        (
            "transactions",
            IndexModel("orderId", unique=True, partialFilterExpression={"amount": {"$gt": 0}}),
            True,
        ),
        ("transactions", IndexModel("orderId"), False),
        ("transactions", IndexModel("orderId", unique=True, sparse=True), False),
        ("transactions", IndexModel("metadata.orderId", unique=True, sparse=True), False),
        ("transactions", IndexModel([("userId", 1), ("seq", 1)], unique=True), False),
        ("transactions", IndexModel([("orderId", 1), ("_id", 1)], unique=True), False),
        (
            "transactions",
            IndexModel("orderId", unique=True, partialFilterExpression={"orderId": {"$gt": ""}}),
            False,
        ),
    ],
)
async def test_a_unique_index_that_would_refuse_rows_is_named_beforehand(
    database: Database,
    config: CreditConfig,
    collection: str,
    index: IndexModel,
    *,
    is_in_the_way: bool,
) -> None:
    """And no other is: where none is named, any number of operations go through."""
    await database[collection].create_indexes([index])
    async with CreditLedger(database, config) as ledger:
        report = await ledger.ensure_indexes()
        if is_in_the_way:
            conflict = only(report.conflicts)
            name = index.document["name"]
            assert (conflict.collection, conflict.name) == (collection, name)
            assert conflict.remedy == f'db.getCollection("{collection}").dropIndex("{name}")'
            assert name in await indexes_of(database, collection), "it stays"
            return
        assert report.conflicts == ()
        for user_id in ("ann", "bob"):
            await ledger.create_user(user_id, credits=100, idempotency_key=user_id)
            for _ in range(2):
                await ledger.charge(user_id, "translate")


async def test_a_taken_name_is_a_conflict_whose_remedy_takes_nothing_away(
    database: Database,
) -> None:
    """The remedy is the same index under another name, so the application keeps its own."""
    await database["transactions"].create_index([("app", 1)], name="refundOf_1")
    report = await ensure_indexes(database, NAMES)

    conflict = only(report.conflicts)
    assert conflict.reason == 'the index of this name has the keys {"app": 1}, not {"refundOf": 1}'
    assert conflict.remedy == (
        'db.getCollection("transactions").createIndex({"refundOf": 1}, '
        '{"name": "credit_mongo_refundOf_1", "sparse": true})'
    )
    assert len(report.created) + len(report.kept) == WANTED - 1

    await database["transactions"].create_index(
        [("refundOf", 1)], name="credit_mongo_refundOf_1", sparse=True
    )
    report = await ensure_indexes(database, NAMES)
    assert len(report.kept) == WANTED
    assert (await indexes_of(database, "transactions"))["refundOf_1"]["key"] == [("app", 1)]


async def test_the_application_s_other_indexes_are_left_alone(database: Database) -> None:
    """They are none of the ledger's business: not dropped, not changed, not reported."""
    mine = [
        IndexModel([("membershipTier", 1), ("country", 1)], name="mine"),
        IndexModel(
            "membershipTier", name="paying", partialFilterExpression={"credits": {"$gt": 0}}
        ),
        IndexModel([("membershipTier", pymongo.DESCENDING)], name="down"),
    ]
    await database["users"].create_indexes(mine)
    before = await indexes_of(database, "users")
    report = await ensure_indexes(database, NAMES)

    after = await indexes_of(database, "users")
    assert after.pop("membershipTier_1")["key"] == [("membershipTier", 1)]
    assert after == before
    assert not {change.name for change in report.changes} & {"mine", "paying", "down"}


async def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(database: Database) -> None:
    """So one can look first, on an empty database as on one in use."""
    assert len((await ensure_indexes(database, NAMES, dry_run=True)).created) == WANTED
    assert await database.list_collection_names() == []

    await database["idempotency_records"].create_index("expiresAt", expireAfterSeconds=60)
    await database["transactions"].create_index("action", unique=True)
    await database.create_collection("users")
    before = {name: await indexes_of(database, name) for name in INDEXES}
    foretold = await ensure_indexes(database, NAMES, dry_run=True)
    assert {name: await indexes_of(database, name) for name in INDEXES} == before
    assert await options_of(database, "users") == {}

    assert await ensure_indexes(database, NAMES) == foretold
    assert len(foretold.changed) == len(foretold.conflicts) == 1


async def test_collections_of_other_names_get_the_same(database: Database) -> None:
    """Nothing is created under the default names, and remedies quote odd names rightly."""
    names = CollectionNames(
        users="accounts", transactions="credit-tx", audit_logs="a.b", idempotency_records="stats"
    )
    await database["credit-tx"].create_index("action", unique=True)
    report = await ensure_indexes(database, names)

    assert sorted(await database.list_collection_names()) == [
        "a.b",
        "accounts",
        "credit-tx",
        "holds",
        "paid_requests",
        "stats",
    ]
    assert (await indexes_of(database, "stats"))["expiresAt_1"]["expireAfterSeconds"] == 0
    assert only(report.conflicts).remedy == 'db.getCollection("credit-tx").dropIndex("action_1")'


async def test_what_cannot_hold_the_ledger_s_rows_is_a_conflict(database: Database) -> None:
    """A view, a capped collection, or one that takes "Bob" and "bob" for the same user."""
    await database.command({"create": "audit_logs", "viewOn": "source", "pipeline": []})
    await database.create_collection("transactions", capped=True, size=4096)
    await database.create_collection("users", collation={"locale": "en", "strength": 2})
    report = await ensure_indexes(database, NAMES)

    reasons = {conflict.collection: conflict.reason for conflict in report.conflicts}
    assert "view" in reasons["audit_logs"]
    assert "capped" in reasons["transactions"]
    assert "collation" in reasons["users"]
    assert all("collections=" in conflict.remedy for conflict in report.conflicts)
    assert {change.collection for change in report.created} == {
        "idempotency_records",
        "holds",
        "paid_requests",
    }
    assert await indexes_of(database, "users") == {}


@pytest.mark.parametrize("field", ["users", "transactions", "audit_logs", "idempotency_records"])
async def test_a_ledger_refuses_collections_that_take_one_name_for_another(
    database: Database, config: CreditConfig, field: str
) -> None:
    """Whichever it is, and whatever is called first: nobody is read or erased for somebody else."""
    await database.create_collection(field, collation={"locale": "en", "strength": 2})
    await database["users"].insert_one({"_id": "ann", "credits": 5, "seq": 0})
    ledger = CreditLedger(database, config)
    for work in (
        ledger.get_balance("ANN"),
        ledger.charge("ANN", "translate"),
        ledger.delete_user("ANN"),
        erase_user(database, "ANN"),
        ledger.__aenter__(),
    ):
        with pytest.raises(ConfigurationError, match="collation 'en'") as caught:
            await work
        assert caught.value.field == f"collections.{field}"
    assert await database["users"].count_documents({}) == 1
    await ledger.close()


# Validators


@pytest.mark.parametrize(
    "credits_given",
    [-1, Int64(-1), 1.5, 1.0, float("nan"), "x", None, True, Decimal128("1")],
)
async def test_the_server_refuses_a_balance_that_is_no_whole_number(
    database: Database, credits_given: object
) -> None:
    """Whoever writes it: an insert as well as an update of a good document."""
    await ensure_indexes(database, NAMES)
    users = database["users"]
    with pytest.raises(WriteError, match="validation"):
        await users.insert_one({"_id": "bad", "credits": credits_given})
    await users.insert_one({"_id": "good", "credits": 1})
    with pytest.raises(WriteError, match="validation"):
        await users.update_one({"_id": "good"}, {"$set": {"credits": credits_given}})
    assert await users.find().to_list() == [{"_id": "good", "credits": 1}]


async def test_the_server_takes_whole_balances_and_the_application_s_fields(
    database: Database,
) -> None:
    """Small and large integers alike; a missing balance and $inc by a float are refused."""
    await ensure_indexes(database, NAMES)
    users = database["users"]
    for number, credits_given in enumerate([0, 7, Int64(7), 2**63 - 1]):
        await users.insert_one({"_id": f"user-{number}", "credits": credits_given, "own": {}})
    with pytest.raises(WriteError, match="validation"):
        await users.insert_one({"_id": "none"})
    with pytest.raises(WriteError, match="validation"):
        await users.update_one({"_id": "user-1"}, {"$inc": {"credits": 0.5}})
    assert await users.count_documents({}) == 4


async def test_only_a_user_with_extras_may_be_below_zero(database: Database) -> None:
    """The overdraft is in the extras; a debt outlives the overdraft there."""
    await ensure_indexes(database, NAMES)
    users = database["users"]
    extras = {"lots": [], "holds": [], "overdraft": Int64(50)}
    await users.insert_one({"_id": "ann", "credits": Int64(-40), "creditExtras": extras})
    for without in ({"$unset": {"creditExtras": ""}}, {"$set": {"creditExtras": None}}):
        with pytest.raises(WriteError, match="validation"):
            await users.update_one({"_id": "ann"}, without)


EARLIER = {
    "bsonType": "object",
    "required": ["_id", "credits"],
    "properties": {
        "credits": {"bsonType": ["int", "long"], "minimum": 0},
        "seq": {"bsonType": ["int", "long"], "minimum": 0},
    },
}


@pytest.mark.parametrize(
    "validator",
    [
        {"$jsonSchema": EARLIER},
        {"$and": [{"name": {"$type": "string"}}, {"$jsonSchema": EARLIER}]},
    ],
)
async def test_the_validator_of_an_earlier_version_is_replaced(
    database: Database, validator: dict[str, Any]
) -> None:
    """It would refuse every debt. What the application has beside it stays."""
    await database.create_collection("users", validator=validator, validationLevel="moderate")
    planned = only((await ensure_indexes(database, NAMES, dry_run=True)).changed)
    change = only((await ensure_indexes(database, NAMES)).changed)

    assert change == planned
    assert (change.collection, change.kind) == ("users", "validator")
    extras = {"lots": [], "holds": [], "overdraft": Int64(50)}
    debtor = {"_id": "ann", "name": "Ann", "credits": Int64(-40), "creditExtras": extras}
    await database["users"].insert_one(debtor)
    with pytest.raises(WriteError, match="validation"):
        await database["users"].insert_one({"_id": "u", "name": "Ada", "credits": -1})
    if "$and" in validator:
        with pytest.raises(WriteError, match="validation"):
            await database["users"].insert_one({**debtor, "_id": "u", "name": 1})
    assert len((await ensure_indexes(database, NAMES)).kept) == WANTED


async def test_the_server_refuses_a_hold_that_is_none(database: Database) -> None:
    """Whoever writes it: without an end, in no known state, or of less than nothing."""
    config = CreditConfig(costs={})
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        await ledger.place_hold("ann", "job", amount=60)
    for change in (
        {"$set": {"status": "open"}},
        {"$unset": {"expiresAt": ""}},
        {"$inc": {"captured": -1}},
    ):
        with pytest.raises(WriteError, match="validation"):
            await database["holds"].update_one({}, change)


async def test_documents_from_before_can_still_be_updated(database: Database) -> None:
    """An application's own users, without credits yet, must not become read-only."""
    await database["users"].insert_one({"_id": "old", "name": "Ada"})
    report = await ensure_indexes(database, NAMES)

    assert "users" in {change.collection for change in report.created if change.name == "validator"}
    await database["users"].update_one({"_id": "old"}, {"$set": {"name": "Ada L."}})
    await database["users"].update_one({"_id": "old"}, {"$set": {"credits": 5}})
    with pytest.raises(WriteError, match="validation"):
        await database["users"].update_one({"_id": "old"}, {"$set": {"credits": -5}})


async def test_an_application_s_own_validator_is_not_overwritten(database: Database) -> None:
    """A collection has one validator. The remedy keeps both, and then it is kept."""
    own = {"name": {"$type": "string"}}
    await database.create_collection("users", validator=own, validationAction="warn")
    report = await ensure_indexes(database, NAMES)

    conflict = only(report.conflicts)
    assert (conflict.collection, conflict.kind) == ("users", "validator")
    options = await options_of(database, "users")
    assert (options["validator"], options["validationAction"]) == (own, "warn")
    existing = 'db.getCollectionInfos({name: "users"})[0].options.validator'
    start = f'db.runCommand({{collMod: "users", validator: {{$and: [{existing}, '
    assert conflict.remedy.startswith(start)
    assert len(report.created) + len(report.kept) == WANTED - 1

    ours = json.loads(conflict.remedy.removeprefix(start).removesuffix("]}})"))
    await database.command({"collMod": "users", "validator": {"$and": [own, ours]}})
    conflict = only((await ensure_indexes(database, NAMES)).conflicts)
    assert conflict.reason == "the validator exists but is not enforced"
    await run_in_mongosh(database, conflict.remedy)
    assert len((await ensure_indexes(database, NAMES)).kept) == WANTED
    with pytest.raises(WriteError, match="validation"):
        await database["users"].insert_one({"_id": "u", "credits": 1, "name": 1})
    with pytest.raises(WriteError, match="validation"):
        await database["users"].insert_one({"_id": "u", "credits": -1, "name": "Ada"})


@pytest.mark.parametrize("setting", [{"validationLevel": "off"}, {"validationAction": "warn"}])
async def test_a_validator_that_was_switched_off_stays_off_and_is_a_conflict(
    database: Database, setting: dict[str, str]
) -> None:
    """Someone had a reason; the remedy switches it on again."""
    await ensure_indexes(database, NAMES)
    await database.command({"collMod": "users", **setting})
    conflict = only((await ensure_indexes(database, NAMES)).conflicts)

    assert conflict.reason == "the validator exists but is not enforced"
    assert setting.items() <= (await options_of(database, "users")).items()
    await run_in_mongosh(database, conflict.remedy)
    assert len((await ensure_indexes(database, NAMES)).kept) == WANTED


async def test_without_validators_none_is_set_and_none_is_looked_at(database: Database) -> None:
    """For applications that check their documents in another way."""
    await database.create_collection("users", validator={"name": {"$type": "string"}})
    report = await ensure_indexes(database, NAMES, validators=False)

    assert {change.kind for change in report.changes} == {"collection", "index"}
    assert not report.conflicts
    await database["users"].insert_one({"_id": "u", "name": "Ada"})


# Beside others, and without all rights


async def test_many_at_once_do_not_fail_and_do_not_differ(
    replica_set_uri: str, database: Database
) -> None:
    """All processes of an application start at the same time."""
    clients = [AsyncMongoClient[dict[str, Any]](replica_set_uri) for _ in range(4)]
    try:
        for attempt in range(5):
            names = CollectionNames(
                **{field: f"{field}_{attempt}" for field in CollectionNames.model_fields}
            )
            reports = await asyncio.gather(
                *(ensure_indexes(client[database.name], names) for client in clients)
            )
            for report in reports:
                assert len(report.created) + len(report.kept) == WANTED
            assert len((await ensure_indexes(database, names)).kept) == WANTED
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def test_without_the_right_to_change_collections_the_indexes_are_still_created(
    client: AsyncMongoClient[dict[str, Any]], replica_set_uri: str, database: Database
) -> None:
    """The role readWrite has no collMod: its commands are left to an administrator."""
    await database.create_collection("users")
    await database["idempotency_records"].create_index("expiresAt")
    async with (
        failing(client, "collMod", 13, app="no-dbadmin", times=2),
        AsyncMongoClient[dict[str, Any]](replica_set_uri, appname="no-dbadmin") as limited,
    ):
        report = await ensure_indexes(limited[database.name], NAMES)

    assert [(c.collection, c.name) for c in report.conflicts] == [
        ("users", "validator"),
        ("idempotency_records", "expiresAt_1"),
    ]
    assert all("Unauthorized" in conflict.reason for conflict in report.conflicts)
    for conflict in report.conflicts:
        await run_in_mongosh(database, conflict.remedy)
    assert len((await ensure_indexes(database, NAMES)).kept) == WANTED


async def test_an_index_build_in_progress_is_waited_for(
    client: AsyncMongoClient[dict[str, Any]], replica_set_uri: str, database: Database
) -> None:
    """The server refuses to change a collection while another process builds its index."""
    await database.create_collection("users")
    async with (
        failing(client, "collMod", 12587, app="beside-a-build", times=2),
        AsyncMongoClient[dict[str, Any]](replica_set_uri, appname="beside-a-build") as busy,
    ):
        report = await ensure_indexes(busy[database.name], NAMES)
    assert len(report.created) == WANTED - 1
    assert not report.conflicts


async def test_an_index_that_came_meanwhile_is_a_conflict_and_other_errors_are_raised(
    client: AsyncMongoClient[dict[str, Any]], replica_set_uri: str, database: Database
) -> None:
    """Only what has a remedy is a conflict. The driver's errors reach the caller."""
    async with AsyncMongoClient[dict[str, Any]](replica_set_uri, appname="unlucky") as unlucky:
        async with failing(client, "createIndexes", 85, app="unlucky"):
            report = await ensure_indexes(unlucky[database.name], NAMES)
        assert only(report.conflicts).remedy == 'db.getCollection("users").getIndexes()'
        for command in ("listCollections", "createIndexes"):
            async with failing(client, command, 13, app="unlucky"):
                with pytest.raises(OperationFailure) as caught:
                    await ensure_indexes(unlucky[database.name], NAMES)
            assert caught.value.code == 13


# The report


def test_a_report_is_plain_json() -> None:
    """By state, with every fact of a change."""
    kept = IndexChange("users", "", "collection", "kept")
    conflict = IndexChange("users", "a_1", "index", "conflict", "it is unique", "drop it")
    report = IndexReport((kept, conflict))

    assert json.loads(json.dumps(report.to_dict())) == {
        "created": [],
        "kept": [
            {
                "collection": "users",
                "name": "",
                "kind": "collection",
                "state": "kept",
                "reason": "",
                "remedy": "",
            }
        ],
        "changed": [],
        "conflicts": [
            {
                "collection": "users",
                "name": "a_1",
                "kind": "index",
                "state": "conflict",
                "reason": "it is unique",
                "remedy": "drop it",
            }
        ],
    }


# The script


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_creates_all_shows_each_and_can_be_run_again(
    replica_set_uri: str, database: Database
) -> None:
    """Exit code 0, first and again; where the database is stands in the environment as well."""
    where = ("--uri", replica_set_uri, "--database", database.name)
    script = ("scripts/init_indexes.py",)
    code, output, errors = await run_program(*where, "--dry-run", program=script)
    assert (code, errors) == (0, "")
    assert f"{database.name}: {WANTED} created, 0 kept" in output
    assert "dry run: nothing was written" in output
    assert await database.list_collection_names() == []

    code, output, errors = await run("init", *where, "--no-validators")
    assert (code, errors) == (0, "")
    assert "created\tindex\tidempotency_records.expiresAt_1\n" in output
    assert f"{database.name}: {WANTED - 2} created, 0 kept, 0 changed, 0 in conflict\n" in output

    environment = {"MONGODB_URI": replica_set_uri, "MONGODB_DATABASE": database.name}
    code, output, errors = await run("init", "--json", **environment)
    assert (code, errors) == (0, "")
    report = json.loads(output)
    assert (report["database"], report["dry_run"]) == (database.name, False)
    found = (len(report["created"]), len(report["kept"]), report["conflicts"])
    assert found == (2, WANTED - 2, [])


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_exits_1_with_the_remedy_of_each_conflict(
    replica_set_uri: str, database: Database
) -> None:
    """For a deployment that must not go on without its indexes."""
    await database["transactions"].create_index("action", unique=True)
    where = ("--uri", replica_set_uri, "--database", database.name)
    (code, output, errors), (json_code, as_json, _) = await asyncio.gather(
        run("init", *where), run("init", *where, "--json")
    )

    assert (code, json_code, errors) == (1, 1, "")
    remedy = 'db.getCollection("transactions").dropIndex("action_1")'
    assert f"remedy: {remedy}\n" in output
    assert "1 in conflict" in output
    assert json.loads(as_json)["conflicts"][0]["remedy"] == remedy


@asynccontextmanager
async def standalone(directory: Path) -> AsyncIterator[int]:
    """A mongod without a replica set; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        find_mongod(),
        *("--dbpath", str(directory), "--port", str(port), "--bind_ip", "127.0.0.1"),
        "--nounixsocket",
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with AsyncMongoClient[dict[str, Any]]("127.0.0.1", port) as client:
            await client.admin.command("ping")
        yield port
    finally:
        process.kill()
        await process.wait()


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_exits_2_on_a_mongod_without_a_replica_set(tmp_path: Path) -> None:
    """It says what to do, whether the URI names a replica set or not."""
    async with standalone(tmp_path) as port:
        uri = f"mongodb://127.0.0.1:{port}/"
        found = await asyncio.gather(
            *(run("init", "--uri", uri + o, "--timeout", "1") for o in ("", "?replicaSet=rs0"))
        )
    for code, output, errors in found:
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert "--replSet" in errors
        assert "python -m credit_mongo.local" in errors


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_exits_2_in_one_line_and_never_shows_a_password(
    replica_set_uri: str,
) -> None:
    """Unreachable, refused, or an URI that is none: no traceback, and nothing secret."""
    here = replica_set_uri.removeprefix("mongodb://")
    cases = {
        "mongodb://ada:geheim@127.0.0.1:1/?replicaSet=rs0": "127.0.0.1:1",
        "mongodb://ada:ge/heim@127.0.0.1/": "quote_plus",
        "mongodb://ada:ge?heim=1@127.0.0.1/": "quote_plus",
        "mongodb://ada:ge@heim@127.0.0.1/": "quote_plus",
        "mongodb+srv://ada:geheim@one.example.org,two.example.org/": "one, hostname",
        "mongodb://ada:geheim@127.0.0.1/?tls=true&tlsCAFile=/nowhere": "tlscafile",
        "mongodb://ada:geheim@127.0.0.1/?tls=1": "tls",
        f"mongodb://ada:geheim@{here}": "AuthenticationFailed",
        "nonsense": "mongodb://",
    }
    found = await asyncio.gather(*(run("init", "--uri", uri, "--timeout", "1") for uri in cases))
    for expected, (code, output, errors) in zip(cases.values(), found, strict=True):
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert expected in errors
        assert errors.startswith("error: ")
        assert "heim" not in errors


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_exits_2_without_the_rights(
    client: AsyncMongoClient[dict[str, Any]], replica_set_uri: str, database: Database
) -> None:
    """It names the roles that are needed."""
    async with failing(client, "listCollections", 13, app="credit_mongo"):
        code, output, errors = await run(
            "init", "--uri", replica_set_uri, "--database", database.name
        )
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "credit-mongo roles shows them" in errors


@pytest.mark.drivers("pymongo")  # with a client of its own
async def test_init_exits_2_on_bad_arguments() -> None:
    """Also an URI in the wrong place is not shown with its password."""
    cases = [
        ("--timeout", "0"),
        ("--timeout", "soon"),
        ("--database", "a/b"),
        ("--dry",),
        ("mongodb://ada:geheim@127.0.0.1/",),
    ]
    for code, output, errors in await asyncio.gather(*(run("init", *case) for case in cases)):
        assert (code, output) == (2, "")
        assert "error: " in errors
        assert "Traceback" not in errors
        assert "geheim" not in errors

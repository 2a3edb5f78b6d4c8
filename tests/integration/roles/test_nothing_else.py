"""No role can do anything beyond its work."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import pytest

from credit_mongo import CreditLedger
from tests.integration.access_control import UNAUTHORIZED, GuardedReplicaSet, code_of
from tests.integration.promises import Client, Database, Row, rows
from tests.integration.roles.grants import (
    APP,
    COLLECTIONS,
    EVERYWHERE,
    OTHER,
    ROLES,
    WORK,
    config,
    dump,
)

# Commands on one collection, in a form that changes nothing if it is allowed.
NOBODY = {"_id": "nobody"}
ON_A_COLLECTION: Final[Mapping[str, Callable[[Database, str], Row]]] = {
    "find": lambda _, name: {"find": name, "filter": NOBODY},
    "insert": lambda _, name: {"insert": name, "documents": [{"_id": "new", "credits": 0}]},
    "update": lambda _, name: {
        "update": name,
        "updates": [{"q": NOBODY, "u": {"$set": {"credits": 10**9}}}],
    },
    "remove": lambda _, name: {"delete": name, "deletes": [{"q": NOBODY, "limit": 0}]},
    "createCollection": lambda _, name: {"create": name},
    "createIndex": lambda _, name: {
        "createIndexes": name,
        "indexes": [{"key": {"_id": 1}, "name": "_id_"}],
    },
    "collMod": lambda _, name: {"collMod": name},
    "listIndexes": lambda _, name: {"listIndexes": name},
    "dropIndex": lambda _, name: {"dropIndexes": name, "index": "no_such_index"},
    "dropCollection": lambda _, name: {"drop": name},
    "bypassDocumentValidation": lambda _, name: {
        "insert": name,
        "documents": [{"_id": "bad", "credits": "many"}],
        "bypassDocumentValidation": True,
    },
    "findAndModify": lambda _, name: {
        "findAndModify": name,
        "query": NOBODY,
        "update": {"$set": {"credits": 1}},
        "upsert": True,
    },
    "changeStream": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$changeStream": {}}],
        "cursor": {},
    },
    "collStats": lambda _, name: {"collStats": name},
    "validate": lambda _, name: {"validate": name},
    "convertToCapped": lambda _, name: {"convertToCapped": name, "size": 1},
    "compact": lambda _, name: {"compact": name},
    "planCacheClear": lambda _, name: {"planCacheClear": name},
    "joining another": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$lookup": {"from": "secrets", "pipeline": [], "as": "stolen"}}],
        "cursor": {},
    },
    "uniting with another": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$unionWith": "secrets"}],
        "cursor": {},
    },
    "writing it out to another": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$out": "mine"}],
        "cursor": {},
    },
    "writing it out to the transactions": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$out": "transactions"}],
        "cursor": {},
    },
    "merging it into the audit logs": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$merge": {"into": "audit_logs", "whenMatched": "replace"}}],
        "cursor": {},
    },
    "merging it into the transactions": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$merge": {"into": "transactions", "whenMatched": "merge"}}],
        "cursor": {},
    },
    "merging it into another database": lambda _, name: {
        "aggregate": name,
        "pipeline": [{"$merge": {"into": {"db": OTHER, "coll": "users"}}}],
        "cursor": {},
    },
}


def may_do(action: str, granted: set[str]) -> bool:
    """Whether privileges suffice for a command."""
    if action == "createCollection":
        # A user who may insert can create the collection that way, so the server allows ``create``.
        return bool({"createCollection", "insert"} & granted)
    if action == "findAndModify":
        return {"find", "insert", "update"} <= granted
    return action in granted


# A backup reads every collection of the database, and a restore writes every one of the ledger's.
# An import may add and remove transactions.
ALSO: Final[Mapping[str, set[str]]] = {
    "creditBackup": {"joining another", "uniting with another"},
    "creditRestorer": {
        "writing it out to the transactions",
        "merging it into the audit logs",
        "merging it into the transactions",
    },
    "creditImporter": {
        "writing it out to the transactions",
        "merging it into the transactions",
    },
}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_can_do_on_each_collection_what_its_work_needs_and_no_more(
    guarded: GuardedReplicaSet, administrator: Client, role: str
) -> None:
    """Checks every role on every collection of the ledger, one beside it, and another database."""
    wrong = []
    tried = refused = 0
    places = [(APP, name) for name in (*COLLECTIONS, "secrets", "system.js")]
    places += [(OTHER, name) for name in (*COLLECTIONS, "secrets")]
    async with guarded.client_of(role, APP) as client:
        for (database, name), (action, command) in itertools.product(
            places, ON_A_COLLECTION.items()
        ):
            granted = WORK[role].get(name, set()) if database == APP else set()
            if database == APP and not name.startswith("system."):
                granted = granted | EVERYWHERE.get(role, set())
            may = may_do(action, granted) or (action in ALSO.get(role, ()) and "find" in granted)
            code = await code_of(client[database].command(command(client[database], name)))
            tried, refused = tried + 1, refused + (code == UNAUTHORIZED)
            if may is (code == UNAUTHORIZED):
                wrong.append(f"{action} on {database}.{name}: code {code}")
    assert not wrong, "\n".join(wrong)
    assert tried > 400
    # A restore writes everything but other databases.
    assert refused > tried * (0.5 if role == "creditRestorer" else 0.85)
    assert await rows(administrator[OTHER], "secrets") == [{"_id": "secret"}]


ON_A_DATABASE: Final[Mapping[str, Row]] = {
    "listCollections": {"listCollections": 1},
    "dropDatabase": {"dropDatabase": 1},
    "dbStats": {"dbStats": 1},
    "profile": {"profile": 2},
    "createUser": {"createUser": "mallory", "pwd": "x", "roles": []},
    "updateUser": {"updateUser": "creditRuntime", "pwd": "x"},
    "dropUser": {"dropUser": "creditReader"},
    "usersInfo": {"usersInfo": 1},
    "grantRolesToUser": {"grantRolesToUser": "creditRuntime", "roles": ["dbOwner"]},
    "createRole": {"createRole": "mine", "privileges": [], "roles": []},
    "updateRole": {"updateRole": "creditRuntime", "roles": ["readWrite"]},
    "dropRole": {"dropRole": "creditReader"},
    "grantPrivilegesToRole": {
        "grantPrivilegesToRole": "creditRuntime",
        "privileges": [
            {"resource": {"db": APP, "collection": "transactions"}, "actions": ["remove"]}
        ],
    },
    "applyOps": {"applyOps": [{"op": "n", "ns": "", "o": {}}]},
    "create a collection": {"create": "mine"},
    "create a view": {"create": "mine", "viewOn": "secrets", "pipeline": []},
    "an aggregate of the database": {
        "aggregate": 1,
        "pipeline": [{"$changeStream": {}}],
        "cursor": {},
    },
    "reading the users of the server": {"find": "system.users"},
    "reading the profile": {"find": "system.profile"},
}
ON_THE_SERVER: Final[Mapping[str, Row]] = {
    "listDatabases of all": {"listDatabases": 1, "authorizedDatabases": False},
    "renameCollection": {"renameCollection": f"{APP}.transactions", "to": f"{APP}.gone"},
    "renameCollection away": {"renameCollection": f"{APP}.audit_logs", "to": f"{OTHER}.gone"},
    "serverStatus": {"serverStatus": 1},
    "getParameter": {"getParameter": "*"},
    "setParameter": {"setParameter": 1, "ttlMonitorEnabled": False},
    "getLog": {"getLog": "global"},
    "getCmdLineOpts": {"getCmdLineOpts": 1},
    "replSetStepDown": {"replSetStepDown": 1},
    "replSetGetStatus": {"replSetGetStatus": 1},
    "replSetGetConfig": {"replSetGetConfig": 1},
    "shutdown": {"shutdown": 1},
    "fsync": {"fsync": 1},
    "killAllSessions": {"killAllSessions": []},
    "killAllSessions of another": {"killAllSessions": [{"user": "creditReader", "db": APP}]},
    "currentOp of all": {"currentOp": 1, "$all": True},
    "killOp": {"killOp": 1, "op": 1},
    "setDefaultRWConcern": {"setDefaultRWConcern": 1, "defaultWriteConcern": {"w": 1}},
    "setFeatureCompatibilityVersion": {"setFeatureCompatibilityVersion": "6.0"},
    "appendOplogNote": {"appendOplogNote": 1, "data": {}},
    "logRotate": {"logRotate": 1},
    "createUser": {"createUser": "mallory", "pwd": "x", "roles": ["root"]},
    "reading the users": {"find": "system.users"},
    "reading the keys": {"find": "system.keys"},
}
ALLOWED = {
    ("creditSetup", "listCollections"),
    ("creditBackup", "listCollections"),
    ("creditBackup", "an aggregate of the database"),
}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_can_do_nothing_to_a_database_or_a_server(
    guarded: GuardedReplicaSet, administrator: Client, role: str
) -> None:
    """Each command fails with code 13, and everything stays as it was."""
    before = await dump(administrator)
    commands = [(APP, *item) for item in ON_A_DATABASE.items()]
    commands += [(OTHER, *item) for item in ON_A_DATABASE.items() if "Info" not in item[0]]
    commands += [("admin", *item) for item in ON_THE_SERVER.items()]
    commands += [
        ("local", "reading the oplog", {"find": "oplog.rs"}),
        ("config", "reading sessions", {"find": "transactions"}),
        (
            "config",
            "writing sessions",
            {"delete": "transactions", "deletes": [{"q": {}, "limit": 0}]},
        ),
    ]
    wrong = []
    async with guarded.client_of(role, APP) as client:
        for database, name, command in commands:
            code = await code_of(client[database].command(command))
            may = database == APP and (role, name) in ALLOWED
            if (code is None) if not may else (code is not None):
                wrong.append(f"{name} on {database}: code {code}")
            elif not may and code != UNAUTHORIZED:
                wrong.append(f"{name} on {database}: refused, but with code {code}")
    assert not wrong, "\n".join(wrong)
    assert await dump(administrator) == before


async def test_the_runtime_role_cannot_change_or_remove_records(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """No writing command works, inside a transaction or outside, on one row or on all."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        await ledger.charge("u", "post")
        before = await dump(administrator)
        change = {"$set": {"amount": 0}}
        for name in ("transactions", "audit_logs"):
            records = client[APP][name]
            ways: list[Callable[..., Awaitable[Any]]] = [
                lambda c=records, **o: c.update_one({}, change, **o),
                lambda c=records, **o: c.update_many({}, change, **o),
                lambda c=records, **o: c.update_many({}, [change], **o),
                lambda c=records, **o: c.replace_one({}, {}, **o),
                lambda c=records, **o: c.update_one({"_id": 1}, change, upsert=True, **o),
                lambda c=records, **o: c.delete_one({}, **o),
                lambda c=records, **o: c.delete_many({}, **o),
                lambda c=records, **o: c.find_one_and_update({}, change, **o),
                lambda c=records, **o: c.find_one_and_replace({}, {}, **o),
                lambda c=records, **o: c.find_one_and_delete({}, **o),
            ]
            for way in ways:
                assert await code_of(way()) == UNAUTHORIZED
                async with client.start_session() as session:
                    await session.start_transaction()
                    assert await code_of(way(session=session)) == UNAUTHORIZED
            assert await code_of(records.drop()) == UNAUTHORIZED
        assert await code_of(client[APP]["users"].delete_one({})) == UNAUTHORIZED
        assert await dump(administrator) == before

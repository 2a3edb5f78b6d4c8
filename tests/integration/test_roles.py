"""The roles, on a server that asks who is there: each can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import pytest
import pytest_asyncio
from bson import Int64
from fastapi import FastAPI
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo import (
    CollectionNames,
    ConfigurationError,
    CreditConfig,
    CreditError,
    CreditLedger,
    InsufficientCreditsError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.integrations.fastapi import Charge, Paid, add_credit_handlers, credit_lifespan
from credit_mongo.maintenance.archive import archive
from credit_mongo.maintenance.repair import repair
from credit_mongo.maintenance.roles import Privilege, Role, credit_roles, ensure_roles
from credit_mongo.maintenance.verify import verify
from tests.integration.access_control import (
    ADMINISTRATOR,
    UNAUTHORIZED,
    GuardedReplicaSet,
    code_of,
    create_user_with,
)
from tests.integration.promises import NAMES, Client, Database, Row, check_promises, rows

ROOT = Path(__file__).parents[2]
UTC = timezone.utc
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
APP, OTHER = "app", "other"

# What each role may do, written from what the work needs and not from the module that grants it.
WORK: Final[Mapping[str, Mapping[str, set[str]]]] = {
    "creditRuntime": {
        "users": {"find", "insert", "update"},
        "transactions": {"find", "insert"},
        "audit_logs": {"find", "insert"},
        "idempotency_records": {"find", "insert", "remove"},
        "turns": {"find", "insert", "update"},
        "paid_requests": {"find", "insert", "update", "createIndex"},
        "transactions_archive": {"find"},
        "audit_logs_archive": {"find"},
        "archive_borders": {"find"},
    },
    "creditArchiver": {
        "users": {"find"},
        "transactions": {"find", "remove"},
        "audit_logs": {"find", "remove"},
        "transactions_archive": {"find", "insert", "createIndex"},
        "audit_logs_archive": {"find", "insert", "createIndex"},
        "archive_borders": {"find", "insert", "update"},
        "archive_manifests": {"find", "insert", "update"},
    },
    "creditEraser": {
        **{
            name: {"find", "remove"}
            for name in (
                *("users", "transactions", "audit_logs", "idempotency_records"),
                *("transactions_archive", "audit_logs_archive", "archive_borders"),
                "paid_requests",
            )
        },
        "erasures": {"find", "insert", "update", "remove"},
    },
    "creditSetup": {
        name: {"createCollection", "createIndex", "collMod", "listIndexes"}
        for name in ("users", "transactions", "audit_logs", "idempotency_records")
    },
    "creditReader": {
        name: {"find"}
        for name in (
            *("users", "transactions", "audit_logs", "idempotency_records", "turns"),
            *("transactions_archive", "audit_logs_archive", "archive_manifests"),
            *("archive_borders", "erasures", "paid_requests"),
        )
    },
}
ROLES = list(WORK)
COLLECTIONS = list(WORK["creditReader"])


@pytest_asyncio.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedReplicaSet]:
    """A server with access control, and an administrator."""
    async with GuardedReplicaSet(tmp_path_factory.mktemp("guarded")) as server:
        await server.create_administrator()
        yield server


@pytest_asyncio.fixture(scope="module")
async def administrator(server: GuardedReplicaSet) -> AsyncIterator[Client]:
    """Who may do everything."""
    async with server.client_of(ADMINISTRATOR) as client:
        yield client


@pytest_asyncio.fixture
async def guarded(
    server: GuardedReplicaSet, administrator: Client
) -> AsyncIterator[GuardedReplicaSet]:
    """The server with the roles of a database, a user for each, and the setup done by its role."""
    await ensure_roles(administrator[APP], NAMES)
    for role in ROLES:
        await create_user_with(administrator, APP, role, [role], server.password)
    async with server.client_of("creditSetup", APP) as client:
        report = await CreditLedger(client[APP], config()).ensure_indexes()
        assert not report.conflicts
    for database in (APP, OTHER):
        await administrator[database]["secrets"].insert_one({"_id": "secret"})
        await administrator[database]["users"].insert_one({"_id": "theirs", "credits": Int64(7)})
    await administrator[APP]["users"].delete_one({"_id": "theirs"})
    yield server
    for database in (APP, OTHER):
        await administrator[database].command({"dropAllUsersFromDatabase": 1})
        await administrator[database].command({"dropAllRolesFromDatabase": 1})
        await administrator.drop_database(database)


def config(**changes: Any) -> CreditConfig:
    """Prices and tiers."""
    return CreditConfig(
        costs={"post": {"default": 10}, "view": {"premium": 1}},
        membership={"tiers": {"free": 0, "premium": 1}, "credits_caps": {"free": 5, "premium": 99}},
        **changes,
    )


async def dump(administrator: Client) -> dict[str, Any]:
    """Everything that is in the two databases, with users, roles and indexes."""
    found: dict[str, Any] = {}
    for name in (APP, OTHER):
        database = administrator[name]
        for collection in await database.list_collection_names():
            found[f"{name}.{collection}"] = [
                await database[collection].find().sort("_id").to_list(None),
                await (await database[collection].list_indexes()).to_list(None),
            ]
        for command in ("usersInfo", "rolesInfo"):
            found[f"{name} {command}"] = await database.command({command: 1})
            for reply in ("$clusterTime", "operationTime"):
                found[f"{name} {command}"].pop(reply)
    return found


# --- The documents --------------------------------------------------------------------------------


def test_each_role_grants_what_its_work_needs() -> None:
    """Collection by collection; ``listCollections`` belongs to the database."""
    for role in credit_roles(APP):
        granted = {p.collection: set(p.actions) for p in role.privileges}
        assert granted.pop("", set()) == ({"listCollections"} if "Setup" in role.name else set())
        assert granted == WORK[role.name]
        assert {p.database for p in role.privileges} == {APP}
        assert role.purpose


def test_collections_of_other_names_get_the_same_privileges() -> None:
    """The names of the configuration, and the archives named after them."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    runtime, archiver, *_ = credit_roles(APP, names)
    assert {p.collection for p in runtime.privileges} == {f"our_{n}" for n in WORK[runtime.name]}
    assert "our_transactions_archive" in {p.collection for p in archiver.privileges}
    assert "transactions_archive" not in {p.collection for p in archiver.privileges}


def test_a_database_name_that_mongodb_forbids_is_refused() -> None:
    """It stands in a command to be pasted."""
    for name in ("", "a.b", 'a"b', "a b", "x" * 64, None, 5, {"$ne": ""}):
        with pytest.raises(ConfigurationError) as caught:
            credit_roles(name)  # type: ignore[arg-type]
        assert caught.value.field == "database"


async def run_in_mongosh(administrator: Client, line: str) -> None:
    """What mongosh does with a printed line."""
    database, _, command = line.removeprefix("db.getSiblingDB(").partition(").runCommand(")
    await administrator[json.loads(database)].command(json.loads(command.removesuffix(")")))


async def test_what_is_printed_creates_the_roles(administrator: Client) -> None:
    """The lines for mongosh leave nothing to be done."""
    for role in credit_roles(OTHER):
        await run_in_mongosh(administrator, role.to_mongosh())
    report = await ensure_roles(administrator[OTHER], NAMES)
    assert [change.role for change in report.kept] == ROLES
    await administrator[OTHER].command({"dropAllRolesFromDatabase": 1})


# --- Creating them --------------------------------------------------------------------------------


async def test_roles_are_created_once_and_kept(administrator: Client) -> None:
    """A dry run tells what a run does, and writes nothing."""
    database = administrator["fresh"]
    planned = await ensure_roles(database, NAMES, dry_run=True)
    assert (await database.command({"rolesInfo": 1}))["roles"] == []
    created = await ensure_roles(database, NAMES)
    assert created == planned
    assert [change.role for change in created.created] == ROLES
    assert "find on fresh.users" in created.created[0].added
    for _ in range(2):
        again = await ensure_roles(database, NAMES)
        assert [change.role for change in again.kept] == ROLES
        assert again.to_dict()["created"] == again.to_dict()["changed"] == []
    assert json.loads(json.dumps(created.to_dict()))["created"][0]["role"] == "creditRuntime"
    await database.command({"dropAllRolesFromDatabase": 1})


async def test_a_role_that_differs_is_put_right_and_keeps_its_users(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Too many privileges, too few, and inherited roles; restrictions of the address stay."""
    database = administrator[APP]
    runtime = credit_roles(APP)[0]
    too_many = Privilege(APP, "transactions", ("remove",))
    privileges = [p.to_dict() for p in (*runtime.privileges[1:], too_many)]
    restrictions = [{"clientSource": ["127.0.0.1"]}]
    await database.command(
        {
            "updateRole": "creditRuntime",
            "privileges": privileges,
            "roles": ["read"],
            "authenticationRestrictions": restrictions,
        }
    )
    planned = await ensure_roles(database, NAMES, dry_run=True)
    report = await ensure_roles(database, NAMES)
    assert report == planned
    [changed] = report.changed
    assert changed.role == "creditRuntime"
    assert set(changed.added) == {
        f"{action} on app.users" for action in WORK[runtime.name]["users"]
    }
    assert {"remove on app.transactions", "collStats on app"} <= set(changed.removed)
    assert len((await ensure_roles(database, NAMES)).kept) == len(ROLES)
    question = {"role": "creditRuntime", "db": APP}
    [found] = (
        await database.command({"rolesInfo": question, "showAuthenticationRestrictions": True})
    )["roles"]
    assert found["roles"] == []
    assert str(restrictions[0]["clientSource"]) in str(found["authenticationRestrictions"])
    async with guarded.client_of("creditRuntime", APP) as client:
        assert await client[APP]["users"].find_one() is None
        assert await code_of(client[APP]["transactions"].delete_one({})) == UNAUTHORIZED


async def test_many_at_once_create_the_same_roles(administrator: Client) -> None:
    """As processes that start together do."""
    for attempt in range(3):
        database = administrator[f"fresh{attempt}"]
        reports = await asyncio.gather(*(ensure_roles(database, NAMES) for _ in range(8)))
        for report in reports:
            assert len(report.created) + len(report.kept) == len(ROLES)
        assert len((await ensure_roles(database, NAMES)).kept) == len(ROLES)
        await database.command({"dropAllRolesFromDatabase": 1})


@pytest.mark.parametrize("role", ROLES)
async def test_no_role_can_change_roles(
    guarded: GuardedReplicaSet, administrator: Client, role: str
) -> None:
    """Nobody can give themselves more."""
    before = await dump(administrator)
    async with guarded.client_of(role, APP) as client:
        assert await code_of(ensure_roles(client[APP], NAMES)) == UNAUTHORIZED
    assert await dump(administrator) == before


# --- The runtime role does its work ---------------------------------------------------------------


class Watched:
    """A ledger that notes which of its methods were called and ended well."""

    def __init__(self, ledger: CreditLedger, called: set[str]) -> None:
        self._ledger = ledger
        self._called = called

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            result = await getattr(self._ledger, name)(*arguments, **options)
            self._called.add(name)
            return result

        return call


class Clock:
    """The time, which can be moved on."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def live(ledger: Any, client: Client, clock: Clock) -> None:
    """Do all that a ledger does, with keys, refusals and sessions."""
    await ledger.create_user("u", credits=50, membership_tier="free", idempotency_key="c")
    charge = await ledger.charge("u", "post", idempotency_key="k", metadata={"a": 1})
    assert (await ledger.charge("u", "post", idempotency_key="k")).replayed
    clock.ahead = timedelta(days=2)  # the key is over, though TTL has not come
    assert not (await ledger.charge("u", "post", idempotency_key="k")).replayed
    with pytest.raises(InsufficientCreditsError):
        await ledger.charge("u", "post", amount=1000, idempotency_key="r")
    with pytest.raises(UserNotFoundError):
        await ledger.charge("nobody", "post")
    await ledger.refund("u", 3, action="sorry", transaction_id=charge.transaction_id)
    await ledger.grant("u", 5, action="bonus")
    await ledger.upgrade_tier("u", "premium", membership_expires_at=FUTURE)
    await ledger.renew_tier("u", membership_expires_at=FUTURE)
    await ledger.quote("u", "post")
    await ledger.validate_access("u", "view")
    await ledger.downgrade_tier("u", "free")
    await ledger.get_user("u")
    page = await ledger.get_history("u", limit=2)
    await ledger.get_history("u", limit=2, cursor=page.next_cursor)
    page = await ledger.get_audit_log("u", limit=2, status="success")
    await ledger.get_audit_log("u", limit=2, cursor=page.next_cursor)
    async with client.start_session() as session:
        for ending in ("abort_transaction", "commit_transaction"):
            await session.start_transaction()
            await ledger.grant("u", 9, action="x", session=session, idempotency_key=ending)
            with pytest.raises(InsufficientCreditsError):
                await ledger.charge("u", "post", amount=1000, session=session)
            assert await ledger.get_balance("u", session=session) == 14
            await getattr(session, ending)()


async def test_the_runtime_role_can_do_all_that_the_ledger_does(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Every public method, each at least once to a good end; only the setup is not its work."""
    called: set[str] = set()
    clock = Clock()
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(), clock=clock) as ledger,
    ):
        with pytest.raises(UserNotFoundError):
            await ledger.get_balance("u")
        await live(Watched(ledger, called), client, clock)
    public = {
        name
        for name, _ in inspect.getmembers(CreditLedger, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert public - called == {"ensure_indexes", "delete_user", "close"}
    assert await rows(administrator[APP], "idempotency_records")


async def test_the_runtime_role_is_enough_on_a_connection_of_the_ledgers_own(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """From the URI to the promises, with the clock of the machine."""
    uri = guarded.uri_of("creditRuntime", APP)
    async with CreditLedger.connect(uri, database=APP, config=config()) as ledger:
        await ledger.create_user("u", credits=50, idempotency_key="c")
        await asyncio.gather(
            *(ledger.charge("u", "post", idempotency_key=str(n)) for n in range(5))
        )
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge("u", "post", idempotency_key="more")
    await check_promises(administrator[APP])


async def test_the_runtime_role_can_take_turns_among_processes(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Several clients on one user at once: the turns come into being, and all get their credits."""
    async with (
        guarded.client_of("creditRuntime", APP) as one,
        guarded.client_of("creditRuntime", APP) as two,
        CreditLedger(one[APP], config()) as first,
        CreditLedger(two[APP], config()) as second,
    ):
        await first.create_user("u")
        granted = 0
        while not await rows(administrator[APP], "turns") or granted < 200:
            await asyncio.gather(
                *(ledger.grant("u", 1, action="x") for ledger in (first, second) for _ in range(50))
            )
            granted += 100
        assert await first.get_balance("u") == granted
    [turn] = await rows(administrator[APP], "turns")
    assert turn["taken"] > 0
    await check_promises(administrator[APP])


def somebody() -> str:
    """Whom a request is charged to."""
    return "u"


async def ask(client: Client, settings: CreditConfig, *asked: tuple[int, str]) -> list[int]:
    """The statuses that an application of the client answers; it divides by the number."""
    app = FastAPI(lifespan=credit_lifespan(settings, database=client[APP], indexes=False))
    add_credit_handlers(app)

    @app.post("/{part}")
    async def divide(paid: Annotated[Paid, Charge("post", user=somebody)], part: int) -> float:
        return paid.cost / part

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as browser,
    ):
        await app.state.credit_mongo.paid_requests.settle_abandoned()
        return [
            (await browser.post(f"/{part}", headers={"Idempotency-Key": key})).status_code
            for part, key in asked
        ]


async def test_the_roles_are_enough_for_a_fastapi_application(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """The runtime role pays for requests and settles them; the eraser's takes them, too."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    settings = config(collections=names)
    await ensure_roles(administrator[APP], names)
    async with guarded.client_of("creditSetup", APP) as client:
        await CreditLedger(client[APP], settings).ensure_indexes()
    async with guarded.client_of("creditRuntime", APP) as client:
        refused = FastAPI(lifespan=credit_lifespan(settings, database=client[APP]))
        with pytest.raises(StorageError, match="Unauthorized"):
            async with refused.router.lifespan_context(refused):
                pytest.fail("it may not make the ledger's indexes")
        async with CreditLedger(client[APP], settings) as ledger:
            await ledger.create_user("u", credits=50)
            asked = [(2, "a"), (2, "a"), (0, "b"), (0, "b"), (1, "c")]
            assert await ask(client, settings, *asked) == [200, 409, 500, 500, 200]
            assert await ledger.get_balance("u") == 30
    kept = await rows(administrator[APP], names.paid_requests)
    assert sorted(row["state"] for row in kept) == ["completed", "completed", "released"]
    async with guarded.client_of("creditEraser", APP) as client:
        erasure = await CreditLedger(client[APP], settings).delete_user("u")
    assert erasure.paid_requests == 3
    assert await rows(administrator[APP], names.paid_requests) == []


@pytest.mark.parametrize("action", sorted(WORK["creditRuntime"]["paid_requests"]))
async def test_without_any_one_privilege_on_them_no_request_is_paid(
    guarded: GuardedReplicaSet, administrator: Client, action: str
) -> None:
    """So each is needed; and nothing is charged."""
    runtime = credit_roles(APP)[0]
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        assert await ask(client, config(), (1, "a")) == [200]
        privileges = without(runtime, "paid_requests", action)
        await administrator[APP].command(
            {"updateRole": runtime.name, "privileges": privileges, "roles": []}
        )
        if action in ("createIndex", "find"):
            with pytest.raises(StorageError, match="Unauthorized"):
                await ask(client, config(), (1, "b"))
        else:
            assert await ask(client, config(), (1, "b")) == [503]
        assert await ledger.get_balance("u") == 40


async def test_a_caller_who_gives_up_leaves_no_transaction_open(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """To end one's own sessions needs no privilege."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(operation_timeout_seconds=0.5)) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        async with administrator.start_session() as session:
            await session.start_transaction()
            await administrator[APP]["users"].update_one(
                {"_id": "u"}, {"$set": {"mine": 1}}, session=session
            )
            with pytest.raises(StorageError):
                await ledger.charge("u", "post")
            await session.abort_transaction()
    for _ in range(100):
        status = await administrator.admin.command("serverStatus")
        if not status["transactions"]["currentOpen"]:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("a transaction is still open")


# --- And nothing else -----------------------------------------------------------------------------

# What concerns one collection, in a form that changes nothing if it is allowed.
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
    """Whether privileges are enough for it."""
    if action == "createCollection":
        # Who may insert creates a collection by that, and may say so.
        return bool({"createCollection", "insert"} & granted)
    if action == "findAndModify":
        return {"find", "insert", "update"} <= granted
    return action in granted


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_can_do_on_each_collection_what_its_work_needs_and_no_more(
    guarded: GuardedReplicaSet, administrator: Client, role: str
) -> None:
    """Every role, every collection of the ledger, one beside it, and all of another database."""
    wrong = []
    tried = refused = 0
    places = [(APP, name) for name in (*COLLECTIONS, "secrets", "system.js")]
    places += [(OTHER, name) for name in (*COLLECTIONS, "secrets")]
    async with guarded.client_of(role, APP) as client:
        for (database, name), (action, command) in itertools.product(
            places, ON_A_COLLECTION.items()
        ):
            granted = WORK[role].get(name, set()) if database == APP else set()
            may = may_do(action, granted)
            code = await code_of(client[database].command(command(client[database], name)))
            tried, refused = tried + 1, refused + (code == UNAUTHORIZED)
            if may is (code == UNAUTHORIZED):
                wrong.append(f"{action} on {database}.{name}: code {code}")
    assert not wrong, "\n".join(wrong)
    assert tried > 400
    assert refused > tried * 0.9
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
ALLOWED = {("creditSetup", "listCollections")}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_can_do_nothing_to_a_database_or_a_server(
    guarded: GuardedReplicaSet, administrator: Client, role: str
) -> None:
    """Code 13 for each, and everything is as it was."""
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


async def test_records_can_not_be_changed_or_taken_away_by_the_runtime_role(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """By no command that writes, in a transaction or outside, one row or all."""
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


async def test_the_reader_can_read_all_and_a_ledger_of_it_writes_nothing(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Reads go through; each write is a StorageError, and nothing is written."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50, membership_tier="free")
        await ledger.charge("u", "post")
    before = await dump(administrator)
    async with (
        guarded.client_of("creditReader", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        assert await ledger.get_balance("u") == 40
        assert len(await ledger.get_history("u")) == len(await ledger.get_audit_log("u")) == 2
        assert (await ledger.quote("u", "post")).affordable
        for write in (
            ledger.charge("u", "post"),
            ledger.charge("u", "post", amount=1000),
            ledger.grant("u", 1, action="x", idempotency_key="k"),
            ledger.create_user("v"),
            ledger.upgrade_tier("u", "premium"),
        ):
            await check_unauthorized(write)
    assert await dump(administrator) == before


async def test_the_reader_can_verify_and_the_runtime_role_can_repair(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """To look needs no more than reading, and a correction is a transaction like any other."""
    async with (
        guarded.client_of("creditRuntime", APP) as runtime,
        guarded.client_of("creditReader", APP) as reader,
        CreditLedger(runtime[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        assert (await verify(reader[APP])).findings == ()
        await administrator[APP]["users"].update_one({"_id": "u"}, {"$inc": {"credits": 7}})
        [finding] = (await verify(reader[APP])).findings
        assert finding.user_id == "u"
        before = await dump(administrator)
        settle = functools.partial(repair, operator="ann", reason="a balance edited by hand")
        # What is refused is told for each user, or raised at once.
        with contextlib.suppress(PyMongoError):
            assert not (await settle(reader[APP])).is_complete
        assert await dump(administrator) == before
        assert (await settle(runtime[APP])).is_complete
        assert (await verify(reader[APP])).findings == ()
        assert await ledger.get_balance("u") == 57


async def test_the_eraser_can_erase_and_the_runtime_role_can_not(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Nothing goes for whom nothing may go; who may erase can do nothing else of a ledger's."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50, idempotency_key="k")
        await ledger.charge("u", "post", idempotency_key="l")
        await ledger.create_user("v", credits=50)
        before = await dump(administrator)
        await check_unauthorized(ledger.delete_user("u"))
        assert await dump(administrator) == before
        async with (
            guarded.client_of("creditEraser", APP) as eraser,
            CreditLedger(eraser[APP], config()) as other,
        ):
            for write in (other.charge("v", "post"), other.create_user("w")):
                await check_unauthorized(write)
            assert await dump(administrator) == before
            erasure = await other.delete_user("u", requested_by="ann")
        assert (erasure.transactions, erasure.idempotency_records) == (2, 2)
        with pytest.raises(UserNotFoundError):
            await ledger.get_balance("u")
        assert await ledger.get_balance("v") == 50
    for name in ("users", "transactions", "audit_logs", "idempotency_records"):
        assert "'u'" not in str(await rows(administrator[APP], name))
    await check_promises(administrator[APP])


async def test_the_archiver_can_archive_and_the_runtime_role_can_not(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """To collections and to files; who is charged meanwhile can be refunded of what is archived."""
    database = administrator[APP]
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config()) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        charge = await ledger.charge("u", "post")
        before = await dump(administrator)
        with pytest.raises(OperationFailure) as caught:
            await archive(client[APP], older_than="0h")
        assert caught.value.code == UNAUTHORIZED
        assert await dump(administrator) == before
        async with (
            guarded.client_of("creditArchiver", APP) as archiver,
            CreditLedger(archiver[APP], config()) as other,
        ):
            done = await archive(archiver[APP], older_than="0h")
            assert (done.transactions, done.audit_logs) == (2, 2)
            await ledger.refund("u", 1, action="sorry", transaction_id=charge.transaction_id)
            assert len(await ledger.get_history("u", include_archived=True)) == 3
            await asyncio.sleep(0.01)
            done = await archive(archiver[APP], older_than="0h", directory=tmp_path)
            assert (done.transactions, done.audit_logs) == (1, 1)
            for write in (other.charge("u", "post"), other.create_user("w")):
                await check_unauthorized(write)
        await ledger.charge("u", "post")
    assert (await verify(database)).findings == ()


# --- The script -----------------------------------------------------------------------------------


async def run_script(*arguments: str, uri: str = "mongodb://127.0.0.1:1/") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``python scripts/roles.py``."""
    variables = {"PYTHONPATH": str(ROOT), "MONGODB_URI": uri, "MONGODB_DATABASE": APP}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "scripts/roles.py", *arguments),
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_the_script_prints_the_roles_without_a_server(administrator: Client) -> None:
    """Lines for mongosh, or JSON."""
    code, output, errors = await run_script()
    assert (code, errors) == (0, "")
    assert [line for line in output.splitlines() if not line.startswith("//")] == [
        role.to_mongosh() for role in credit_roles(APP)
    ]
    assert output.count("\n// credit") == len(ROLES) - 1
    code, output, errors = await run_script("--json", "--database", OTHER)
    assert (code, errors) == (0, "")
    printed = json.loads(output)
    assert printed["database"] == OTHER
    for role, document in zip(credit_roles(OTHER), printed["roles"], strict=True):
        assert document.pop("purpose") == role.purpose
        assert document == role.create_command()


async def test_the_script_creates_the_roles_and_says_what_it_did(
    server: GuardedReplicaSet, administrator: Client
) -> None:
    """Created, kept, changed; who may not is told what is missing, and no password."""
    database = administrator[APP]
    uri = server.uri_of(ADMINISTRATOR)
    code, output, errors = await run_script("--create", "--dry-run", uri=uri)
    assert (code, errors) == (0, "")
    assert "app: 5 created, 0 kept, 0 changed (dry run: nothing was written)\n" in output
    assert (await database.command({"rolesInfo": 1}))["roles"] == []
    code, output, errors = await run_script("--create", uri=uri)
    assert (code, errors) == (0, "")
    assert "created creditRuntime\n" in output
    code, output, errors = await run_script("--create", "--json", uri=uri)
    assert (code, errors) == (0, "")
    assert [change["role"] for change in json.loads(output)["kept"]] == ROLES
    privileges = without(credit_roles(APP)[0], "users", "update")
    await database.command(
        {"updateRole": "creditRuntime", "privileges": privileges, "roles": ["dbAdmin"]}
    )
    code, output, errors = await run_script("--create", uri=uri)
    assert (code, errors) == (0, "")
    assert "changed creditRuntime: + update on app.users, - " in output
    assert "- collMod on app" in output
    await create_user_with(administrator, APP, "ann", ["creditRuntime"], server.password)
    code, output, errors = await run_script("--create", uri=server.uri_of("ann", APP))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "userAdmin" in errors
    assert server.password not in errors
    await database.command({"dropAllUsersFromDatabase": 1})
    await database.command({"dropAllRolesFromDatabase": 1})


# --- What a missing privilege does ----------------------------------------------------------------


SECRET = "key-" + "of-a-request"


async def check_unauthorized(call: Awaitable[Any]) -> None:
    """It is a StorageError that says what is missing, with the driver's own error behind it."""
    with pytest.raises(StorageError) as caught:
        await call
    assert type(caught.value) is StorageError
    assert str(caught.value) == "the server refused the operation: Unauthorized (code 13)"
    assert caught.value.code == "STORAGE_ERROR"
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert caught.value.__cause__.code == UNAUTHORIZED


def without(role: Role, collection: str, action: str) -> list[Row]:
    """The privileges of a role but for one action."""
    return [
        Privilege(
            p.database,
            p.collection,
            tuple(a for a in p.actions if (p.collection, a) != (collection, action)),
        ).to_dict()
        for p in role.privileges
        if p.actions != (action,) or p.collection != collection
    ]


@pytest.mark.parametrize(
    ("collection", "action"),
    [
        (name, action)
        for name, actions in WORK["creditRuntime"].items()
        # For repairs, and for FastAPI: both are tried above.
        if name not in ("archive_borders", "paid_requests")
        for action in sorted(actions)
    ],
)
async def test_without_any_one_privilege_some_calls_are_refused_and_the_rest_works(
    guarded: GuardedReplicaSet, administrator: Client, collection: str, action: str
) -> None:
    """So each is needed. What is refused writes nothing, and the books stay right."""
    database = administrator[APP]
    clock = Clock()
    runtime = credit_roles(APP)[0]
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(), clock=clock) as ledger,
    ):
        await ledger.create_user("u", credits=50, membership_tier="free")
        await ledger.charge("u", "post", idempotency_key="over")
        clock.ahead = timedelta(days=2)
        await database.command(
            {
                "updateRole": runtime.name,
                "privileges": without(runtime, collection, action),
                "roles": [],
            }
        )
        done = [await outcome_of(database, call) for call in some_calls(ledger, "v")]
        loop = asyncio.get_running_loop()
        for number in (1, 2):  # as after conflicts with another process: it takes turns
            ledger._committer._turns.met_conflict(number, loop.time())
        done += [await outcome_of(database, call) for call in some_calls(ledger, "w")]
    refused = [each for each in done if each == "unauthorized"]
    assert refused, "nothing needs it"
    assert len(refused) < len(done), "nothing goes on without it"


def some_calls(ledger: CreditLedger, name: str) -> list[Callable[[], Awaitable[Any]]]:
    """Calls that need every privilege among them."""
    return [
        lambda: ledger.create_user(name),
        lambda: ledger.charge("u", "post", idempotency_key="over"),
        lambda: ledger.grant("u", 1, action="x", idempotency_key=SECRET + name),
        lambda: ledger.charge("u", "post", amount=1000, idempotency_key=f"{SECRET} {name}"),
        lambda: ledger.grant("u", 1, action="x"),
        lambda: ledger.get_balance("u"),
        lambda: ledger.get_history("u"),
        lambda: ledger.get_audit_log("u"),
        lambda: ledger.get_history("u", include_archived=True),
        lambda: ledger.get_audit_log("u", include_archived=True),
    ]


async def outcome_of(database: Database, call: Callable[[], Awaitable[Any]]) -> str:
    """What a call comes to; if it is refused for a privilege, then without a trace."""
    before = await books(database)
    try:
        await call()
    except StorageError as error:
        shown = "".join(traceback.format_exception(error))
        cause = error.__cause__
        code = cause.code if isinstance(cause, OperationFailure) else None
    except CreditError as error:
        return error.code
    else:
        return "done"
    assert code == UNAUTHORIZED
    assert SECRET not in shown  # though the server quotes the command that it refuses
    assert await books(database) == before
    return "unauthorized"


async def books(database: Database) -> list[list[Row]]:
    """All rows that say something; the turns say nothing."""
    return [await rows(database, name) for name in COLLECTIONS if name != "turns"]


async def test_only_the_setup_role_can_run_ensure_indexes(
    guarded: GuardedReplicaSet, administrator: Client, tmp_path: Path
) -> None:
    """It did in the fixture, and can again; for the others it is a StorageError."""
    before = await dump(administrator)
    for role in ROLES:
        async with guarded.client_of(role, APP) as client:
            ledger = CreditLedger(client[APP], config())
            if role == "creditSetup":
                report = await ledger.ensure_indexes()
                assert len(report.kept) == len(report.changes)
            else:
                await check_unauthorized(ledger.ensure_indexes())
    assert await dump(administrator) == before


async def test_the_setup_role_can_change_a_ttl_and_add_a_validator(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """What is already there with documents is brought up to date as well."""
    database = administrator[APP]
    await database.command({"collMod": "users", "validator": {}})
    await database.command(
        {
            "collMod": "idempotency_records",
            "index": {"name": "expiresAt_1", "expireAfterSeconds": 9},
        }
    )
    async with guarded.client_of("creditSetup", APP) as client:
        report = await CreditLedger(client[APP], config()).ensure_indexes()
    assert [change.name for change in (*report.created, *report.changed)] == [
        "validator",
        "expiresAt_1",
    ]
    assert not report.conflicts

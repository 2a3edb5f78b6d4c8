"""``credit-mongo doctor``: each check finds what it is for, and says what to do."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, UserMapping
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.doctor import servers
from credit_mongo.maintenance.doctor.examination import CHECKS, examine
from credit_mongo.maintenance.doctor.findings import Finding, Patient
from credit_mongo.maintenance.doctor.ledgers import check_indexes, check_roles, check_settings
from credit_mongo.maintenance.roles import credit_roles, ensure_roles
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.access_control import ADMINISTRATOR, GuardedReplicaSet, create_user_with
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database, Row, check_promises, failing, with_options
from tests.integration.test_servers import free_port, standalone_uri

CONFIG = CreditConfig(costs={"post": {"default": 10}})
__all__ = ["standalone_uri"]  # a fixture of another module


def patient_of(database: Database, config: CreditConfig = CONFIG) -> Patient:
    """What checks look at."""
    return Patient(LedgerDatabase.of(database, config.collections, config.users), config)


@pytest_asyncio.fixture
async def patient(ledger: CreditLedger, database: Database) -> Patient:
    """A sound ledger with one user, of which nothing is known yet but that it can be reached."""
    await ledger.create_user("ann", credits=100)
    await ledger.charge("ann", "generate-post", idempotency_key="1")
    patient = patient_of(database)
    [found] = await servers.check_reachable(patient)
    assert found.state == "good"
    return patient


async def test_a_sound_ledger_is_found_so_and_nothing_is_written(
    patient: Patient, database: Database, replica_set_uri: str
) -> None:
    """The test charge leaves neither a user nor a row."""

    async def rows() -> dict[str, list[Row]]:
        return {
            name: await database[name].find({}).sort("_id", 1).to_list()
            for name in await database.list_collection_names()
        }

    before = await rows()
    code, output, errors = await run("doctor", "--json", *where(replica_set_uri, database))
    found = json.loads(output)
    assert (code, errors, found["is_well"]) == (0, "", True), output
    names = ["reachable", *(name for name, _ in CHECKS)]
    names.insert(names.index("indexes") + 1, "validators")
    assert [each["check"] for each in found["checks"]] == [*names, "test charge"]
    state = {each["check"]: each["state"] for each in found["checks"]}
    # These servers let anybody in, and the disk may be nearly full.
    assert {n for n, each in state.items() if each != "good"} <= {"roles", "disk"}, output
    assert await rows() == before
    await check_promises(database)
    code, output, errors = await run("doctor", "--read-only", *where(replica_set_uri, database))
    assert (code, errors) == (0, "")
    assert "test charge" not in output
    assert "roles: turn on access control" in output


async def test_no_server_is_the_only_finding() -> None:
    """With the address and the remedy, as a finding and no error."""
    uri = f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs0"
    code, output, errors = await run("doctor", "--json", "--uri", uri, "--timeout", "1")
    [found] = json.loads(output)["checks"]
    assert (code, errors) == (1, "")
    assert (found["check"], found["state"]) == ("reachable", "wrong")
    assert "127.0.0.1" in found["seen"]
    assert "--replSet" in found["remedy"]


async def test_a_single_server_is_found(standalone_uri: str) -> None:
    """It is told how to become a replica set, and is not charged on."""
    code, output, errors = await run("doctor", "--json", "--uri", standalone_uri)
    found = {each["check"]: each for each in json.loads(output)["checks"]}
    assert (code, errors) == (1, "")
    assert found["replica set"]["state"] == "wrong"
    assert "rs.initiate()" in found["replica set"]["remedy"]
    assert found["test charge"]["state"] == "unknown"
    assert found["settings"]["state"] == "wrong"


@pytest_asyncio.fixture(scope="module")
async def own_server() -> AsyncIterator[tuple[LocalReplicaSet, Client]]:
    """A replica set whose parameters may be changed."""
    async with (
        LocalReplicaSet(1) as replica_set,
        AsyncMongoClient[Row](replica_set.uri, tz_aware=True) as client,
    ):
        yield replica_set, client


async def test_a_member_that_is_away_is_found(
    own_server: tuple[LocalReplicaSet, Client],
) -> None:
    """By its name and state. It has no vote, so there is still a primary."""
    _, client = own_server
    patient = patient_of(client["away"])
    await servers.check_reachable(patient)
    config = (await client.admin.command("replSetGetConfig"))["config"]
    ghost = f"127.0.0.1:{free_port()}"
    config["members"].append({"_id": 9, "host": ghost, "votes": 0, "priority": 0})
    config["version"] += 1
    await client.admin.command({"replSetReconfig": config, "force": True})
    try:
        [found] = await servers.check_members(patient)
        for _ in range(300):
            if found.state != "good":
                break
            await asyncio.sleep(0.1)
            [found] = await servers.check_members(patient)
    finally:
        config["members"].pop()
        config["version"] += 10
        await client.admin.command({"replSetReconfig": config, "force": True})
    assert found.state == "doubtful"
    assert ghost in found.seen
    assert found.remedy is not None


async def test_a_weak_default_write_concern_is_found(
    own_server: tuple[LocalReplicaSet, Client],
) -> None:
    """The application's own transactions would use it."""
    _, client = own_server
    patient = patient_of(client["weak"])
    assert [each.state for each in await servers.check_write_concern(patient)] == ["good"]
    command: Row = {"setDefaultRWConcern": 1, "writeConcern": {"w": "majority"}}
    await client.admin.command({**command, "defaultWriteConcern": {"w": 1}})
    try:
        [found] = await servers.check_write_concern(patient)
    finally:
        await client.admin.command({**command, "defaultWriteConcern": {"w": "majority"}})
    assert (found.state, found.seen) == ("doubtful", "default w: 1")
    assert "setDefaultRWConcern" in str(found.remedy)


async def test_a_ttl_monitor_that_is_off_is_found(
    own_server: tuple[LocalReplicaSet, Client],
) -> None:
    """Expired keys would stay for ever."""
    _, client = own_server
    patient = patient_of(client["kept"])
    await servers.check_reachable(patient)
    assert [each.state for each in await servers.check_ttl_monitor(patient)] == ["good"]
    await client.admin.command({"setParameter": 1, "ttlMonitorEnabled": False})
    try:
        [found] = await servers.check_ttl_monitor(patient)
    finally:
        await client.admin.command({"setParameter": 1, "ttlMonitorEnabled": True})
    assert (found.state, found.seen) == ("doubtful", "the TTL monitor is turned off")
    assert "credit-mongo cleanup" in str(found.remedy)


async def test_an_overdue_key_and_an_index_that_deletes_rows_are_found(
    patient: Patient, database: Database
) -> None:
    """The second is worse: the history would go."""
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    records = database["idempotency_records"]
    await records.drop_indexes()
    await records.insert_one({"_id": "old", "expiresAt": long_ago})
    [found] = await servers.check_ttl_monitor(patient)
    assert found.state == "doubtful"
    assert "overdue" in found.seen
    await database["transactions"].create_index("writtenAt", name="oops", expireAfterSeconds=9**9)
    try:
        [found] = await servers.check_ttl_monitor(patient)
    finally:
        await database["transactions"].drop_index("oops")
        await records.delete_one({"_id": "old"})
        async with CreditLedger(database, CONFIG) as ledger:
            await ledger.ensure_indexes()
    assert (found.state, found.seen) == ("wrong", "TTL indexes: transactions.oops")


async def test_an_old_version_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """No older server can be had here, so the bar is raised instead."""
    patient = patient_of(database)
    assert [each.state for each in await servers.check_version(patient)] == ["good"]
    monkeypatch.setattr(servers, "_OLDEST_MAJOR_VERSION", 99)
    [found] = await servers.check_version(patient)
    assert (found.state, found.remedy) == ("wrong", "upgrade the servers to MongoDB 99.0 or newer")


@pytest.mark.parametrize(
    ("minutes", "state"), [(0, "good"), (0.75, "doubtful"), (-0.75, "doubtful"), (5, "wrong")]
)
async def test_a_clock_that_is_wrong_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, minutes: float, state: str
) -> None:
    """This machine's against the server's: beyond a minute, operations are refused."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(minutes=minutes)

    monkeypatch.setattr(servers, "datetime", Clock)
    [found] = await servers.check_clock(patient_of(database))
    assert found.state == state
    if state != "good":
        assert "differ by" in found.seen
        assert "NTP" in str(found.remedy)


@pytest.mark.parametrize("collection", ["transactions", "users"])
async def test_what_is_dated_in_the_future_is_found(
    patient: Patient, database: Database, collection: str
) -> None:
    """A row by its index, a user by a look at all."""
    assert [each.state for each in await servers.check_dates(patient)] == ["good"]
    field = {"transactions": "createdAt", "users": "updatedAt"}[collection]
    later = datetime.now(timezone.utc) + timedelta(days=2)
    row = await database[collection].find_one({})
    assert row is not None
    await database[collection].update_one({"_id": row["_id"]}, {"$set": {field: later}})
    [found] = await servers.check_dates(patient)
    assert found.state == "wrong"
    assert f"{collection} has {row['_id']}, dated {later:%Y-%m-%d}" in found.seen
    assert "clock" in str(found.remedy)


async def test_settings_that_are_missing_or_others_are_found(
    patient: Patient, database: Database
) -> None:
    """A ledger of other decimals would take one credit for a hundred units."""
    assert [each.state for each in await check_settings(patient)] == ["good"]
    others = patient_of(database, CONFIG.model_copy(update={"decimal_places": 2}))
    [found] = await check_settings(others)
    assert found.state == "wrong"
    assert "decimal_places" in found.seen
    kept = await database["ledger_settings"].find_one({})
    assert kept is not None
    await database["ledger_settings"].update_one({}, {"$set": {"version": 1}})
    [found] = await check_settings(patient)
    assert (found.state, found.remedy) == ("wrong", "run credit-mongo init")
    assert "lots-and-holds" in found.seen
    await database["ledger_settings"].delete_one({})
    [found] = await check_settings(patient)
    await database["ledger_settings"].insert_one(kept)
    assert found.state == "wrong"
    assert "init --config" in str(found.remedy)


async def test_a_missing_index_and_a_missing_validator_are_found(
    patient: Patient, database: Database
) -> None:
    """Each by its own name, and something that is in the way with its reason."""
    assert [each.state for each in await check_indexes(patient)] == ["good", "good"]
    await database["transactions"].drop_index("createdAt_1")
    indexes, validators = await check_indexes(patient)
    assert (indexes.state, validators.state) == ("wrong", "good")
    assert "transactions.createdAt_1" in indexes.seen
    assert indexes.remedy == "run credit-mongo init"
    await database["transactions"].create_index("amount", name="createdAt_1")
    indexes, _ = await check_indexes(patient)
    assert "in the way: transactions.createdAt_1" in indexes.seen
    await database["transactions"].drop_index("createdAt_1")
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
    await database.command({"collMod": "users", "validator": {}})
    indexes, validators = await check_indexes(patient)
    assert (indexes.state, validators.state) == ("good", "wrong")
    assert "users" in validators.seen
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()


@pytest.mark.parametrize(("free", "state"), [(0.5, "good"), (0.09, "doubtful"), (0.02, "wrong")])
async def test_a_full_disk_is_found(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, free: float, state: str
) -> None:
    """The disk here is as full as it is, so the limits are moved around it."""
    usage = shutil.disk_usage("/tmp")  # noqa: S108 - the servers' data is there
    share = usage.free / usage.total
    for name in ("_LITTLE_SPACE", "_TOO_LITTLE_SPACE"):
        monkeypatch.setattr(servers, name, getattr(servers, name) * share / free)
    [found] = await servers.check_disk(patient)
    assert found.state == state
    assert "GiB free" in found.seen
    assert ("credit-mongo archive" in str(found.remedy)) == (state != "good")


async def test_too_many_connections_are_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered below what is open."""
    patient = patient_of(database)
    assert [each.state for each in await servers.check_connections(patient)] == ["good"]
    monkeypatch.setattr(servers, "_MANY_CONNECTIONS", 0.0)
    [found] = await servers.check_connections(patient)
    assert found.state == "doubtful"
    assert "max_pool_size" in str(found.remedy)


@pytest_asyncio.fixture(scope="module")
async def guarded(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[GuardedReplicaSet, Client]]:
    """A server with access control, a ledger in "app", and a user for each of the roles."""
    async with GuardedReplicaSet(tmp_path_factory.mktemp("guarded")) as server:
        await server.create_administrator()
        async with server.client_of(ADMINISTRATOR) as client:
            async with CreditLedger(client["app"], CONFIG) as ledger:
                await ledger.ensure_indexes()
            await ensure_roles(client["app"], CollectionNames())
            for role in credit_roles("app"):
                await create_user_with(client, "app", role.name, [role.name], server.password)
            yield server, client


async def test_the_application_s_role_is_enough_and_less_is_told(
    guarded: tuple[GuardedReplicaSet, Client],
) -> None:
    """What it lacks is named."""
    server, client = guarded
    assert [each.state for each in await check_roles(patient_of(client["app"]))] == ["good"]
    async with server.client_of("creditRuntime", "app") as own:
        [found] = await check_roles(patient_of(own["app"]))
        assert (found.state, found.remedy) == ("good", None)
    async with server.client_of("creditReader", "app") as own:
        [found] = await check_roles(patient_of(own["app"]))
    assert found.state == "doubtful"
    assert "It lacks insert on users, update on users" in found.seen
    assert "credit-mongo roles --create" in str(found.remedy)


@pytest.mark.parametrize("role", ["creditRuntime", "creditReader", "creditSetup"])
async def test_what_a_role_may_not_see_is_unknown_and_not_wrong(
    guarded: tuple[GuardedReplicaSet, Client], role: str
) -> None:
    """Each with who may see it. No right is needed to run the command."""
    server, _ = guarded
    uri = server.uri_of(role, "app")
    code, output, errors = await run("doctor", "--json", "--uri", uri, "--database", "app")
    found = {each["check"]: each for each in json.loads(output)["checks"]}
    assert (code, errors) == (0, "")
    assert server.password not in output
    unseen = {name for name, each in found.items() if each["state"] == "unknown"}
    assert {"write concern", "disk", "connections"} <= unseen
    assert ("test charge" in unseen) == (role != "creditRuntime")
    assert all(found[name]["remedy"] for name in unseen)
    assert "clusterMonitor" in found["connections"]["remedy"]


async def test_a_check_that_hangs_or_fails_is_a_finding(
    client: Client, database: Database, replica_set_uri: str, patient: Patient
) -> None:
    """And the others are made."""
    assert patient.has_transactions
    app = "doctor"
    async with AsyncMongoClient[Row](
        with_options(replica_set_uri, appName=app), tz_aware=True
    ) as c:
        own = patient_of(c[database.name])
        async with failing(
            client, app, failCommands=["buildInfo"], blockConnection=True, blockTimeMS=3000
        ):
            found = {each.check: each for each in await examine(own, 0.5)}
        assert found["version"].state == "wrong"
        assert found["version"].seen == "no answer in 0.5 s"
        assert found["settings"].state == "good"
        async with failing(client, app, failCommands=["dbStats"], errorCode=96):
            found = {each.check: each for each in await examine(own, 5)}
        assert found["disk"].seen == "the server refused it: OperationFailed (code 96)"


async def test_a_charge_that_fails_is_found(
    client: Client, patient: Patient, database: Database, replica_set_uri: str
) -> None:
    """Whatever prevents it: here, the server refuses to write users."""
    assert patient.has_transactions
    uri = with_options(replica_set_uri, appName="doctor")
    async with failing(client, "doctor", failCommands=["update", "insert"], errorCode=96):
        code, output, _ = await run("doctor", "--json", *where(uri, database))
    found = {each["check"]: each for each in json.loads(output)["checks"]}
    assert code == 1
    assert found["test charge"]["state"] == "wrong"
    assert "OperationFailed" in found["test charge"]["seen"]


async def test_existing_users_and_several_ledgers(
    client: Client, database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The test charge makes an id of the right type; --config chooses among ledgers."""
    uri = replica_set_uri
    id_types: tuple[Literal["objectId", "uuid"], ...] = ("objectId", "uuid")
    for number, id_type in enumerate(id_types):
        names = CollectionNames.with_prefix(f"l{number}_")
        users = UserMapping(id_type=id_type, credits="tokens")
        config = CreditConfig(costs={}, collections=names, users=users)
        async with CreditLedger(database, config) as ledger:
            await ledger.ensure_indexes()
        (tmp_path / f"{number}.json").write_text(config.to_json())
    code, output, _ = await run("doctor", "--json", *where(uri, database))
    found: list[Finding] = json.loads(output)["checks"]
    assert code == 1
    assert "2 ledgers" in str(found[1])
    for number in range(2):
        file = str(tmp_path / f"{number}.json")
        code, output, errors = await run(
            "doctor", "--json", "--config", file, *where(uri, database)
        )
        assert (code, errors) == (0, ""), output
        assert await database[f"l{number}_users"].count_documents({}) == 0

"""The roles themselves: what they grant, and how they are created and corrected."""

from __future__ import annotations

import asyncio
import json

import pytest

from credit_mongo import CollectionNames, ConfigurationError
from credit_mongo.maintenance.roles import Privilege, credit_roles, ensure_roles
from tests.integration.access_control import (
    ADMINISTRATOR,
    UNAUTHORIZED,
    GuardedReplicaSet,
    code_of,
    create_user_with,
)
from tests.integration.commands import run
from tests.integration.promises import NAMES, Client
from tests.integration.roles.grants import (
    APP,
    EVERYWHERE,
    OTHER,
    ROLES,
    SETTINGS,
    WORK,
    dump,
    without,
)


def test_each_role_grants_what_its_work_needs() -> None:
    """Privileges are per collection, but for few of the database."""
    for role in credit_roles(APP):
        granted = {p.collection: set(p.actions) for p in role.privileges}
        assert granted.pop("", set()) == EVERYWHERE.get(role.name, set())
        assert granted == WORK[role.name]
        assert {p.database for p in role.privileges} == {APP}
        assert role.purpose


def test_collections_of_other_names_get_the_same_privileges() -> None:
    """The configuration's names count, and so do the archives named after them."""
    names = CollectionNames(**{name: f"our_{name}" for name in CollectionNames.model_fields})
    runtime, archiver, *_ = credit_roles(APP, names)
    wanted = {f"our_{name}" for name in WORK[runtime.name] if name != SETTINGS}
    assert {p.collection for p in runtime.privileges} == {*wanted, SETTINGS}
    assert "our_transactions_archive" in {p.collection for p in archiver.privileges}
    assert "transactions_archive" not in {p.collection for p in archiver.privileges}


def test_a_database_name_that_mongodb_forbids_is_refused() -> None:
    """The name stands in a command that people paste."""
    for name in ("", "a.b", 'a"b', "a b", "x" * 64, None, 5, {"$ne": ""}):
        with pytest.raises(ConfigurationError) as caught:
            credit_roles(name)  # type: ignore[arg-type]
        assert caught.value.field == "database"


async def run_in_mongosh(administrator: Client, line: str) -> None:
    """Run a printed line as mongosh would."""
    database, _, command = line.removeprefix("db.getSiblingDB(").partition(").runCommand(")
    await administrator[json.loads(database)].command(json.loads(command.removesuffix(")")))


async def test_what_is_printed_creates_the_roles(administrator: Client) -> None:
    """After the printed lines have run, ``create_roles`` has nothing to do."""
    for role in credit_roles(OTHER):
        await run_in_mongosh(administrator, role.to_mongosh())
    report = await ensure_roles(administrator[OTHER], NAMES)
    assert [change.role for change in report.kept] == ROLES
    await administrator[OTHER].command({"dropAllRolesFromDatabase": 1})


# --- Creating them --------------------------------------------------------------------------------


async def test_roles_are_created_once_and_kept(administrator: Client) -> None:
    """A dry run reports what a run would do, and writes nothing."""
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


async def test_a_role_that_differs_is_corrected_and_keeps_its_users(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Extra, missing and inherited privileges are corrected. Restrictions by address stay."""
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
    """Processes that start together may all create them."""
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
    """No role can extend its own privileges."""
    before = await dump(administrator)
    async with guarded.client_of(role, APP) as client:
        assert await code_of(ensure_roles(client[APP], NAMES)) == UNAUTHORIZED
    assert await dump(administrator) == before


async def run_script(*arguments: str, uri: str = "mongodb://127.0.0.1:1/") -> tuple[int, str, str]:
    """Run ``credit-mongo roles``, and return the exit code, stdout and stderr."""
    return await run("roles", *arguments, MONGODB_URI=uri, MONGODB_DATABASE=APP)


async def test_the_script_prints_the_roles_without_a_server(administrator: Client) -> None:
    """The script prints lines for mongosh, or JSON."""
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
    """It says what was created, kept or changed. An error names the privilege, not the password."""
    database = administrator[APP]
    uri = server.uri_of(ADMINISTRATOR)
    code, output, errors = await run_script("--create", "--dry-run", uri=uri)
    assert (code, errors) == (0, "")
    assert "app: 8 created, 0 kept, 0 changed (dry run: nothing was written)\n" in output
    assert (await database.command({"rolesInfo": 1}))["roles"] == []
    code, output, errors = await run_script("--create", uri=uri)
    assert (code, errors) == (0, "")
    assert "created\tcreditRuntime\n" in output
    code, output, errors = await run_script("--create", "--json", uri=uri)
    assert (code, errors) == (0, "")
    assert [change["role"] for change in json.loads(output)["kept"]] == ROLES
    privileges = without(credit_roles(APP)[0], "users", "update")
    await database.command(
        {"updateRole": "creditRuntime", "privileges": privileges, "roles": ["dbAdmin"]}
    )
    code, output, errors = await run_script("--create", uri=uri)
    assert (code, errors) == (0, "")
    assert "changed\tcreditRuntime: + update on app.users, - " in output
    assert "- collMod on app" in output
    await create_user_with(administrator, APP, "ann", ["creditRuntime"], server.password)
    code, output, errors = await run_script("--create", uri=server.uri_of("ann", APP))
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "userAdmin" in errors
    assert server.password not in errors
    await database.command({"dropAllUsersFromDatabase": 1})
    await database.command({"dropAllRolesFromDatabase": 1})

"""Commands take what they need from the database, and only prices from --config."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, UserMapping
from tests.integration.commands import run as run_command
from tests.integration.promises import Database, Row, rows

ROOT = Path(__file__).parents[2]
PEOPLE = CreditConfig(
    costs={"post": {"default": 1.5, "premium": "{words} * 0.25"}},
    membership={"tiers": {"free": 0, "premium": 1}, "credits_caps": {"free": 5, "premium": 99}},
    collections=CollectionNames.with_prefix("our_", users="people"),
    users=UserMapping(id_type="objectId", credits="balance", seq="count"),
    decimal_places=2,
)


async def run(uri: str, database: Database, *arguments: str) -> tuple[int, str, str]:
    """Run a command on a database, and return the exit code, stdout and stderr."""
    return await run_command(*arguments, "--uri", uri, "--database", database.name)


async def run_in(
    directory: Path, uri: str, database: Database, *arguments: str
) -> tuple[int, str, str]:
    """Run the command in a process of its own, in a directory."""
    variables = {"PYTHONPATH": str(ROOT), "MONGODB_URI": uri, "MONGODB_DATABASE": database.name}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import sys; from credit_mongo.cli import main; sys.exit(main())"),
        *arguments,
        cwd=directory,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def facts_of(uri: str, database: Database, *arguments: str) -> dict[str, Any]:
    """Return the JSON that a successful command prints."""
    code, output, errors = await run(uri, database, *arguments, "--json")
    assert (code, errors) == (0, ""), output
    found: dict[str, Any] = json.loads(output)
    return found


async def with_people(database: Database, *, indexes: bool = True) -> str:
    """Set up an application's users with accounts, and return one of their ids."""
    person = (await database["people"].insert_one({"name": "Ann"})).inserted_id
    async with CreditLedger(database, PEOPLE) as ledger:
        if indexes:
            assert not (await ledger.ensure_indexes()).conflicts
        await ledger.create_user(str(person), credits=1350, idempotency_key="c")
        await ledger.charge(str(person), "post")
    return str(person)


async def test_no_configuration_is_needed_to_look_and_to_verify(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The database knows the mapping of users, the collections and the decimal places."""
    user = await with_people(database)
    verified = await facts_of(replica_set_uri, database, "verify")
    assert (verified["users"], verified["transactions"]) == (1, 2)
    assert verified["findings"] == []
    [listed] = (await facts_of(replica_set_uri, database, "users"))["users"]
    assert (listed["user_id"], listed["credits"]) == (user, 1200)
    assert await run(replica_set_uri, database, "balance", user) == (0, "1200 (12.00)\n", "")
    code, output, _ = await run(replica_set_uri, database, "users")
    assert code == 0
    assert re.search(r"1200\W+12\.00", output), output
    for command in ("history", "audit"):
        code, output, errors = await run(replica_set_uri, database, command, user)
        assert (code, errors) == (0, "")
        assert re.search(r"-150\s\(?-1\.50", output), output
    assert (await facts_of(replica_set_uri, database, "status"))["is_ready"]
    file = str(tmp_path / "all.csv")
    assert (await facts_of(replica_set_uri, database, "export", "--output", file))[
        "transactions"
    ] == 2
    granted = await facts_of(replica_set_uri, database, "grant", user, "5", "--action", "gift")
    assert granted["balance_after"] == 1205
    archived = await facts_of(replica_set_uri, database, "archive", "--older-than", "2000-01-01")
    assert archived["transactions"] == 0
    await facts_of(replica_set_uri, database, "cleanup")
    assert (await facts_of(replica_set_uri, database, "init"))["conflicts"] == []
    assert "users" not in await database.list_collection_names()
    erased = await facts_of(
        replica_set_uri, database, "erase", "--user", user, "--requested-by", "eve", "--yes"
    )
    assert (erased["users"], erased["transactions"], erased["idempotency_records"]) == (1, 3, 2)
    assert await database["people"].find_one({"_id": ObjectId(user)}, {"_id": 0}) == {
        "name": "Ann",
        **await _dates(database, user),
    }


async def _dates(database: Database, user: str) -> Row:
    found = await database["people"].find_one({"_id": ObjectId(user)})
    return {name: found[name] for name in ("createdAt", "updatedAt")} if found else {}


@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["verify", "--repair", "--operator", "eve", "--reason", "why"],
        ["users"],
        ["balance", "u"],
        ["status"],
        ["init"],
        ["erase", "--user", "u", "--requested-by", "eve", "--yes"],
        ["archive", "--older-than", "2000-01-01"],
    ],
    ids=" ".join,
)
async def test_without_settings_no_command_takes_sound_books_for_lost_ones(
    database: Database, replica_set_uri: str, command: list[str]
) -> None:
    """In a database older than the settings, with mapped users, nothing is found or written."""
    config = PEOPLE.model_copy(update={"collections": CollectionNames(users="people")})
    async with CreditLedger(database, config) as ledger:
        await ledger.create_user(str(ObjectId()), credits=5)
    before = {name: await rows(database, name) for name in await database.list_collection_names()}
    code, output, errors = await run(replica_set_uri, database, *command)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "has transactions but no accounts in 'users'" in errors
    assert "give --config" in errors
    after = {name: await rows(database, name) for name in await database.list_collection_names()}
    assert after == before


async def test_a_configuration_that_the_ledger_was_not_set_up_with_is_refused(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """With it, a command would misread amounts, or think users lost."""
    await with_people(database)
    file = tmp_path / "other.json"
    file.write_text(PEOPLE.model_copy(update={"decimal_places": 4}).to_json())
    for command in (["verify"], ["users"], ["init"], ["status"], ["cleanup"]):
        code, output, errors = await run(replica_set_uri, database, *command, "--config", str(file))
        assert (code, output) == (2, "")
        assert "decimal_places: is 4, but the ledger in this database was set up with 2" in errors


async def test_init_writes_the_settings_down_with_a_configuration_alone(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """Without a configuration they could only be guessed."""
    code, output, _ = await run(replica_set_uri, database, "init")
    assert (code, output.splitlines()[-1][:45]) == (
        0,
        "The ledger's settings are not stored. Give --",
    )
    assert await rows(database, "ledger_settings") == []
    file = tmp_path / "ours.json"
    file.write_text(CreditConfig(costs={}, decimal_places=3).to_json())
    code, output, _ = await run(replica_set_uri, database, "init", "--config", str(file))
    assert code == 0
    assert "ledger_settings.transactions" in output
    [kept] = await rows(database, "ledger_settings")
    assert kept["decimalPlaces"] == 3
    code, output, _ = await run(replica_set_uri, database, "init")
    assert (code, "not stored" in output) == (0, False)


async def test_with_several_ledgers_a_configuration_says_which(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """The command does not guess."""
    for prefix in ("a_", "b_"):
        config = CreditConfig(costs={}, collections=CollectionNames.with_prefix(prefix))
        async with CreditLedger(database, config) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user(f"{prefix}user", credits=7)
        (tmp_path / f"{prefix}.json").write_text(config.to_json())
    code, output, errors = await run(replica_set_uri, database, "users")
    assert (code, output) == (2, "")
    assert "has 2 ledgers, with transactions in 'a_transactions', 'b_transactions'" in errors
    for prefix in ("a_", "b_"):
        file = str(tmp_path / f"{prefix}.json")
        found = await facts_of(replica_set_uri, database, "users", "--config", file)
        assert [each["user_id"] for each in found["users"]] == [f"{prefix}user"]


# --- What --config takes --------------------------------------------------------------------------

APPLICATION = """
from credit_mongo import CreditConfig

config = CreditConfig(costs={"post": {"default": "{words} * 2"}})
not_one = {"costs": {}}

class Settings:
    class Inner:
        config = config
"""


@pytest.mark.parametrize("name", ["config", "Settings.Inner.config"])
async def test_a_configuration_may_be_a_python_object(
    database: Database, replica_set_uri: str, tmp_path: Path, name: str
) -> None:
    """The object is found from the current directory, and may have formulas."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "credits.py").write_text(APPLICATION)
    async with CreditLedger(database, CreditConfig(costs={})) as ledger:
        await ledger.create_user("u", credits=100)
    code, output, errors = await run_in(
        *(tmp_path, replica_set_uri, database),
        *("charge", "u", "post", "--variable", "words=7", "--json"),
        *("--config", f"shop.credits:{name}"),
    )
    assert (code, errors) == (0, "")
    assert json.loads(output)["cost"] == 14


@pytest.mark.parametrize(
    "wrong",
    [
        (
            "shop.credits:nothing",
            "shop.credits:nothing can't be imported: AttributeError 'nothing'",
        ),
        ("shop.no_such:config", "can't be imported: ModuleNotFoundError 'shop.no_such'"),
        ("shop.broken:config", "shop.broken:config can't be imported: RuntimeError"),
        ("shop.credits:not_one", "shop.credits:not_one must be a CreditConfig, not dict"),
        ("shop.credits:", "shop.credits:: No such file or directory"),
        ("empty.json", "config: empty.json is empty, but must be JSON"),
        ("cut.json", "config: cut.json is not JSON: Expecting value (line 2, column 2)"),
        ("twice.json", "config.costs.a.default: this key appears twice: remove one of them"),
    ],
)
async def test_a_configuration_that_cannot_be_loaded_is_named(
    database: Database,
    replica_set_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: tuple[str, str],
) -> None:
    """The error is one line, without the application's own message."""
    config, said = wrong
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "credits.py").write_text(APPLICATION)
    (tmp_path / "shop" / "broken.py").write_text("raise RuntimeError('the password is 1234')")
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "cut.json").write_text('{"costs":\n ')
    (tmp_path / "twice.json").write_text('{"costs": {"a": {"default": 9, "default": 1}}}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    code, output, errors = await run(replica_set_uri, database, "users", "--config", config)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert said in errors
    assert "1234" not in errors


async def test_a_file_of_such_a_name_comes_first(
    database: Database, replica_set_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This can matter on systems that allow a colon in names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop:config").write_bytes(b'\xef\xbb\xbf{"costs": {"post": {"default": 3}}}')
    async with CreditLedger(database, CreditConfig(costs={})) as ledger:
        await ledger.create_user("u", credits=100)
    charged = ("charge", "u", "post", "--json", "--config", "shop:config")
    code, output, errors = await run(replica_set_uri, database, *charged)
    assert (code, errors) == (0, "")
    assert json.loads(output)["cost"] == 3


async def forget_a_name(database: Database, names: CollectionNames) -> None:
    """Make the settings those of an older version, which knew no paid requests."""
    await database["ledger_settings"].update_one(
        {"_id": names.transactions},
        {"$unset": {"collections.paid_requests": 1}, "$pull": {"names": names.paid_requests}},
    )


async def test_settings_of_an_older_version_serve_commands_where_no_name_is_in_doubt(
    database: Database, replica_set_uri: str
) -> None:
    """``init`` completes them, and needs no configuration either."""
    config = CreditConfig(costs={}, collections=CollectionNames(turns="whose_turn"))
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("u", credits=5)
    await forget_a_name(database, config.collections)
    assert (await facts_of(replica_set_uri, database, "balance", "u"))["credits"] == 5
    dry = await facts_of(replica_set_uri, database, "init", "--dry-run")
    done = await facts_of(replica_set_uri, database, "init")
    assert dry["changed"] == done["changed"]
    assert [each["kind"] for each in done["changed"]] == ["settings"]
    [row] = await rows(database, "ledger_settings")
    assert row["collections"] == config.collections.model_dump()


async def test_a_name_that_may_have_a_prefix_is_never_guessed(
    database: Database, replica_set_uri: str
) -> None:
    """Another ledger may have a collection of the default name, with rows of other users."""
    names = CollectionNames.with_prefix("acme_")
    config = CreditConfig(costs={}, collections=names)
    await CreditLedger(database, config).ensure_indexes()
    await forget_a_name(database, names)
    code, _, errors = await run(replica_set_uri, database, "users")
    assert code == 2
    assert "config: an older version of credit_mongo stored the ledger's settings" in errors
    assert "the collection for paid_requests: give --config" in errors


async def test_damaged_settings_of_one_of_several_ledgers_do_not_hide_the_choice(
    database: Database, replica_set_uri: str
) -> None:
    """The command asks for --config, which then reads the chosen ledger's settings alone."""
    for prefix in ("", "acme_"):
        config = CreditConfig(costs={}, collections=CollectionNames.with_prefix(prefix))
        await CreditLedger(database, config).ensure_indexes()
    await database["ledger_settings"].update_one(
        {"_id": "acme_transactions"}, {"$set": {"decimalPlaces": "two", "collections": None}}
    )
    code, _, errors = await run(replica_set_uri, database, "users")
    assert code == 2
    assert "2 ledgers, with transactions in 'acme_transactions', 'transactions': choose" in errors

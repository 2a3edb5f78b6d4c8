"""``credit-mongo`` as a process: exit codes, one line on stderr, and what it prints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from bson import Int64

from credit_mongo import CreditLedger
from credit_mongo.cli import main
from tests.integration.commands import (
    PROGRAM,
    ROOT,
    environment,
    run,
    run_on_terminal,
    run_program,
    where,
)
from tests.integration.promises import Client, Database, failing, with_options

# All commands


async def test_help_names_the_commands_and_the_exit_codes() -> None:
    """This holds for the program and for each command."""
    code, overview, errors = await run("--help")
    assert (code, errors) == (0, "")
    assert "130 Ctrl-C" in overview
    for command in ("init", "verify"):
        assert command in overview
        code, output, errors = await run(command, "--help")
        assert (code, errors) == (0, "")
        assert {"--uri", "--database", "--timeout", "--json"} <= set(output.split())


async def test_the_program_prints_its_version() -> None:
    """The version is printed even if the program is not on PATH."""
    for program in (PROGRAM, ("-m", "credit_mongo")):
        code, output, errors = await run_program("--version", program=program)
        assert (code, errors) == (0, "")
        assert output == f"credit-mongo {version('credit-mongo')}\n"


URI = "mongodb://ada:ge heim@127.0.0.1/"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("verify", "extra"),
        ("verify", "--timeout", "-1"),
        ("verify", "--timeout", "nan"),
        ("verify", "--timeout", URI),
        ("verify", "--key-ttl", "0"),
        ("verify", "--database", ""),
        ("verify", "--database", URI),
        ("verify", "--user"),
        ("verify", "--repair"),
        ("verify", "--repair", "--operator", "Ada"),
        ("verify", "--repair", "--operator", "Ada", "--reason", ""),
        ("verify", "--dry-run"),
        ("verify", "--operator", "Ada"),
        ("verify", URI),
        (URI,),
        ("verify", f"--url={URI}"),
        ("verify", "--uri", "nonsense"),
        ("verify", "--uri", URI, "--timeout", "0.5"),
        ("verify", "--uri", f"{URI}?tls=1"),
        ("verify", "--uri", "mongodb://ada:geheim@127.0.0.1:1/", "--timeout", "0.5"),
        ("init", "--json=7"),
    ],
    ids=" ".join,
)
def test_bad_arguments_exit_2_in_one_line_without_secrets(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """No secret is shown, even if a URI stands where another argument belongs."""
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1), errors
    assert errors.startswith("error: ")
    assert "heim" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("users",),
        ("balance", "ann"),
        ("history", "ann"),
        ("audit", "ann"),
        ("grant", "ann", "5", "--action", "gift"),
        ("refund", "ann", "5", "--action", "sorry"),
        ("charge", "ann", "post", "--amount", "5"),
        ("charge", "ann", "post", "--amount", "5", "--dry-run"),
        ("verify",),
        ("verify", "--repair", "--operator", "Ada", "--reason", "why"),
        ("archive", "--older-than", "1d"),
        ("archive", "--older-than", "1d", "--dry-run"),
        ("archive", "--older-than", "1d", "--to", "DIRECTORY/archive"),
        ("cleanup",),
        ("export", "--to", "2020-01-01", "--output", "DIRECTORY/rows.csv"),
        ("erase", "--user", "ann", "--requested-by", "Eve", "--yes"),
        ("report", "DIRECTORY/page.html", "--png", "DIRECTORY/page.png"),
    ],
    ids=" ".join,
)
async def test_a_wrong_database_is_named_and_stays_as_it_is(
    arguments: tuple[str, ...],
    replica_set_uri: str,
    database: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise a mistyped name would be an empty ledger that is always in order."""
    command, *more = (part.replace("DIRECTORY", str(tmp_path)) for part in arguments)
    code = await asyncio.to_thread(main, (command, *where(replica_set_uri, database), *more))
    output, errors = capsys.readouterr()
    assert (code, output, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith(f"error: database: {database.name} has no ledger")
    assert await database.list_collection_names() == []
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_bad_values_exit_2_in_one_line(replica_set_uri: str, database: Database) -> None:
    """Only the library can check these values."""
    await database.create_collection("users")
    for wrong in (("--user", ""), ("--user", "a\nb")):
        code, output, errors = await run("verify", *where(replica_set_uri, database), *wrong)
        assert (code, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith("error: --user: ")


async def test_the_library_needs_neither_typer_nor_rich() -> None:
    """They belong to an extra. Without it, the command line says so."""
    looks = "import sys, credit_mongo, credit_mongo.cli; print({'typer', 'rich'} & {*sys.modules})"
    assert await run_program(program=("-c", looks)) == (0, "set()\n", "")
    without = "import sys; sys.modules['typer'] = None; from credit_mongo.cli import main"
    code, output, errors = await run_program("init", program=("-c", f"{without}; sys.exit(main())"))
    assert (code, output) == (2, "")
    assert errors == "error: typer is missing: pip install 'credit-mongo[cli]'\n"


async def test_a_missing_privilege_is_named(
    client: Client, replica_set_uri: str, database: Database, ledger: CreditLedger
) -> None:
    """The error is one line, with exit code 2."""
    uri = with_options(replica_set_uri, appname="no-rights")
    async with failing(client, "no-rights", failCommands=["find", "aggregate"], errorCode=13):
        code, output, errors = await run("verify", "--uri", uri, "--database", database.name)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "Unauthorized (code 13)" in errors


async def test_a_closed_pipe_causes_no_traceback(replica_set_uri: str, database: Database) -> None:
    """Such a pipe occurs in ``credit-mongo init | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *PROGRAM,
        *("init", "--dry-run", *where(replica_set_uri, database)),
        cwd=ROOT,
        env=environment(),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (2, "")


async def test_ctrl_c_exits_130(client: Client, replica_set_uri: str, database: Database) -> None:
    """It prints one line, even while it waits for the server."""
    uri = with_options(replica_set_uri, appname="slow")
    data = {"failCommands": ["listCollections"], "blockConnection": True, "blockTimeMS": 5000}
    async with failing(client, "slow", **data):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *PROGRAM,
            *("init", "--uri", uri, "--database", database.name),
            cwd=ROOT,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await wait_until_blocked(client, "slow")
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert errors.decode() == "interrupted: run the command again to complete it\n"


async def wait_until_blocked(client: Client, app_name: str) -> None:
    """Wait until a command of this client is running."""
    match = {"appName": app_name, "command.listCollections": {"$exists": True}}
    while True:
        operations = await client.admin.aggregate([{"$currentOp": {}}, {"$match": match}])
        if await operations.to_list(None):
            return
        await asyncio.sleep(0.05)


# init


async def test_init_does_the_same_as_the_script(replica_set_uri: str, database: Database) -> None:
    """It prints the same lines. On a terminal it prints a table, with commands to copy."""
    await database["transactions"].create_index("action", unique=True)
    code, output, errors = await run("init", *where(replica_set_uri, database))
    assert (code, errors) == (1, "")
    remedy = 'db.getCollection("transactions").dropIndex("action_1")'
    assert f"remedy: {remedy}\n" in output
    code, shown = await run_on_terminal("init", *where(replica_set_uri, database))
    assert code == 1
    assert remedy in shown
    assert "state" in shown


# verify


async def test_verify_reports_whether_the_books_are_sound(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """The exit code and the output say so, as lines or JSON. The script does the same."""
    await ledger.create_user("ada", credits=10, idempotency_key="secret-key")
    await ledger.create_user("[bold]\u202eeve", credits=10, metadata={"note": "secret-note"})
    here = where(replica_set_uri, database)
    code, output, errors = await run("verify", *here)
    assert (code, errors) == (0, "")
    assert output == f"{database.name}: the books are right (2 users, 2 transactions checked)\n"

    await database["users"].update_many({}, {"$inc": {"credits": Int64(5)}})
    script = ("scripts/verify.py",)
    code, output, errors = await run_program(*here, program=script)
    assert (code, errors) == (1, "")
    assert "the balance is 15, but the transactions sum up to 10" in output
    assert "[bold]\\u202eeve" in output
    code, as_json, errors = await run("verify", *here, "--json", "--user", "ada")
    assert (code, errors) == (1, "")
    facts: dict[str, Any] = json.loads(as_json)
    assert (facts["database"], facts["users"], facts["users_off"]) == (database.name, 1, 1)
    assert [finding["code"] for finding in facts["findings"]] == ["balance-differs"]
    code, shown = await run_on_terminal("verify", *here)
    assert code == 1
    assert "[bold]\\u202eeve" in shown
    for text in (output, as_json, shown):
        assert "secret" not in text


async def test_verify_refuses_an_unknown_user(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """A misspelt name is not reported as a sound account."""
    code, output, errors = await run("verify", *where(replica_set_uri, database), "--user", "nil")
    assert (code, output, errors) == (2, "", "error: there is no user 'nil'\n")


async def test_verify_repairs(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """--dry-run shows the repairs first. Exit code 1 means that some could not be made."""
    await ledger.create_user("ada", credits=10)
    await database["users"].update_one({"_id": "ada"}, {"$inc": {"credits": Int64(5)}})
    here = where(replica_set_uri, database)
    who = ("--repair", "--operator", "Ada", "--reason", "a disk was lost")
    code, output, errors = await run("verify", *here, *who, "--dry-run")
    assert (code, errors) == (1, "")
    assert "would-be-added\t5" in output
    assert await ledger.get_balance("ada") == 15
    assert len(await ledger.get_history("ada")) == 1
    code, output, errors = await run("verify", *here, *who, "--json")
    assert (code, errors) == (0, "")
    [correction] = json.loads(output)["corrections"]
    assert (correction["state"], correction["amount"]) == ("added", 5)
    newest = (await ledger.get_history("ada"))[0]
    assert (newest.operation, newest.amount, newest.balance_after) == ("correction", 5, 15)
    assert (await run("verify", *here))[0] == 0
    await database["users"].delete_one({"_id": "ada"})
    code, output, errors = await run("verify", *here, *who)
    assert (code, errors) == (1, "")
    assert "not-possible" in output


@pytest.mark.parametrize("ttl", ["1", "86400", "31622400"])
async def test_verify_accepts_the_life_of_keys(
    ledger: CreditLedger, replica_set_uri: str, database: Database, ttl: str
) -> None:
    """The option accepts any time that a configuration accepts."""
    await ledger.create_user("ada", credits=10, idempotency_key="key")
    assert (await run("verify", *where(replica_set_uri, database), "--key-ttl", ttl))[0] == 0

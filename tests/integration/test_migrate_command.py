"""``credit-mongo migrate``: what it shows, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from credit_mongo import CreditConfig, CreditLedger
from tests.integration.commands import run, where
from tests.integration.promises import Database, rows

FIRST = "20260101000000_add_plan"
SECOND = "20260102000000_count_visits"
LOG = "ledger_migrations"
ADD_PLAN = """
async def forward(database):
    await database["members"].insert_one({"plan": "free"})

async def backward(database):
    await database["members"].delete_one({"plan": "free"})
"""
INDEX = """
async def forward(database):
    await database["members"].create_index("visits")
"""


@pytest.fixture
def here(replica_set_uri: str, database: Database, tmp_path: Path) -> tuple[str, ...]:
    """The options for the database and a directory of one migration."""
    (tmp_path / f"{FIRST}.py").write_text(ADD_PLAN, encoding="utf-8")
    return (*where(replica_set_uri, database), "--directory", str(tmp_path))


async def test_a_migration_from_its_creation_to_its_end(
    here: tuple[str, ...], database: Database, tmp_path: Path
) -> None:
    """Every command says what it did."""
    code, output, errors = await run("migrate", "create", "add_visits", *here[-2:])
    assert (code, errors) == (0, "")
    created = Path(output.strip())
    assert created.parent == tmp_path
    code, output, errors = await run("migrate", "status", *here)
    assert (code, errors) == (1, "")
    assert f"pending\t{FIRST}\t" in output
    assert output.endswith("2 pending; no ledger's settings are stored here\n")
    code, output, errors = await run("migrate", "up", *here, "--dry-run")
    assert (code, errors) == (0, "")
    assert f"{FIRST}: would be applied in a transaction\n" in output
    assert await rows(database, "members") == []
    code, output, errors = await run("migrate", "up", *here, "--operator", "ann")
    assert (code, errors) == (0, "")
    assert output.startswith(f"{FIRST}: applied in 0.")
    assert output.endswith(f"{database.name}: 2 migrations done\n")
    code, output, errors = await run("migrate", "status", *here, "--json")
    assert (code, errors) == (0, "")
    first, second = json.loads(output)["migrations"]
    assert (first["state"], first["by"], len(first["checksum"])) == ("applied", "ann", 64)
    assert second["name"] == created.stem
    code, output, errors = await run("migrate", "down", *here, "--to", "add_plan", "--json")
    assert (code, errors) == (0, "")
    assert [each["name"] for each in json.loads(output)["migrations"]] == [created.stem]
    code, output, errors = await run("migrate", "up", *here, "--to", FIRST)
    assert (code, output, errors) == (0, f"{database.name}: nothing to apply\n", "")


async def test_a_changed_file_is_told_until_it_is_restored_or_accepted(
    here: tuple[str, ...], tmp_path: Path
) -> None:
    """Windows line ends are no change."""
    assert (await run("migrate", "up", *here))[0] == 0
    file = tmp_path / f"{FIRST}.py"
    file.write_bytes(ADD_PLAN.replace("\n", "\r\n").encode())
    assert (await run("migrate", "status", *here))[0] == 0
    file.write_text(ADD_PLAN.replace("free", "pro"), encoding="utf-8")
    code, output, _ = await run("migrate", "status", *here)
    assert code == 1
    assert f"changed\t{FIRST}\t" in output
    for command in ("up", "down"):
        code, output, errors = await run("migrate", command, *here)
        assert (code, output) == (2, "")
        assert f"error: {FIRST}: its file was changed since" in errors
        assert f"credit-mongo migrate resolve {FIRST} --applied" in errors
    assert (await run("migrate", "resolve", "add_plan", "--applied", *here))[0] == 0
    assert (await run("migrate", "status", *here))[0] == 0


async def test_a_missing_file_is_told_unless_a_newer_version_applied_it(
    here: tuple[str, ...], tmp_path: Path
) -> None:
    """An old version of the application can go on deploying beside the new one."""
    second = tmp_path / f"{SECOND}.py"
    second.write_text(ADD_PLAN, encoding="utf-8")
    assert (await run("migrate", "up", *here))[0] == 0
    second.unlink()
    code, output, _ = await run("migrate", "status", *here)
    assert (code, f"newer\t{SECOND}\t" in output) == (0, True)
    assert (await run("migrate", "up", *here))[0] == 0
    code, _, errors = await run("migrate", "down", *here)
    assert (code, "only that version's directory can roll it back" in errors) == (2, True)
    (tmp_path / f"{FIRST}.py").unlink()
    code, _, errors = await run("migrate", "up", *here)  # no file is left: the wrong directory
    assert (code, "its file is missing" in errors) == (2, True)
    second.write_text(ADD_PLAN, encoding="utf-8")
    code, output, errors = await run("migrate", "up", *here)
    assert (code, output) == (2, "")
    assert f"{FIRST}: " in errors
    assert "its file is missing" in errors
    assert (await run("migrate", "resolve", "add_plan", "--rolled-back", *here))[0] == 0
    assert (await run("migrate", "up", *here))[0] == 0


WRONG = {
    "a syntax error": ("def forward(:", "can't be loaded: SyntaxError in line 1"),
    "a failing import": ("import nowhere", "ModuleNotFoundError 'nowhere' in line 1"),
    "no forward": ("x = 1", "must define async def forward(database)"),
    "not async": ("def forward(database): ...", "must define async def forward(database)"),
    "a wrong mark": ("IN_TRANSACTION = 'no'", "IN_TRANSACTION must be True or False"),
    "a failure": (ADD_PLAN.replace('["members"]', ".x.y.z()"), "TypeError in line 3; nothing"),
    "a secret": ("async def forward(database): raise ValueError('hunter2')", "ValueError in line"),
    "an exit": ("import sys\nasync def forward(database): sys.exit(0)", "SystemExit in line 2"),
    "no transaction": (
        f"{INDEX}\n".replace("await", "await database['members'].insert_one({})\n    await", 1),
        "If it can't be in one, write IN_TRANSACTION = False",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_migration_that_fails_is_told_in_one_line(
    here: tuple[str, ...], database: Database, tmp_path: Path, wrong: str
) -> None:
    """It says which file and line, and what is written of it: nothing."""
    source, told = WRONG[wrong]
    await database["members"].insert_one({"visits": 1})
    (tmp_path / f"{SECOND}.py").write_text(source, encoding="utf-8")
    code, _, errors = await run("migrate", "up", *here)
    assert code == 2
    [line] = errors.splitlines()
    assert line.startswith(f"error: {SECOND}: ")
    assert told in line
    assert "hunter2" not in errors
    assert [row["_id"] for row in await rows(database, LOG, state="applied")] in ([], [FIRST])


async def test_the_traceback_is_shown_on_request(here: tuple[str, ...], tmp_path: Path) -> None:
    """With the error's own text."""
    (tmp_path / f"{SECOND}.py").write_text(WRONG["a secret"][0], encoding="utf-8")
    code, _, errors = await run("migrate", "up", *here, "--traceback")
    assert code == 2
    assert "Traceback" in errors
    assert "ValueError: hunter2" in errors


async def test_a_wrong_directory_or_name_is_told_in_one_line(
    here: tuple[str, ...], tmp_path: Path
) -> None:
    """Nothing is done."""
    at = here[:-1]
    file = tmp_path / f"{FIRST}.py"

    async def refused(*arguments: str) -> str:
        code, output, errors = await run("migrate", *arguments)
        assert (code, output, len(errors.splitlines())) == (2, "", 1)
        return errors

    gone = tmp_path / "nowhere"
    for command in ("up", "down", "status"):
        errors = await refused(command, *at, str(gone))
        assert f"{gone}: No such file or directory" in errors
        assert "--directory, or create the first migration by credit-mongo migrate create" in errors
        assert f"{file}: Not a directory" in await refused(command, *at, str(file))
    assert "there is no such migration in" in await refused("up", *here, "--to", "nothing")
    assert "is not applied" in await refused("down", *here, "--to", "add_plan")
    assert "was never applied" in await refused("resolve", "add_plan", "--rolled-back", *here)
    assert "--applied or --rolled-back" in await refused("resolve", "add_plan", *here)
    assert "1 to 80 characters" in await refused("create", "../x", *here[-2:])
    assert "choose another" in await refused("create", "add_plan", *here[-2:])
    assert f"{file}: Not a directory" in await refused("create", "x", *at[-1:], str(file))
    (tmp_path / "20260301000000_add_plan.py").write_text(ADD_PLAN, encoding="utf-8")
    errors = await refused("up", *here)
    assert "20260101000000_add_plan.py and " in errors
    assert "20260301000000_add_plan.py have one name" in errors
    (tmp_path / "20260301000000_add_plan.py").rename(tmp_path / "add_plan.py")
    assert "add_plan.py: the name must be 14 digits and a word" in await refused("up", *here)


async def test_up_applies_the_librarys_own_migrations_first(
    here: tuple[str, ...], database: Database
) -> None:
    """``status`` names them before."""
    async with CreditLedger(database, CreditConfig(costs={})) as ledger:
        await ledger.ensure_indexes()
    older = {"$set": {"version": 1, "lowestWriter": 1}}
    await database["ledger_settings"].update_one({"_id": "transactions"}, older)
    code, output, _ = await run("migrate", "status", *here)
    assert code == 1
    assert "the ledger lacks lots-and-holds: run credit-mongo migrate up" in output
    code, output, errors = await run("migrate", "up", *here)
    assert (code, errors.count("lots-and-holds: applying")) == (0, 1)
    code, output, _ = await run("migrate", "status", *here)
    assert (code, "the ledger's stored form is 2" in output) == (0, True)

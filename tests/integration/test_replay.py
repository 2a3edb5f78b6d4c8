"""The demo as its users run it, against a calculation that shares nothing with the library."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "replay.py"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
YES = "every balance equals its transactions: yes"
# Real traces that lie beside a checkout, not in it.
TRACES = [path for path in [ROOT.parent / "shared/data/azure_llm_trace_code.csv"] if path.exists()]

# The demo's terms, written down a second time: tier, opening credits, credits by kind of token.
TERMS = [
    ("free", 180, Decimal("0.001"), Decimal("0.004")),
    ("premium", 2_000, Decimal("0.0008"), Decimal("0.003")),
    ("enterprise", 10_000, Decimal("0.0005"), Decimal("0.002")),
]


@pytest.fixture
def database_name(replica_set_uri: str) -> Iterator[str]:
    """A database for the script, dropped afterwards."""
    name = f"test_replay_{uuid4().hex[:12]}"
    yield name
    with MongoClient[dict[str, Any]](replica_set_uri) as client:
        client.drop_database(name)


@pytest.fixture
def temporary_directory(tmp_path: Path) -> Path:
    """A directory for all temporary directories of the script."""
    temporary_directory = tmp_path / "temporary"
    temporary_directory.mkdir()
    return temporary_directory


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("replay_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def left_by(temporary_directory: Path) -> list[str]:
    """All that lies there, and the command lines of all processes that name the directory."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, check=True)
    running = [
        line for line in listing.stdout.decode().splitlines() if str(temporary_directory) in line
    ]
    return [*running, *map(str, temporary_directory.iterdir())]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, with the package under test, and without what alters the output:
    the server of the tests, or a wish for colours, which is taken for a terminal."""
    altering = ("MONGODB_", "FORCE_COLOR", "TTY_", "COLUMNS", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(altering)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **variables}


def replay(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=environment(**variables),
        timeout=120,
        check=False,
    )


def write_csv(path: Path, records: list[tuple[int, int]]) -> Path:
    """A trace file like the real one, which has CRLF line ends and none at the end."""
    lines = [HEADER, *(f"2023-11-16 18:17:03.9799600,{c},{g}" for c, g in records)]
    path.write_bytes("\r\n".join(lines).encode())
    return path


def read_csv(path: Path) -> list[tuple[int, int]]:
    """The records of a trace file."""
    with path.open(newline="") as file:
        return [
            (int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)
        ]


def expected(records: list[tuple[int, int]], users: int) -> dict[str, Any]:
    """What the script must report, in plain decimal arithmetic: nothing of the library in it."""
    cent = Decimal("0.01")
    balances = [Decimal(TERMS[user % 3][1]) for user in range(users)]
    tiers = {
        name: {
            "users": len(range(level, users, 3)),
            "charges": 0,
            "refusals": 0,
            "credits_before": len(range(level, users, 3)) * opening * 100,
            "credits_after": 0,
        }
        for level, (name, opening, _, _) in enumerate(TERMS)
    }
    for number, (context, generated) in enumerate(records):
        user = number % users
        name, _, context_price, generated_price = TERMS[user % 3]
        exact = context * context_price + generated * generated_price
        cost = exact.quantize(cent, rounding=ROUND_HALF_UP)
        if cost <= balances[user]:
            balances[user] -= cost
            tiers[name]["charges"] += 1
        else:
            tiers[name]["refusals"] += 1
    for user, balance in enumerate(balances):
        tiers[TERMS[user % 3][0]]["credits_after"] += int(balance * 100)
    return {
        **{fact: sum(tier[fact] for tier in tiers.values()) for fact in tiers["free"]},
        "tiers": tiers,
        "decimal_places": 2,
        "balances": {f"user-{user:03}": int(b * 100) for user, b in enumerate(balances)},
        "differing": [],
        "every_balance_equals_its_transactions": True,
    }


def facts(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the script printed as JSON, without what depends on the machine."""
    assert (done.returncode, done.stderr) == (0, "")
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed.pop("charges_a_second") > 0
    return printed


def random_records(count: int, seed: int) -> list[tuple[int, int]]:
    """Records with all that matters, the first five for a user each: more than the balance, less
    than a cent, half a cent, exactly the balance, and nothing."""
    generator = random.Random(seed)
    usual = [(generator.randrange(20_000), generator.randrange(500)) for _ in range(count)]
    return [(1_000_000, 0), (2, 0), (10, 0), (180_000, 0), (0, 0), *usual]


@pytest.mark.parametrize(
    ("source", "users", "callers"),
    [("generated", 7, 2), *((str(path), 100, 64) for path in TRACES)],
    ids=lambda value: Path(str(value)).name,
)
def test_file_equals_the_independent_calculation(
    tmp_path: Path,
    replica_set_uri: str,
    database_name: str,
    *,
    source: str,
    users: int,
    callers: int,
) -> None:
    """Every balance, charge and refusal is what decimal arithmetic says, however many callers.

    The script's report says so, and the named database, which stays. The real trace counts whole.
    """
    trace = Path(source)
    if source == "generated":
        trace = write_csv(tmp_path / "trace.csv", random_records(100, seed=users))
    records = read_csv(trace)
    sizes = ["--users", str(users), "--callers", str(callers)]
    where = ["--uri", replica_set_uri, "--database", database_name]
    found = facts(replay(trace, *where, *sizes, "--json", "--balances"))
    wanted = expected(records, users)
    assert wanted["refusals"] > 1
    assert found == wanted
    with MongoClient[dict[str, Any]](replica_set_uri) as client:
        database = client[database_name]
        balances = {row["_id"]: row["credits"] for row in database["users"].find()}
        charges = database["transactions"].count_documents({"action": "ai-completion"})
        refusals = database["audit_logs"].count_documents({"status": "failed"})
        assert balances == wanted["balances"]
        assert (charges, refusals) == (wanted["charges"], wanted["refusals"])


def test_made_up_records_equal_the_independent_calculation(
    script: Any, replica_set_uri: str
) -> None:
    """Made-up records are charged as exactly, and are the same whenever the seed is the same.

    And on the server of MONGODB_URI, the database that nobody named is gone afterwards.
    """
    made = script.make_records(500, 7)
    assert made == script.make_records(500, 7) != script.make_records(500, 8)
    records = [(record["ContextTokens"], record["GeneratedTokens"]) for record in made]
    sizes = ["--records", "500", "--seed", "7", "--users", "8"]
    with MongoClient[dict[str, Any]](replica_set_uri) as client:
        before = client.list_database_names()
        found = facts(replay(*sizes, "--json", "--balances", MONGODB_URI=replica_set_uri))
        assert client.list_database_names() == before
    wanted = expected(records, 8)
    assert wanted["refusals"] > 1
    assert found == wanted


def test_own_server_is_started_and_stopped(temporary_directory: Path) -> None:
    """Without arguments for it, a server is started, the books are shown, and nothing stays."""
    done = replay("--records", "300", "--users", "3", TMPDIR=str(temporary_directory))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Server   a local replica set" in done.stdout
    assert re.search(r"^Indexes  6 collections, \d+ indexes ready$", done.stdout, re.MULTILINE)
    assert re.search(r"^Replay   300 of 300, [0-9,]+ a second, ", done.stdout, re.MULTILINE)
    assert re.search(r"│ all +│ +3 │ +\d+ │ +\d+ │ +12,180\.00 │ +[0-9,]+\.\d\d │", done.stdout)
    assert YES in done.stdout.splitlines()
    assert left_by(temporary_directory) == []


def test_database_with_users_is_refused(replica_set_uri: str, database_name: str) -> None:
    """An application's database is not written to: one line, exit code 2."""
    with MongoClient[dict[str, Any]](replica_set_uri) as client:
        users = client[database_name]["users"]
        users.insert_one({"_id": "somebody", "credits": 1})
        done = replay("--uri", replica_set_uri, "--database", database_name)
        complaint = f"error: the database {database_name} already has users: give a new name\n"
        assert (done.returncode, done.stderr) == (2, complaint)
        assert [row["_id"] for row in users.find()] == ["somebody"]


def test_books_that_do_not_agree_are_found(replica_set_uri: str) -> None:
    """Changed credits, a lost, a renumbered, an invented transaction: "no", who, and exit 1."""
    program = """
import sys
import replay

check_books = replay.check_books

async def check_tampered_books(database, tally, users):
    users_, rows = database["users"], database["transactions"]
    await users_.update_one({"_id": "user-001"}, {"$inc": {"credits": 1}})
    await rows.delete_one({"userId": "user-003", "seq": 2})
    await rows.update_one({"userId": "user-004", "seq": 2}, {"$set": {"seq": 4}})
    row = await rows.find_one({"userId": "user-005", "seq": 2})
    await rows.insert_one(row | {"_id": None, "seq": 3, "amount": 0})
    await users_.update_one({"_id": "user-006"}, {"$inc": {"seq": 1}})
    await check_books(database, tally, users)

replay.check_books = check_tampered_books
sys.exit(replay.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--records", "14", "--users", "7"],
        capture_output=True,
        encoding="utf-8",
        env=environment(MONGODB_URI=replica_set_uri, PYTHONPATH=f"{ROOT}:{SCRIPT.parent}"),
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    answer = "every balance equals its transactions: no: "
    assert f"{answer}user-001, user-003, user-004, user-005, user-006\n" in done.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1: there is no column TIMESTAMP"),
        ("\n\n", "line 1: there is no column TIMESTAMP"),
        ("4808,10\n3180,8\n", "line 1: there is no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n0,1\n", "line 1: there is no column GeneratedTokens"),
        (f"{HEADER}\n", "line 1: there are no records below it"),
        (f"{HEADER}\n0,1,2\n\n0,many,2\n", "line 4: ContextTokens must be"),
        (f"{HEADER}\n0,1,2\n0,1,-2\n", "line 3: GeneratedTokens must be"),
        (f"{HEADER}\n0,1.5,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,1_000,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,٣,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,nan,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,10000000000,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,,2\n", "line 2: ContextTokens must be"),
        (f"{HEADER}\n0,1\n", "line 2: GeneratedTokens must be"),
        (f"{HEADER}\n0,4,808,10\n", "line 2: there are more fields than columns"),
        (f'{HEADER}\n0,"1\n', "line 2: unexpected end of data"),
        (f"{HEADER}\n0,\x00,2\n", "line 2: "),
        (f"{HEADER}\n0,{'x' * 200_000},2\n", "line 2: field larger than field limit"),
    ],
)
def test_bad_file_is_refused_with_its_line(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, reason: str
) -> None:
    """Whatever is wrong in a file: one short line that names the line, and exit code 2."""
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    assert script.main([str(path)]) == 2
    printed, complaint = capsys.readouterr()
    assert printed == ""
    assert complaint.startswith(f"error: {path}, {reason}")
    assert complaint.endswith("\n")
    assert complaint.count("\n") == 1
    assert len(complaint) < len(str(path)) + 150


def test_file_that_is_no_text_is_refused(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A binary file, a directory and a missing file get their line too."""
    path = tmp_path / "bad.csv"
    path.write_bytes(f"{HEADER}\n0,1,2\n0,\xff\xfe,2\n".encode("latin-1"))
    assert script.main([str(path)]) == 2
    assert f"{path}, line 3: ContextTokens must be" in capsys.readouterr().err
    assert script.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"
    missing = tmp_path / "missing.csv"
    assert script.main([str(missing)]) == 2
    assert capsys.readouterr().err == f"error: {missing}: No such file or directory\n"


def test_spreadsheet_file_is_taken(script: Any, tmp_path: Path) -> None:
    """What spreadsheets add to a CSV file is no error: a byte order mark, quotes, other columns."""
    path = tmp_path / "sheet.csv"
    text = 'GeneratedTokens,"Model",TIMESTAMP, ContextTokens\r\n"2","a, b",0, 1\r\n\r\n'
    path.write_text(text, encoding="utf-8-sig", newline="")
    assert script.read_records(str(path)) == [{"ContextTokens": 1, "GeneratedTokens": 2}]


def test_bad_file_starts_nothing(tmp_path: Path, temporary_directory: Path) -> None:
    """As a command, a bad file is exit code 2 before any server is started."""
    done = replay(write_csv(tmp_path / "bad.csv", [(1, -1)]), TMPDIR=str(temporary_directory))
    assert (done.returncode, done.stdout) == (2, "")
    assert left_by(temporary_directory) == []


@pytest.mark.parametrize("option", ["--users=0", "--callers=-1", "--records=0", "--seed=x"])
def test_bad_option_is_refused(
    script: Any, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """Options out of their limits end in exit code 2, as all of argparse's errors do."""
    with pytest.raises(SystemExit, match="2"):
        script.main([option])
    assert option.partition("=")[0] in capsys.readouterr().err


def test_unreachable_server_is_named_without_its_password() -> None:
    """Nobody there: exit code 2 and one line, which has no password."""
    uri = "mongodb://somebody:s3cret@127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=200"
    done = replay("--uri", uri)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no usable server")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("own", [True, False], ids=["own server", "given server"])
def test_interrupted_leaves_nothing(
    temporary_directory: Path, replica_set_uri: str, own: bool
) -> None:
    """Ctrl-C in the midst of the charges: exit code 130, no server, no database, no traceback."""
    given = {} if own else {"MONGODB_URI": replica_set_uri}
    with MongoClient[dict[str, Any]](replica_set_uri) as client:
        before = client.list_database_names()
        with subprocess.Popen(
            [sys.executable, SCRIPT, "--records", "100000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=environment(TMPDIR=str(temporary_directory), **given),
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                while not process.stdout.readline().startswith("Records"):
                    assert process.poll() is None
                time.sleep(0.3)
                os.killpg(process.pid, signal.SIGINT)
                _, complaint = process.communicate(timeout=60)
            finally:
                process.kill()
        assert (process.returncode, complaint) == (130, "interrupted: nothing is left running\n")
        assert client.list_database_names() == before
    assert left_by(temporary_directory) == []

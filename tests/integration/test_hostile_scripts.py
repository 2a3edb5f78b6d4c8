"""Hostile input to every script, option and environment variable: one line, exit code 2, no trace.

The commands are called as their scripts call them, in this process, where an exception that is not
explained fails the test as its traceback would show. A few run as processes as well.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
import pytest

from benchmarks.__main__ import main as benchmarks
from credit_mongo import local
from credit_mongo.cli import main as credit_mongo

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
# Stands in all credentials, and must not come back.
SECRET = "opensesame"  # noqa: S105
NOBODY = f"mongodb://ann:{SECRET}@127.0.0.1:1/?replicaSet=rs0"
# Stands for the replica set of the tests.
HERE = "the replica set"
LONG = "x" * 100_000


def replay(arguments: Sequence[str]) -> int:
    """``python scripts/replay.py``."""
    specification = importlib.util.spec_from_file_location("replay", SCRIPTS / "replay.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["replay"] = module
    specification.loader.exec_module(module)
    code: int = module.main(arguments)
    return code


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "credit-mongo": credit_mongo,
    "replay": replay,
    "local": local.main,
    "benchmarks": benchmarks,
}
# They show their usage above the error; the others point to --help.
WITH_USAGE = {"replay", "local", "benchmarks"}


@dataclass(frozen=True)
class Case:
    """A call, and a word of the error that names what is wrong."""

    program: str
    arguments: tuple[str, ...]
    names: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ascii(" ".join([*variables, self.program, *self.arguments])[:120])


BAD_URIS = {
    "": "uri",
    " ": "uri",
    "nonsense": "mongodb://",
    "http://127.0.0.1/": "mongodb://",
    "mongodb://": "uri",
    "mongodb:///": "uri",
    "mongodb://127.0.0.1:port/": "uri",
    "mongodb://127.0.0.1:99999/": "uri",
    "mongodb://127.0.0.1/?tls=True": "tls",
    "mongodb://127.0.0.1/?w=0": "uri",
    "mongodb://127.0.0.1/?w=majorty": "uri",
    "mongodb://127.0.0.1/?no=such": "no",
    "mongodb://a,b/?directConnection=true": "uri",
    f"mongodb://ann:{SECRET}/{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}@{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}@127.0.0.1/?tls=1": "uri",
    f"mongodb://ann:{SECRET}%zz@127.0.0.1/": "uri",
    f"mongodb+srv://ann:{SECRET}@one,two/": "uri",
    f"mongodb://127.0.0.1/?{LONG}": "uri",
}
BAD_DATABASES = ("", " ", "a.b", "a/b", "a\\b", 'a"b', "a b", "$cmd", "x" * 64, "é" * 32, "\udcff")
BAD_TIMEOUTS = ("0", "-1", "nan", "inf", "1e9", "", "soon", "1,5", "0x10", "--json", "1" * 500)
COMMANDS = (("init",), ("verify",), ("roles", "--create"))


def of_every_command() -> Iterator[Case]:
    """What all commands take."""
    for command in COMMANDS:
        for uri, names in BAD_URIS.items():
            yield Case("credit-mongo", (*command, "--uri", uri), names)
        for database in BAD_DATABASES:
            where = ("--uri", HERE, "--database", database)
            yield Case("credit-mongo", (*command, *where), "database")
        for timeout in BAD_TIMEOUTS:
            where = ("--uri", HERE, "--timeout", timeout)
            yield Case("credit-mongo", (*command, *where), "timeout")
        yield Case("credit-mongo", (*command, "--uri", NOBODY, "--timeout", "0.1"), "127.0.0.1:1")
        for wrong in (
            "--no-such",
            "--dry",
            "--uri",
            "--database",
            "--json=5",
            "-x",
            "extra",
            NOBODY,
        ):
            yield Case("credit-mongo", (*command, wrong), "--help")
    for wrong in ("no-such", "", "--no-such", "INIT", "init.py", NOBODY, "\udcff", LONG):
        yield Case("credit-mongo", (wrong,), "--help")


def of_one_command() -> Iterator[Case]:
    """What only one takes."""
    yield Case("credit-mongo", ("roles", "--dry-run"), "--create")
    for database in BAD_DATABASES:
        yield Case("credit-mongo", ("roles", "--database", database), "database")
    verify = ("verify", "--uri", HERE)
    for key_ttl in (*BAD_TIMEOUTS, "99999999"):
        yield Case("credit-mongo", (*verify, "--key-ttl", key_ttl), "key-ttl")
    for user in ("", "a\x00", "a\nb", "\x1b[31m", "\udcff", "x" * 256):
        yield Case("credit-mongo", (*verify, "--user", user), "user")
    repair = (*verify, "--repair")
    for missing in (
        (),
        ("--operator", "a"),
        ("--reason", "a"),
        ("--operator", "", "--reason", "a"),
    ):
        yield Case("credit-mongo", (*repair, *missing), "--operator")
    for wrong in ("a\x00", "a\nb", "\x1b[31m", "\udcff", "x" * 256):
        yield Case("credit-mongo", (*repair, "--operator", wrong, "--reason", "a"), "operator")
    for wrong in ("a\x00", "\x1b[31m", "\udcff", LONG):
        yield Case("credit-mongo", (*repair, "--operator", "a", "--reason", wrong), "reason")
    for alone in ("--operator=a", "--reason=a", "--dry-run"):
        yield Case("credit-mongo", (*verify, alone), "--repair")


def of_the_replay() -> Iterator[Case]:
    """The replay of a trace."""
    # Without an URI it starts a server of its own, and without a name takes a new one.
    for uri in list(BAD_URIS)[1::3]:
        yield Case("replay", ("--uri", uri), "error: ")
    for database in BAD_DATABASES[1::3]:
        yield Case("replay", ("--uri", HERE, "--database", database), "database")
    for option in ("--users", "--callers", "--records"):
        for number in ("0", "-1", "1.5", "nan", "", "many", "--json"):
            yield Case("replay", ("--uri", HERE, option, number), option)
    for seed in ("", "x", "1.5"):
        yield Case("replay", ("--uri", HERE, "--seed", seed), "--seed")
    for trace in ("no-such-file", "/", "/dev/null", "/etc/passwd", LONG, "\udcff"):
        yield Case("replay", ("--uri", HERE, trace), "error: ")
    yield Case("replay", ("a", "b"), "unrecognized")
    yield Case("replay", ("--no-such",), "unrecognized")


def of_the_local_replica_set() -> Iterator[Case]:
    """``python -m credit_mongo.local``."""
    for members in ("0", "2", "-1", "4", "1.5", "", "three", "1" * 5000):
        yield Case("local", ("--members", members), "--members")
    for port in ("0", "-1", "65536", "1e3", "", "http", "1" * 5000):
        yield Case("local", ("--port", port), "port")
    yield Case("local", ("--members", "3", "--port", "65534"), "port")
    for directory in (str(Path(__file__)), "/proc/no-such", "/dev/null/x", LONG):
        yield Case("local", ("--data", directory), "data directory")
    for wrong in ("--no-such", "extra", "--port", "--members", "--data", "-x"):
        yield Case("local", (wrong,), "error: ")


def of_the_benchmarks() -> Iterator[Case]:
    """``python -m benchmarks``."""
    for option in ("--only", "--pools", "--sweep-callers"):
        for numbers in ("0", "-1", "", "x", "1,", "1,,2", "1.5", "1" * 5000):
            yield Case("benchmarks", (option, numbers), option)
    yield Case("benchmarks", ("--only", "10"), "--only")
    for option in ("--rounds", "--latency-charges", "--growth-rows", "--growth-charges"):
        for number in ("0", "-1", "", "x", "1.5"):
            yield Case("benchmarks", (option, number), option)
    for option in ("--seconds", "--warm-up-seconds", "--cache-gigabytes"):
        for number in ("0", "-1", "", "x", "nan", "inf"):
            yield Case("benchmarks", (option, number), option)
    for wrong in (("--loop", "gevent"), ("--no-such",), ("extra",), ("--json",), ("--only",)):
        yield Case("benchmarks", wrong, "error: ")


def of_the_environment() -> Iterator[Case]:
    """What is not on the command line is taken from there."""
    for command in COMMANDS:
        for uri, names in BAD_URIS.items():
            yield Case("credit-mongo", command, names, {"MONGODB_URI": uri})
        for database in BAD_DATABASES:
            environment = {"MONGODB_URI": HERE, "MONGODB_DATABASE": database}
            yield Case("credit-mongo", command, "database", environment)
        environment = {"MONGODB_URI": NOBODY}
        yield Case("credit-mongo", (*command, "--timeout", "0.1"), "127.0.0.1:1", environment)
    for uri in list(BAD_URIS)[2::6]:
        yield Case("replay", (), "error: ", {"MONGODB_URI": uri})
    programs: dict[str, tuple[str, ...]] = {"local": (), "replay": ("--records", "1")}
    for program, arguments in programs.items():
        for mongod in (
            *("/no/such/mongod", "no-such", "/", "/dev/null", " ", "\udcff", "/etc/passwd", LONG),
            *(str(Path(__file__)), "/bin/false", "/bin/true", "mongod; echo"),
        ):
            environment = {"CREDIT_MONGO_MONGOD": mongod}
            names = "mongod" if mongod not in ("/bin/false", "/bin/true") else mongod
            yield Case(program, arguments, names, environment)


CASES = [
    *of_every_command(),
    *of_one_command(),
    *of_the_replay(),
    *of_the_local_replica_set(),
    *of_the_benchmarks(),
    *of_the_environment(),
]


@pytest.fixture(scope="module")
def uri(replica_set_uri: str) -> str:
    """The replica set of the tests."""
    return replica_set_uri


def everything(uri: str) -> dict[str, Any]:
    """All databases, with their collections and how much is in them, and all roles."""
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        names = set(client.list_database_names()) - {"local", "config"}
        return {
            f"{name}.{collection}": client[name][collection].estimated_document_count()
            for name in sorted(names)
            for collection in sorted(client[name].list_collection_names())
        }


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of whoever runs the tests, and a directory of its own."""
    for name in ("MONGODB_URI", "MONGODB_DATABASE", "CREDIT_MONGO_MONGOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def test_there_are_enough() -> None:
    """Of each kind, and each case is another one."""
    assert len(CASES) == len({(c.program, c.arguments, *c.environment.items()) for c in CASES})
    assert len(CASES) >= 400
    assert {case.program for case in CASES} == set(PROGRAMS)
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    # The others write and remove: hostile values for them stand beside their tests.
    others = {"cleanup", "erase", "export", "report"}
    assert scripts - others == {"init_indexes", "verify", "roles", "replay"}
    variables = {name for case in CASES for name in case.environment}
    assert variables == {"MONGODB_URI", "MONGODB_DATABASE", "CREDIT_MONGO_MONGOD"}


def refusal_goes_wrong(code: object, output: str, errors: str, case: Case) -> str:
    """What is wrong with how it is refused; nothing, if nothing."""
    *usage, message = errors.rstrip("\n").split("\n")
    given = "".join((*case.arguments, *case.environment.values()))
    has_usage = case.program in WITH_USAGE and bool(usage) and usage[0].startswith("usage: ")
    wrong = {
        f"exit code {code!r}": code != 2,
        f"it prints {output[:80]!r}": re.sub("Server   [a-z, ]+\n", "", output),
        "a traceback": "Traceback" in errors,
        "it tells the password": SECRET in errors,
        f"more than a line: {errors[:200]!r}": usage and not has_usage,
        f"a control character: {message[:200]!r}": re.search("[\x00-\x1f\x7f-\x9f]", message),
        f"a line of {len(message)} characters": len(message) > 500 + len(given),
        f"it does not name {case.names!r}: {message[:200]!r}": case.names not in message,
    }
    return "; ".join(text for text, is_wrong in wrong.items() if is_wrong)


@pytest.mark.parametrize("program", PROGRAMS)
def test_hostile_input_gets_one_line_and_writes_nothing(
    uri: str,
    clean: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
) -> None:
    """Exit code 2, no traceback, no password; the server is as it was, and nothing was started."""
    before = everything(uri)
    # As Python sets it up for a process.
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    wrong = []
    for case in CASES:
        if case.program != program:
            continue
        with monkeypatch.context() as patch:
            for name, value in case.environment.items():
                patch.setenv(name, uri if value == HERE else value)
            arguments = [uri if text == HERE else text for text in case.arguments]
            try:
                code: object = PROGRAMS[program](arguments)
            except SystemExit as ended:  # argparse's way
                code = ended.code
            except Exception as error:
                code = f"{type(error).__name__}: {error!s:.200}"
        printed = capsys.readouterr()
        if trouble := refusal_goes_wrong(code, printed.out, printed.err, case):
            wrong.append(f"{case}: {trouble}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong)
    assert everything(uri) == before
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("scripts/init_indexes.py", "--uri", NOBODY, "--timeout", "0.1"),
        ("scripts/verify.py", "--timeout", "soon"),
        ("scripts/roles.py", "--database", "a/b"),
        ("scripts/replay.py", "--users", "0"),
        ("-m", "credit_mongo.local", "--members", "2"),
        ("-m", "benchmarks", "--only", "0"),
    ],
    ids=" ".join,
)
def test_as_processes_they_do_the_same(clean: None, command: tuple[str, ...]) -> None:
    """The doors are as thin as they look."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


def test_bytes_that_are_no_text_are_explained_too(clean: None) -> None:
    """A command line is bytes; what is no UTF-8 is shown in escapes, and no codec fails."""
    for command in (
        ["scripts/init_indexes.py", b"--database=\xff"],
        [b"scripts/roles.py", b"\xff"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
        assert b"Traceback" not in done.stderr

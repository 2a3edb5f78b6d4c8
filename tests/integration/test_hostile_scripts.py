"""Hostile input to every script, option and environment variable: one line, exit code 2, no trace.

The commands are called as their scripts call them, in this process, where an exception that is not
explained fails the test as its traceback would show. A few run as processes as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pymongo
import pytest

from benchmarks.__main__ import main as benchmarks
from credit_mongo.cli import main as credit_mongo
from credit_mongo.local.__main__ import main as run_local
from tests.integration.hostile import CASES, HERE, NOBODY, SECRET, Case

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def script(name: str) -> Callable[[Sequence[str]], int]:
    """``python scripts/NAME.py``."""

    def run(arguments: Sequence[str]) -> int:
        specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        code: int = module.main(arguments)
        return code

    return run


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "credit-mongo": credit_mongo,
    "replay": script("replay"),
    "build_test_image": script("build_test_image"),
    "check_wheel": script("check_wheel"),
    "local": run_local,
    "benchmarks": benchmarks,
}
# Scripts that are one command of the command line.
DOORS: dict[tuple[str, ...], str] = {
    ("init",): "init_indexes",
    **{
        (name,): name
        for name in ("verify", "roles", "archive", "cleanup", "erase", "export", "report")
    },
}
# They show their usage above the error; the others point to --help.
WITH_USAGE = set(PROGRAMS) - {"credit-mongo"}


@pytest.fixture(scope="module")
def uri(replica_set_uri: str) -> Iterator[str]:
    """The replica set of the tests, with a ledger where commands look for one by default."""
    with pymongo.MongoClient[dict[str, Any]](replica_set_uri) as client:
        client.drop_database("credits")
        client["credits"].create_collection("users")
        yield replica_set_uri
        client.drop_database("credits")


def everything(uri: str) -> dict[str, Any]:
    """All databases, with their collections and how much is in them, and all roles."""
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        names = set(client.list_database_names()) - {"local", "config"}
        return {
            f"{name}.{collection}": client[name][collection].estimated_document_count()
            for name in sorted(names)
            for collection in sorted(client[name].list_collection_names())
            # The server's own: it makes a new one now and then.
            if (name, collection) != ("admin", "system.keys")
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
    # The check of the wheel is for CI: it takes no words of others.
    scripts = {path.stem for path in SCRIPTS.glob("*.py")} - {"check_wheel"}
    doors = {DOORS.get(case.arguments[:1], "") for case in CASES}
    assert scripts <= doors | set(PROGRAMS)
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
@pytest.mark.cases(1)
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
@pytest.mark.cases(2)
def test_as_processes_they_do_the_same(clean: None, command: tuple[str, ...]) -> None:
    """The doors are as thin as they look."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


NO_ENGINE = "echo 'Cannot connect to the Docker daemon.\nIs it running?' >&2; exit 1"


@pytest.mark.parametrize(
    ("mongod", "docker", "told"),
    [
        ("true", None, "there is no docker command on PATH"),
        ("true", NO_ENGINE, "docker failed: Cannot connect to the Docker daemon. Is it running?"),
        ("true", "cat >/dev/null; exit 1", "docker failed: "),
        ("ldd", "exit 0", "ldd failed: "),  # a script
    ],
)
def test_an_image_that_cannot_be_built_is_told_in_one_line(
    clean: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    mongod: str,
    docker: str | None,
    told: str,
) -> None:
    """Without Docker's command, without its engine, if that refuses; and of what is no program."""
    program = shutil.which(mongod)
    assert program is not None
    monkeypatch.setenv("CREDIT_MONGO_MONGOD", program)
    path = str(tmp_path)
    if docker is not None:
        command = tmp_path / "docker"
        command.write_text(f"#!/bin/sh\n{docker}\n")
        command.chmod(0o755)
        path += f":{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    done = subprocess.run(
        [sys.executable, "scripts/build_test_image.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


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

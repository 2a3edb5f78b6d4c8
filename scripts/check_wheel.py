"""Build the package as it is released, install it into an empty environment, and use it there.

    python scripts/check_wheel.py [--keep DIRECTORY]

The source archive is built first, and the wheel from it, so that what is missing in the one is
missing in the other. Then the README's example runs on a replica set with the wheel alone, and so
does the command line. Exit code 1: something failed, and is shown. ``--keep`` leaves the two files
in a directory.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# Of the example, the lines that it prints.
PROMISED: Final = "8 12\n15 12\n"


def run(
    *command: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return what it prints; what it complains of is shown."""
    done = subprocess.run(  # noqa: S603 - our own commands
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def build(directory: Path) -> Path:
    """Build both files with the locked tools; returns the wheel."""
    python = sys.executable
    run(python, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    [wheel] = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    sources = run("git", "ls-files", "credit_mongo", "pytest_credit_mongo").splitlines()
    missing = sorted(set(sources) - packed)
    expect(not missing, f"{wheel.name} lacks {', '.join(missing)}")
    return wheel


def install(wheel: Path, directory: Path) -> Path:
    """An environment with the wheel, and the locked versions of what it needs; returns its bin."""
    venv.create(directory, with_pip=True)
    programs = directory / "bin"
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--require-hashes", "--requirement", ROOT / "requirements" / "demo.txt")
    run(*pip, "install", "--no-deps", wheel)
    # Whether the wheel says what it needs as the lock files have it.
    run(*pip, "check")
    return programs


@contextmanager
def replica_set(programs: Path, directory: Path) -> Iterator[str]:
    """A replica set that the installed package runs; its URI."""
    with subprocess.Popen(  # noqa: S603 - our own command
        (programs / "python", "-m", "credit_mongo.local"),
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None  # noqa: S101 - it is a pipe
            found = re.search(r"mongodb://[^\s'\"]+", server.stdout.readline())
            if found is None:
                raise SystemExit("python -m credit_mongo.local printed no URI")
            yield found.group()
        finally:
            server.terminate()


def use(programs: Path, directory: Path) -> None:
    """Charge as the README does, and look at the books by the command line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    (directory / "example.py").write_text(example, encoding="utf-8")
    with replica_set(programs, directory) as uri:
        # No PYTHONPATH: what is imported is what was installed.
        environment = {"PATH": os.environ["PATH"], "MONGODB_URI": uri, "MONGODB_DATABASE": "app"}

        def say(*command: str | Path) -> str:
            return run(*command, cwd=directory, environment=environment)

        where = say(programs / "python", "-c", "import credit_mongo; print(credit_mongo.__file__)")
        expect(str(programs.parent) in where, f"the package was imported from {where}")
        printed = say(programs / "python", "example.py")
        expect(printed == PROMISED, f"the README's example printed {printed!r}")
        shown = say(programs / "credit-mongo", "--version")
        expect(shown.strip() == f"credit-mongo {version('credit-mongo')}", f"--version: {shown}")
        balance = say(programs / "credit-mongo", "balance", "user-123")
        expect(balance.split()[-1] == "12", f"balance: {balance}")
        say(programs / "credit-mongo", "verify")


def expect(is_so: bool, otherwise: str) -> None:
    """End with a message if something is not as it should be."""
    if not is_so:
        raise SystemExit(otherwise)


def main() -> None:
    """Build, install, use."""
    parser = argparse.ArgumentParser(description="Build, install and use the package.")
    parser.add_argument("--keep", metavar="DIRECTORY", type=Path, help="leave the files there")
    kept: Path | None = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="credit-mongo-wheel-") as name:
        directory = Path(name)
        wheel = build(directory / "dist")
        print(f"built {wheel.name}", flush=True)
        programs = install(wheel, directory / "environment")
        print("installed it into an empty environment", flush=True)
        (directory / "application").mkdir()
        use(programs, directory / "application")
        print("charged, and verified the books, on a replica set")
        if kept is not None:
            shutil.copytree(directory / "dist", kept, dirs_exist_ok=True)
            print(f"left both files in {kept}")


if __name__ == "__main__":
    main()

"""Build the package as for a release, install it into an empty environment, and use it there.

    python scripts/check_wheel.py [--keep DIRECTORY]

This builds the source archive, and the wheel from it, so the wheel lacks what the archive lacks.
Then it runs the README's example and the command line on a replica set, with nothing but the wheel.
Exit code 1: something failed, and is shown. Exit code 2: bad arguments. ``--keep`` copies the two
files into a directory.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# The example's output.
PROMISED: Final = "8 12\n15 12\n"


def run(
    *command: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its standard output. Its standard error is shown."""
    done = subprocess.run(  # noqa: S603 - our own commands
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def build(directory: Path) -> Path:
    """Build both files with the locked tools, and return the wheel."""
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
    """Make an environment with the wheel and its locked dependencies, and return its ``bin``."""
    venv.create(directory, with_pip=True)
    programs = directory / "bin"
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--require-hashes", "--requirement", ROOT / "requirements" / "demo.txt")
    run(*pip, "install", "--no-deps", wheel)
    # The wheel's own requirements must agree with the lock files.
    run(*pip, "check")
    return programs


@contextmanager
def replica_set(programs: Path, directory: Path) -> Iterator[str]:
    """Run a replica set with the installed package. Yields its URI."""
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
    """Charge as the README does, and check the books with the command line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    (directory / "example.py").write_text(example, encoding="utf-8")
    with replica_set(programs, directory) as uri:
        # Without PYTHONPATH, Python imports the installed package.
        environment = {"PATH": os.environ["PATH"], "MONGODB_URI": uri, "MONGODB_DATABASE": "app"}

        def output_of(*command: str | Path) -> str:
            return run(*command, cwd=directory, environment=environment)

        where = output_of(
            programs / "python", "-c", "import credit_mongo; print(credit_mongo.__file__)"
        )
        expect(str(programs.parent) in where, f"the package was imported from {where}")
        printed = output_of(programs / "python", "example.py")
        expect(printed == PROMISED, f"the README's example printed {printed!r}")
        shown = output_of(programs / "credit-mongo", "--version")
        expect(shown.strip() == f"credit-mongo {version('credit-mongo')}", f"--version: {shown}")
        balance = output_of(programs / "credit-mongo", "balance", "user-123")
        expect(balance.split()[-1] == "12", f"balance: {balance}")
        output_of(programs / "credit-mongo", "verify")


def expect(condition: bool, message: str) -> None:
    """Exit with a message unless a condition holds."""
    if not condition:
        raise SystemExit(message)


def _directory(text: str) -> Path:
    """Make the directory at once: the build takes too long to fail on its name afterwards."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of a directory")
    directory = Path(text)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a file is in the way, or no name can be like this
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(f"{text!a} can't be made: {reason}") from None
    return directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the package, install it, use it, and return the exit code."""
    parser = argparse.ArgumentParser(description="Build, install and use the package.")
    parser.add_argument("--keep", metavar="DIRECTORY", type=_directory, help="copy the files there")
    kept: Path | None = parser.parse_args(arguments).keep
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
    return 0


if __name__ == "__main__":
    sys.exit(main())

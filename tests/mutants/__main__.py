"""Plant each bug in a copy of the project, and check that the tests find it.

    python -m tests.mutants [WORDS OF A NAME …]

Exit code 0: all bugs were found. 1: some were not found, or their place in the code has changed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from credit_mongo.local import LocalReplicaSet
from tests.mutants.planted import PLANTED, Bug

ROOT: Final = Path(__file__).parents[2]
PARTS: Final = (
    *("credit_mongo", "pytest_credit_mongo", "tests", "scripts", "examples", "benchmarks", "docs"),
    *("README.md", "pyproject.toml"),
)
AT_ONCE: Final = 2
# A bug can make a test wait for ever. The slowest file of tests needs half of this.
LONGEST_SECONDS: Final = 400
_TESTS_FAILED: Final = 1


def copy_of_the_project(directory: Path) -> None:
    """Copy the project, so that tests import the package beside them."""
    for part in PARTS:
        source, target = ROOT / part, directory / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def plant(bug: Bug, directory: Path) -> bool:
    """Plant the bug. Returns whether its place stood exactly once."""
    file = directory / "credit_mongo" / bug.file
    text = file.read_text()
    file.write_text(text.replace(bug.was, bug.now))
    return text.count(bug.was) == 1


async def is_found(bug: Bug, directory: Path, uri: str) -> str:
    """Return how the tests end with the bug: "found", "hung", or another text."""
    for tests in bug.tests:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
            *("--hypothesis-profile", "any-example", tests),
            cwd=directory,
            env={**os.environ, "MONGODB_URI": uri, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), LONGEST_SECONDS)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            return "hung"
        if process.returncode == _TESTS_FAILED:
            return "found"
        if process.returncode != 0:
            return f"NO TEST RAN: {output.decode(errors='replace')[-300:]}"
    return "NOT FOUND"


async def try_each(bugs: Sequence[Bug], console: Console) -> list[str]:
    """Return the names of the bugs that were not found."""
    queue, missed = list(reversed(bugs)), []

    async def work() -> None:
        async with LocalReplicaSet(
            members=1, parameters={"enableTestCommands": "1"}
        ) as replica_set:
            while queue:
                bug = queue.pop()
                begun = time.monotonic()
                with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
                    copy_of_the_project(Path(directory))
                    found = "ITS PLACE HAS CHANGED"
                    if plant(bug, Path(directory)):
                        found = await is_found(bug, Path(directory), replica_set.uri)
                if found not in ("found", "hung"):
                    missed.append(bug.name)
                seconds = time.monotonic() - begun
                console.print(f"{found:12} {bug.name} ({seconds:.0f} s)", highlight=False)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return missed


def main(words: Sequence[str]) -> int:
    """Try all bugs, or those whose names contain all the words."""
    console = Console()
    bugs = [bug for bug in PLANTED if all(word in bug.name for word in words)]
    missed = asyncio.run(try_each(bugs, console))
    console.print(f"{len(bugs) - len(missed)} of {len(bugs)} planted bugs were found")
    for name in missed:
        console.print(f"[bold red]not found:[/] {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every block of code in the documentation runs as it stands. The README has its own tests."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from tests.integration.pages import Page, blocks_of

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.cases(4)
async def test_the_code_of_a_page_runs(
    name: str,
    replica_set_uri: str,
    database: AsyncDatabase[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page runs from top to bottom on its own database, and prints what its comments say."""
    where = {"MONGODB_URI": replica_set_uri, "MONGODB_DATABASE": database.name}
    for variable, value in where.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / name).read_text(encoding="utf-8")
    page = Page(Path(name), tmp_path, dict(os.environ), names={"MONGODB_URI": replica_set_uri})

    # The page's databases: "app" and "app_…".
    code = re.sub(r'"app(_\w+)?"', rf'"{database.name}\1"', text)
    code = code.replace("--database app\n", f"--database {database.name}\n")
    # In a thread, because a page may run an event loop of its own, as its readers do.
    ran = await asyncio.to_thread(page.run, code)
    assert ran == len(blocks_of(text))
    for other in re.findall(r'"app(_\w+)"', text):
        await database.client.drop_database(f"{database.name}{other}")


async def test_the_quickstart_prints_what_it_says(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The program prints its text on the first run, and a second run changes nothing more."""
    text = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    files = {block.title: block.text for block in blocks_of(text) if block.title}
    code = files["first.py"].replace('"app"', f'"{database.name}"')
    promised = files["first.txt"]
    for printed in (promised, promised.replace("8 12 False", "8 12 True")):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-c", code),
            env={**os.environ, "MONGODB_URI": replica_set_uri},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        lines = output.decode().splitlines()
        assert (process.returncode, errors.decode()) == (0, "")
        # The refused attempt is repeated and audited each time.
        assert list(dict.fromkeys(lines)) == list(dict.fromkeys(printed.splitlines()))


def test_the_runner_finds_what_is_wrong(tmp_path: Path) -> None:
    """A wrong comment, an error, a failing command and an unknown command are found."""
    wrong = {
        "print(1 + 1)  # 3": "page.md:2",
        "print(1 + 1)  # 21, say": "page.md:2",
        "for _ in []:\n    print(1)  # 1": "page.md:3",
    }
    for code, message in wrong.items():
        with pytest.raises(AssertionError, match=message):
            Page(Path("page.md"), tmp_path, {}).run(f"```python\n{code}\n```\n")
    with pytest.raises(ZeroDivisionError):
        Page(Path("page.md"), tmp_path, {}).run("```python\n1 / 0\n```\n")
    for command in ("python -c 'import sys; sys.exit(3)'", "sudo rm -rf /"):
        with pytest.raises(AssertionError, match=re.escape(command)):
            Page(Path("page.md"), tmp_path, {}).run(f"```sh\n{command}\n```\n")
    with pytest.raises(AssertionError, match="does not end"):
        Page(Path("page.md"), tmp_path, {}).run("```python\n1\n")


def test_the_runner_runs_what_is_right(tmp_path: Path) -> None:
    """Names are shared, ``await`` needs no function, and commands find titled blocks as files."""
    text = (
        '```python title="three.py"\nprint(3)\n```\n```sh\npython three.py\n```\n'
        "```python\nimport asyncio\nfour = await asyncio.sleep(0, 4)\n```\n"
        "```python\nprint(four)  # 4\n```\n"
    )
    page = Page(Path("page.md"), tmp_path, dict(os.environ))
    assert page.run(text) == len(page.promised) + 3
    assert sys.executable not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    """The tests behind the promises exist, and so do the scripts."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|scripts|benchmarks|examples)/[\w/.]+?\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for test in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(test)), test

"""The README's code, and the pages' files, satisfy strict type checkers without plugins."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from inspect import CO_COROUTINE
from pathlib import Path

import pytest

from tests.integration.pages import blocks_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
# What the text around a block speaks of.
SURROUNDINGS = {
    "client": "AsyncMongoClient[dict[str, Any]] = AsyncMongoClient()",
    "config": "CreditConfig = CreditConfig(costs={})",
    "ledger": 'CreditLedger = CreditLedger(client["app"], config)',
}
IMPORTS = """\
from typing import Any
from pymongo import AsyncMongoClient
from credit_mongo import CreditConfig, CreditLedger
"""


def _module(block: str) -> str:
    """The block as a module, with the names that the README takes as known."""
    if compile(block, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).co_flags & CO_COROUTINE:
        # A fragment: what it makes is the reader's to use.
        body = textwrap.indent(block, "    ")
        block = f"# pyright: reportUnusedVariable=false\nasync def fragment() -> None:\n{body}"
    names = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    missing = {name.id for name in names} & SURROUNDINGS.keys() - made
    imports = "".join(f"from surroundings import {name}\n" for name in sorted(missing))
    return f"{imports}{block}"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application that is made of the README's blocks, a module each."""
    directory = tmp_path_factory.mktemp("application")
    surroundings = (f"{name}: {value}\n" for name, value in SURROUNDINGS.items())
    (directory / "surroundings.py").write_text(IMPORTS + "".join(surroundings))
    for number, block in enumerate(BLOCKS, 1):
        (directory / f"block_{number}.py").write_text(_module(block))
    return directory


@pytest.fixture(scope="module")
def files_of_the_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python files that the documentation has its readers write."""
    directory = tmp_path_factory.mktemp("files")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in blocks_of(page.read_text(encoding="utf-8")):
            if block.language == "python" and block.title is not None:
                path = directory / block.title
                assert not path.exists(), f"two pages have a {block.title}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
    return directory


def _check(command: list[str], directory: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env={"MYPYPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_readme_passes_strict_mypy_without_plugins(application: Path) -> None:
    """Numbers for prices and caps, and dicts for the parts, are what the types say."""
    options = ["--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'readme'}"]
    assert _check(["mypy", *options, "."], application) == (
        0,
        f"Success: no issues found in {len(BLOCKS) + 1} source files\n",
    )


@pytest.mark.thorough
def test_the_files_of_the_pages_pass_strict_mypy_without_plugins(files_of_the_pages: Path) -> None:
    """An application on FastAPI, and its tests with the fixtures."""
    options = ["--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'readme'}"]
    count = len(list(files_of_the_pages.rglob("*.py")))
    assert count >= 4
    assert _check(["mypy", *options, "."], files_of_the_pages) == (
        0,
        f"Success: no issues found in {count} source files\n",
    )


def test_the_readme_passes_strict_pyright(application: Path) -> None:
    """The same for pyright, in its strict mode."""
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": ["."]}
    (application / "pyrightconfig.json").write_text(json.dumps(settings))
    status, output = _check(["basedpyright", f"--pythonpath={sys.executable}"], application)
    assert (status, output) == (0, "0 errors, 0 warnings, 0 notes\n")

"""The README's code runs as it stands."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CreditConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


async def _run(code: str, uri: str) -> list[str]:
    """Run a program as a reader does; the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", code),
        env={**os.environ, "MONGODB_URI": uri},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode().splitlines()


async def test_the_example_prints_what_the_readme_says(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The first block prints the numbers in its comments, also when it runs again."""
    code = BLOCKS[0].replace('database="app"', f"database={database.name!r}")
    assert "app" not in re.findall(r'database="(\w+)"', code)
    promised = [re.match(r"\d+ \d+", comment) for comment in re.findall(r"# (.*)", code)]
    for _ in range(2):
        printed = await _run(code, replica_set_uri)
        assert printed == [numbers.group() for numbers in promised if numbers]
        assert len(printed) == 2


async def test_the_charge_in_an_own_transaction_commits_with_the_order(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The second block runs on an application's own client, inside its transaction."""
    block = BLOCKS[1].replace('"app"', repr(database.name))
    code = f"""
import asyncio
import os
from pymongo import AsyncMongoClient
from credit_mongo import CreditConfig, CreditLedger

async def main():
    async with AsyncMongoClient(os.environ["MONGODB_URI"]) as client:
        config = CreditConfig(costs={{"generate-post": {{"default": 10}}}})
        async with CreditLedger(client[{database.name!r}], config) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user("user-123", credits=30)
{textwrap.indent(block, " " * 12)}
            print(await ledger.get_balance("user-123"))
            print(await client[{database.name!r}]["orders"].count_documents({{}}))

asyncio.run(main())
"""
    assert await _run(code, replica_set_uri) == ["20", "1"]


def test_every_block_is_run() -> None:
    """There is no code in the README that these tests do not run."""
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    """The tests that show the promises, the scripts, and the pages that it links."""
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|scripts|benchmarks|docs)/[\w/.]+)`", text)
    links = re.findall(r"\]\(((?!https://)[^)#]+)", text)
    assert [path for path in (*paths, *links) if not (ROOT / path).exists()] == []
    for test in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(test)), test
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)", text):
        assert f"\n{target}:" in targets, target


def test_the_readme_can_be_read_in_five_minutes() -> None:
    """It leads to the pages, and does not become one of them."""
    assert len(README.split()) < 1000
    assert len(README.splitlines()) < 170


def test_the_readme_config_is_one(config: CreditConfig) -> None:
    """The tests' own configuration has the README's prices."""
    assert config.costs["generate-post"]["premium"] == 8

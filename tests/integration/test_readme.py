"""The README's code runs as it stands."""

from __future__ import annotations

import asyncio
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


async def _run(code: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", code),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode().splitlines()


async def test_the_fifteen_lines_print_what_the_readme_says(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The first block runs, and prints the numbers in its comments."""
    code = BLOCKS[0].replace('database="app"', f"database={database.name!r}")
    assert "app" not in re.findall(r'database="(\w+)"', code)
    promised = [re.match(r"\d+ \d+", comment) for comment in re.findall(r"# (.*)", code)]
    printed = await _run(f"MONGODB_URI = {replica_set_uri!r}\n{code}")
    assert printed == [numbers.group() for numbers in promised if numbers]
    assert len(printed) == 2


async def test_the_charge_in_an_own_transaction_commits_with_the_order(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The second block runs on an application's own client, inside its transaction."""
    block = BLOCKS[1].replace('"app"', repr(database.name))
    code = f"""
import asyncio
from pymongo import AsyncMongoClient
from credit_mongo import CreditConfig, CreditLedger

async def main():
    async with AsyncMongoClient({replica_set_uri!r}) as client:
        config = CreditConfig(costs={{"generate-post": {{"default": 10}}}})
        async with CreditLedger(client[{database.name!r}], config) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user("user-123", credits=30)
{textwrap.indent(block, " " * 12)}
            print(await ledger.get_balance("user-123"))
            print(await client[{database.name!r}]["orders"].count_documents({{}}))

asyncio.run(main())
"""
    assert await _run(code) == ["20", "1"]


async def test_the_unit_test_without_a_server_passes(config: CreditConfig) -> None:
    """It is a test as an application has it."""
    [block] = [each for each in BLOCKS if "mock_ledger" in each]
    names: dict[str, Any] = {"config": config}
    exec(block, names)  # noqa: S102 - our own README
    await names["test_a_post_costs_ten_credits"]()


async def test_the_application_on_fastapi_charges(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """An application, on the database of the environment."""
    [block] = [each for each in BLOCKS if "FastAPI" in each]
    code = f"""
import asyncio, os
import httpx
from credit_mongo import CreditConfig
os.environ["MONGODB_URI"] = {replica_set_uri!r}
os.environ["MONGODB_DATABASE"] = {database.name!r}
config = CreditConfig(costs={{"generate-post": {{"default": 10}}}})
{block}

async def main():
    async with app.router.lifespan_context(app):
        await app.state.credit_mongo.ledger.create_user("ann", credits=15)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for key in "121":
                headers = {{"X-User": "ann", "Idempotency-Key": key}}
                answer = await client.post("/posts", headers=headers)
                print(answer.status_code, answer.json() if answer.is_success else "")

asyncio.run(main())
"""
    assert await _run(code) == ["200 It cost 10", "402 ", "409 "]


def test_every_block_is_run() -> None:
    """There is no code in the README that these tests do not run."""
    assert len(BLOCKS) == 5
    assert "import" in BLOCKS[0]


@pytest.mark.parametrize("path", re.findall(r"`((?:tests|scripts|benchmarks)/[\w/]+\.py)`", README))
def test_every_file_that_the_readme_names_is_there(path: str) -> None:
    """The tests that show the promises, and the scripts, exist."""
    assert (ROOT / path).is_file()


def test_the_readme_config_is_one(config: CreditConfig) -> None:
    """The tests' own configuration has the README's prices."""
    assert config.costs["generate-post"]["premium"] == 8


async def test_the_existing_users_are_charged_as_the_readme_says(
    replica_set_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """The block on users that are there already is all that it takes."""
    [block] = [each for each in BLOCKS if "UserMapping(" in each]
    work = f"""
import asyncio
from beanie import init_beanie
from pymongo import AsyncMongoClient
from credit_mongo import CreditLedger

async def main():
    async with AsyncMongoClient({replica_set_uri!r}) as client:
        database = client[{database.name!r}]
        await init_beanie(database=database, document_models=documents)
        async with CreditLedger(database, config) as ledger:
            await ledger.ensure_indexes()
            person = await Person(email="ann@example.org").insert()
            await ledger.create_user(str(person.id), credits=50, membership_tier="pro")
            await ledger.charge(str(person.id), "generate-post")
            person = await Person.get(person.id)
            print(person.credits, person.membership_tier, person.email)

asyncio.run(main())
"""
    assert await _run(f"{block}\n{work}") == ["42 pro ann@example.org"]

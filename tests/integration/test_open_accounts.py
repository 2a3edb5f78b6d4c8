"""``credit-mongo migrate open-accounts``: existing users get an account, each once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from bson.decimal128 import Decimal128

from credit_mongo import CollectionNames, CreditConfig, CreditLedger, UserExistsError, UserMapping
from credit_mongo.maintenance.old_balances import OldBalance, Rules
from credit_mongo.maintenance.open_accounts import open_accounts
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import run, where
from tests.integration.killed_process import MOMENTS, run_until_killed
from tests.integration.promises import Client, Database, end_all_transactions, rows

NAMES = CollectionNames(users="members")
USERS = UserMapping(credits="balance", membership_tier="plan")
CONFIG = CreditConfig(costs={"post": {"default": 10}}, collections=NAMES, users=USERS)
N = 50


async def set_up(database: Database, documents: list[dict[str, Any]]) -> None:
    """An application with documents, before it had a ledger."""
    await database["members"].insert_many(documents)
    async with CreditLedger(database, CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts


async def open_all(database: Database, _word: str = "", **options: Any) -> Any:
    """Open the accounts of all documents."""
    async with CreditLedger(database, CONFIG) as ledger:
        at = LedgerDatabase.of(database, NAMES, USERS)
        options = {"rules": Rules(), **options}
        return await open_accounts(at, ledger, N, **options)


async def check_opened_once(database: Database, users: int) -> None:
    """Each user has one transaction, of N units, and the books are right."""
    found = await rows(database, "transactions")
    assert len(found) == len({row["userId"] for row in found}) == users
    assert {(row["amount"], row["operation"]) for row in found} == {(N, "create_user")}
    assert (await verify(database, collections=NAMES, users=USERS)).findings == ()


async def test_each_document_gets_an_account_once(database: Database) -> None:
    """Its other fields and its tier stay. Who has spent all gets nothing again."""
    await set_up(database, [{"_id": f"u{each}", "plan": "pro"} for each in range(1200)])
    assert (await open_all(database)).opened == 1200
    await check_opened_once(database, 1200)
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.charge("u7", "post", amount=N)
        assert (await open_all(database)).to_dict() == {
            "opened": 0,
            "converted": 0,
            "signed_up": 0,
            "left": {},
            "examples": [],
        }
        assert await ledger.get_balance("u7") == 0
    [row] = await rows(database, "members", _id="u7")
    assert row["plan"] == "pro"


async def test_only_documents_of_the_query_get_one(database: Database) -> None:
    """And the tier that is asked for."""
    await set_up(database, [{"_id": "ann", "active": True}, {"_id": "bob", "active": False}])
    assert (await open_all(database, where={"active": True})).opened == 1
    assert [row.get("balance") for row in await rows(database, "members")] == [N, None]


async def test_users_who_sign_up_meanwhile_get_one_account(database: Database) -> None:
    """Whoever opens it: the application or the command."""
    await set_up(database, [{"_id": f"u{each}"} for each in range(1000)])

    async def sign_up() -> int:
        opened = 0
        async with CreditLedger(database, CONFIG) as ledger:
            for each in range(999, 0, -9):
                try:
                    await ledger.create_user(f"u{each}", credits=N)
                    opened += 1
                except UserExistsError:
                    pass
        return opened

    found, signed_up = await asyncio.gather(open_all(database), sign_up())
    assert found.opened + signed_up == 1000
    await check_opened_once(database, 1000)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_killed_and_run_again_nobody_gets_the_credits_twice(
    client: Client, database: Database, replica_set_uri: str, moment: str
) -> None:
    """At its first commands and in the middle."""
    await set_up(database, [{"_id": f"u{each}"} for each in range(1000)])
    for command in (2, 6, 11):
        await run_until_killed(
            replica_set_uri, database.name, open_all, "", command=command, moment=moment
        )
        await end_all_transactions(client)
    await open_all(database)
    await check_opened_once(database, 1000)


# Old balances

OLD: list[dict[str, Any]] = [
    {"_id": "float", "balance": 12.5},
    {"_id": "string", "balance": "7"},
    {"_id": "decimal", "balance": Decimal128("3.4")},
    {"_id": "debt", "balance": -5},
    {"_id": "float debt", "balance": -2.5},
    {"_id": "words", "balance": "many"},
    {"_id": "nan", "balance": float("nan")},
    {"_id": "whole", "balance": 9},
    {"_id": "new"},
    {"_id": 17},
    {"_id": "x" * 300},
    {"_id": "tier", "plan": 3},
]
RULES: list[tuple[Rules, dict[str, int]]] = [
    (Rules(), {}),
    (Rules(floats="round"), {"float": 13, "string": 7, "decimal": 3}),
    (Rules(negative="zero"), {"debt": 0}),
    (
        Rules("round", "debt"),
        {"float": 13, "string": 7, "decimal": 3, "debt": -5, "float debt": -3},
    ),
]


@pytest.mark.parametrize(("rules", "converted"), RULES)
async def test_an_old_balance_becomes_the_first_transaction_by_a_rule(
    database: Database, rules: Rules, converted: dict[str, int]
) -> None:
    """Without the rule, it stays as it is. A dry run says the same and writes nothing."""
    await set_up(database, OLD)
    before = str(await rows(database, "members"))
    planned = await open_all(database, rules=rules, dry_run=True)
    assert str(await rows(database, "members")) == before
    assert await rows(database, "transactions") == []
    found = await open_all(database, rules=rules)
    assert planned.converted == found.converted == len(converted)
    assert (planned.opened, planned.left) == (found.opened, found.left)
    assert found.opened == 1
    async with CreditLedger(database, CONFIG) as ledger:
        for user_id, units in {**converted, "whole": 9, "new": N}.items():
            assert await ledger.get_balance(user_id) == units, user_id
    left = [row["_id"] for row in await rows(database, "members", updatedAt=None)]
    assert set(left) == {row["_id"] for row in OLD} - {*converted, "new"}
    assert sum(found.left.values()) == len(OLD) - len(converted) - 2
    again = await open_all(database, rules=rules)
    assert (again.opened, again.converted) == (0, 0)
    findings = (await verify(database, collections=NAMES, users=USERS)).findings
    assert not {each.user_id for each in findings} & {*converted, "new"}


@pytest.mark.parametrize(
    ("value", "places", "units"),
    [
        (0.1, 2, 10),
        (12.5, 2, 1250),
        ("12.345", 2, 1235),
        (Decimal128("-0.005"), 2, -1),
        (12, 2, 1200),
        (1e300, 0, None),
        (float("inf"), 0, None),
        ("1e5", 0, None),
        (True, 0, None),
        (2**53, 0, None),
        ([1], 0, None),
    ],
)
def test_balances_in_credits_become_units_exactly(
    value: object, places: int, units: int | None
) -> None:
    """Rounded half up, once."""
    rules = Rules("round", "zero", "credits", places)
    old = OldBalance.of("ann", value, rules)
    assert old.units == units
    assert bool(old.lacks(rules)) is (units is None)


async def test_the_command_shows_what_it_would_do_and_what_it_left(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """Exit code 1 while something is left."""
    await set_up(database, OLD)
    file = tmp_path / "config.json"
    file.write_text(
        '{"costs": {}, "collections": {"users": "members"}, '
        '"users": {"credits": "balance", "membershipTier": "plan"}}'
    )
    here = (*where(replica_set_uri, database), "--credits", "50", "--config", str(file))
    code, output, errors = await run("migrate", "open-accounts", *here, "--dry-run")
    assert (code, errors) == (1, "")
    assert "float\tfloat\t12.5\t13\tneeds --floats round\n" in output
    assert "left: 1 × ids of the type int are not supported: the mapping says string\n" in output  # noqa: RUF001
    assert f"{database.name}: 1 accounts would be opened with 50, 0 old balances" in output
    options = ("--floats", "round", "--negative", "debt", "--json")
    code, output, errors = await run("migrate", "open-accounts", *here, *options)
    found = json.loads(output)
    assert (code, errors, found["opened"], found["converted"]) == (1, "", 1, 5)


async def test_wrong_options_are_told_in_one_line(
    database: Database, replica_set_uri: str, tmp_path: Path
) -> None:
    """Nothing is written."""
    await set_up(database, [{"_id": "ann"}])
    file = tmp_path / "config.json"
    file.write_text('{"costs": {}, "decimal_places": 2, "collections": {"users": "people"}}')
    here = where(replica_set_uri, database)
    for options, told in (
        (("--credits", "-1"), "--credits must be a whole number"),
        (("--credits", "1.5"), "--credits must be a whole number"),
        (("--credits", str(2**60)), "must be from 0 to"),
        ((), "--credits"),
        (("--credits", "1", "--where", "{"), "--where is not JSON"),
        (("--credits", "1", "--where", "[]"), "--where must be a JSON object"),
        (("--credits", "1", "--where", '{"$x": 1}'), "the server refused the command: BadValue"),
        (("--credits", "1", "--floats", "up"), "--floats must be round or refuse"),
        (("--credits", "1", "--tier", "pro"), "--tier needs --config"),
        (
            ("--credits", "1", "--floats", "round", "--config", str(file)),
            "--balances-in is missing: a credit has 2 decimal places",
        ),
    ):
        code, output, errors = await run("migrate", "open-accounts", *here, *options)
        assert (code, output, len(errors.splitlines())) == (2, "", 1), options
        assert told in errors
    assert await rows(database, "transactions") == []

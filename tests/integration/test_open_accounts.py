"""``credit-mongo migrate open-accounts``: existing users get an account, each once."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from unittest import mock
from uuid import uuid4

import pytest
from bson.decimal128 import Decimal128
from pymongo import AsyncMongoClient

from credit_mongo import (
    CollectionNames,
    CreditConfig,
    CreditError,
    CreditLedger,
    UserExistsError,
    UserMapping,
)
from credit_mongo.core.values import to_milliseconds
from credit_mongo.engine.writing import BatchWriter
from credit_mongo.maintenance.old_balances import OldBalance, Rules
from credit_mongo.maintenance.open_accounts import OWN, open_accounts
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import run, where
from tests.integration.killed_process import MOMENTS, CommandCounter, run_until_killed
from tests.integration.promises import (
    Client,
    Database,
    Row,
    end_all_transactions,
    failing,
    rows,
    with_options,
)

NAMES = CollectionNames(users="members")
USERS = UserMapping(credits="balance", membership_tier="plan")
CONFIG = CreditConfig(costs={"post": {"default": 10}}, collections=NAMES, users=USERS)
N = 50
# How many runs are killed, spread over all commands.
KILLS: Final = int(os.environ.get("OPEN_ACCOUNTS_KILLS", "6"))
KILLS_AT_ONCE: Final = 3


async def set_up(database: Database, documents: list[dict[str, Any]]) -> None:
    """An application with documents, before it had a ledger."""
    await database["members"].insert_many(documents)
    async with CreditLedger(database, CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts


async def open_all(database: Database, _word: str = "", **options: Any) -> Any:
    """Open the accounts of all documents."""
    at = LedgerDatabase.of(database, NAMES, USERS)
    return await open_accounts(at, CONFIG, N, **{"rules": Rules(), **options})


async def check_opened_once(database: Database, users: int) -> None:
    """Each user has one transaction, of N units, and the books are right."""
    found = await rows(database, "transactions")
    assert len(found) == len({row["userId"] for row in found}) == users
    assert {(row["amount"], row["operation"]) for row in found} == {(N, "create_user")}
    assert (await verify(database, collections=NAMES, users=USERS)).findings == ()


async def test_each_document_gets_an_account_once(database: Database) -> None:
    """Its other fields, its tier and its date stay. Who has spent all gets nothing again."""
    joined = datetime(2020, 1, 1, tzinfo=timezone.utc)
    own: list[dict[str, Any]] = [{"plan": "pro"}, {"plan": "pro", "createdAt": joined}, {}]
    await set_up(database, [{"_id": f"u{each:04}", **own[each % 3]} for each in range(1200)])
    began = to_milliseconds(datetime.now(timezone.utc))
    assert (await open_all(database)).opened == 1200
    await check_opened_once(database, 1200)
    for number, row in enumerate(await rows(database, "members")):
        before = own[number % 3]
        assert row["plan" if "plan" in before else "_id"] == before.get("plan", row["_id"])
        assert row["createdAt"] == joined if "createdAt" in before else row["createdAt"] >= began
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.charge("u0007", "post", amount=N)
        assert (await open_all(database)).to_dict() == {
            "opened": 0,
            "converted": 0,
            "signed_up": 0,
            "left": {},
            "examples": [],
        }
        assert await ledger.get_balance("u0007") == 0


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


async def test_a_user_whom_another_transaction_holds_waits_alone(
    client: Client, database: Database
) -> None:
    """The other users of its page have their accounts meanwhile."""
    await set_up(database, [{"_id": f"u{each}"} for each in range(50)])
    async with client.start_session() as session, await session.start_transaction():
        await database["members"].update_one({"_id": "u7"}, {"$set": {"x": 1}}, session=session)
        opening = asyncio.create_task(open_all(database))
        while len(await rows(database, "transactions")) < 49:
            assert not opening.done()
            await asyncio.sleep(0.05)
    assert (await opening).opened == 50
    await check_opened_once(database, 50)


async def test_a_failure_of_the_database_is_told_and_the_next_run_goes_on(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """The lanes that are not concerned stop, too."""
    await set_up(database, MIXED)
    app = f"open-{uuid4().hex[:8]}"
    async with AsyncMongoClient[Row](with_options(replica_set_uri, appName=app)) as own:
        refused: Row = {"failCommands": ["insert"], "errorCode": 13}
        async with failing(client, app, "alwaysOn", **refused):
            with pytest.raises(CreditError):
                await open_mixed(own[database.name])
    assert await rows(database, "transactions") == []
    await check_that_none_is_half_open(database)
    await open_mixed(database)
    await check_mixed(database)


async def test_a_balance_that_has_changed_since_it_was_read_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application may still write balances of its own. The next run converts it."""
    await set_up(database, [{"_id": "ann", "balance": 1.5}, {"_id": "bob", "balance": 2.5}])
    commit = BatchWriter.commit

    async def commit_late(*arguments: Any) -> Any:
        change = {"$set": {"balance": 7.5}}
        await database["members"].update_one(
            {"_id": "ann"}, change, bypass_document_validation=True
        )
        return await commit(*arguments)

    rules = Rules(floats="round")
    with monkeypatch.context() as patched:
        patched.setattr(BatchWriter, "commit", commit_late)
        found = await open_all(database, rules=rules)
    assert (found.converted, sum(found.left.values())) == (1, 1)
    assert [row["balance"] for row in await rows(database, "members")] == [7.5, 3]
    assert (await open_all(database, rules=rules)).converted == 1
    assert [row["balance"] for row in await rows(database, "members")] == [8, 3]


async def test_what_the_server_refuses_of_a_user_leaves_nothing_of_that_user(
    database: Database,
) -> None:
    """All others get their accounts."""
    await set_up(database, MIXED)
    # The third request of a debt is refused, not the two before it.
    await database.command("collMod", "transactions", validator={"operation": {"$ne": "charge"}})
    with pytest.raises(CreditError):
        await open_mixed(database)
    await check_that_none_is_half_open(database)
    assert not [row for row in await rows(database, "transactions") if "debt" in row["userId"]]
    await database.command("collMod", "transactions", validator={})
    await open_mixed(database)
    await check_mixed(database)


# Killed

MIXED: list[dict[str, Any]] = [
    *({"_id": f"new {each:02}"} for each in range(40)),
    *({"_id": f"float {each:02}", "balance": each + 0.5} for each in range(10)),
    *({"_id": f"debt {each:02}", "balance": -each - 1} for each in range(10)),
]
MIXED_BALANCES = {
    **{f"new {each:02}": N for each in range(40)},
    **{f"float {each:02}": each + 1 for each in range(10)},
    **{f"debt {each:02}": -each - 1 for each in range(10)},
}


async def open_mixed(database: Database, _word: str = "") -> Any:
    """What the killed process does: several pages, and all kinds of balances."""
    with mock.patch("credit_mongo.maintenance.open_accounts._PAGE", 9):
        return await open_all(database, rules=Rules("round", "debt"))


async def check_mixed(database: Database) -> None:
    """Each user has one account with the balance that is due, and the books are right."""
    found = {row["_id"]: row["balance"] for row in await rows(database, "members")}
    assert found == MIXED_BALANCES
    opened = await rows(database, "transactions", operation="create_user")
    assert len(opened) == len({row["userId"] for row in opened}) == len(MIXED)
    debts = await rows(database, "transactions", operation="charge")
    assert len(debts) == 10
    # Else the command would take its own work for that of users, and slow down.
    assert await database["transactions"].count_documents({"$nor": list(OWN)}) == 0
    assert (await verify(database, collections=NAMES, users=USERS)).findings == ()


async def test_killed_at_any_command_and_run_again_it_comes_to_the_same_end(
    client: Client, database: Database, replica_set_uri: str
) -> None:
    """Each command of a run, at one of three moments: before, on its way, and answered.

    No account is half open at any time: it has its balance and its rows, or nothing.
    """
    await set_up(database, MIXED)
    counter = CommandCounter()
    async with AsyncMongoClient[Row](replica_set_uri, event_listeners=[counter]) as own:
        await open_mixed(own[database.name])
    await check_mixed(database)
    sent = counter.sent
    assert {"aggregate", "find", "update", "insert", "commitTransaction"} <= set(sent)
    everywhere = [each * len(sent) // KILLS for each in range(KILLS)]
    others = [client[f"{database.name}_{number}"] for number in range(KILLS_AT_ONCE)]
    for other in others:
        await set_up(other, MIXED)

    async def kill(turn: int, again: int = 0) -> bool:
        name, command = others[turn % KILLS_AT_ONCE].name, everywhere[turn]
        moment = MOMENTS[(turn + again) % len(MOMENTS)]
        return await run_until_killed(
            replica_set_uri, name, open_mixed, "", command=command, moment=moment
        )

    killed = 0
    for first in range(0, KILLS, KILLS_AT_ONCE):
        turns = range(first, min(first + KILLS_AT_ONCE, KILLS))
        for other in others:
            for name in ("members", "transactions", "audit_logs"):
                await other[name].delete_many({})
            await other["members"].insert_many(MIXED, bypass_document_validation=True)
        killed += sum(await asyncio.gather(*map(kill, turns)))
        # The server would end them within a minute.
        await end_all_transactions(client)
        for other in others:
            await check_that_none_is_half_open(other)
        if first % 2:
            # The run that goes on may die, too.
            await asyncio.gather(*(kill(turn, again=1) for turn in turns))
            await end_all_transactions(client)
        for other in others:
            await open_mixed(other)
            await check_mixed(other)
    for other in others:
        await client.drop_database(other.name)
    assert killed >= KILLS * 9 // 10


async def check_that_none_is_half_open(database: Database) -> None:
    """Each document is as it was, or has the account that is due."""
    before = {row["_id"]: row.get("balance") for row in MIXED}
    with_rows = {row["userId"] for row in await rows(database, "transactions")}
    for row in await rows(database, "members"):
        is_open = row["_id"] in with_rows
        due = (MIXED_BALANCES if is_open else before)[row["_id"]]
        assert (row.get("balance"), "seq" in row) == (due, is_open), row


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
    nested = tmp_path / "nested.json"
    nested.write_text('{"costs": {}, "users": {"credits": "wallet.credits"}}')
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
            ("--credits", "1", "--config", str(nested)),
            "users.credits: must have 1 to 120 characters, without $, . or control characters: it "
            "names a field of the document itself, and fields of embedded documents are not",
        ),
        (
            ("--credits", "1", "--floats", "round", "--config", str(file)),
            "--balances-in is missing: a credit has 2 decimal places",
        ),
    ):
        code, output, errors = await run("migrate", "open-accounts", *here, *options)
        assert (code, output, len(errors.splitlines())) == (2, "", 1), options
        assert told in errors
    assert await rows(database, "transactions") == []

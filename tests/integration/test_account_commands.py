"""``credit-mongo users``, ``balance``, ``history``, ``audit``, ``grant``, ``refund``, ``charge``,
``status``: what they do, what they show, and what they keep to themselves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from bson import Int64

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.cli import main
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.printing import moment_to_milliseconds
from tests.integration.commands import run_on_terminal
from tests.integration.promises import (
    Client,
    Database,
    check_promises,
    count,
    failing,
    rows,
    with_options,
)

Call: TypeAlias = Callable[..., Awaitable[tuple[int, str, str]]]
CONFIG: dict[str, Any] = {
    "costs": {
        "generate-post": {"default": 13.5, "premium": 8},
        "ai-completion": {"default": "{token} * 0.001 + 1"},
        "generate-image": {"premium": 20},
    },
    "membership": {"tiers": {"free": 0, "premium": 1}, "creditsCaps": {"free": 10, "premium": 50}},
    "decimalPlaces": 2,
}
# Part of all metadata and keys. No command shows it unless asked.
SECRET = "opensesame"  # noqa: S105


@pytest.fixture
def call(
    replica_set_uri: str,
    database: Database,
    ledger: CreditLedger,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Run a command on the test's database, and return the exit code, stdout and stderr."""

    async def call(*arguments: str, uri: str = replica_set_uri) -> tuple[int, str, str]:
        where = ("--uri", uri, "--database", database.name)
        code = await asyncio.to_thread(main, (arguments[0], *where, *arguments[1:]))
        output, errors = capsys.readouterr()
        if code == 2:
            assert errors.startswith("error: ")
            assert errors.count("\n") == 1
        return code, output, errors

    return call


@pytest_asyncio.fixture
async def config_file(tmp_path: Path, database: Database, ledger: CreditLedger) -> str:
    """A configuration file with the settings that the ledger was set up with."""
    assert isinstance(ledger, CreditLedger)  # It is open.
    await database["ledger_settings"].delete_many({})
    await CreditLedger(database, CreditConfig(**CONFIG)).ensure_indexes()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def facts(answer: tuple[int, str, str]) -> dict[str, Any]:
    """Return what --json printed."""
    code, output, errors = answer
    assert (code, errors) == (0, "")
    found: dict[str, Any] = json.loads(output)
    return found


# Changes of the balance


async def test_each_command_makes_the_ledgers_operation(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """Each makes one transaction with its audit row and its key, printed in lines and as JSON."""
    await ledger.create_user("ada", credits=100)
    code, output, errors = await call("grant", "ada", "50", "--action", "bonus")
    assert (code, errors) == (0, "")
    found = re.fullmatch(
        "idempotency key: (.+)\nada: granted 50 for bonus, balance 100 → 150\ntransaction (.+)\n",
        output,
    )
    assert found is not None
    # The command can be repeated after a lost answer, and grants only once.
    again = await call("grant", "ada", "50", "--action", "bonus", "--idempotency-key", found[1])
    assert "balance 100 → 150\n" in again[1]
    assert f"transaction {found[2]}, done before" in again[1]

    charged = facts(await call("charge", "ada", "post", "--amount", "30", "--json"))
    assert (charged["cost"], charged["balance_before"], charged["balance_after"]) == (30, 150, 120)
    refund = ("refund", "ada", "30", "--action", "post", "--json")
    charge = ("--transaction", charged["transaction_id"])
    refunded = facts(await call(*refund, *charge, "--metadata", '{"why": "broken"}'))
    assert (refunded["amount"], refunded["balance_after"]) == (30, 150)
    assert "metadata" not in refunded
    code, output, errors = await call(*refund, *charge)
    assert (code, output) == (2, "")
    assert "0 units are refundable, not 30" in errors

    newest = (await ledger.get_history("ada"))[0]
    assert newest.metadata == {"why": "broken"}
    assert newest.refund_of == charged["transaction_id"]
    keys = {row["_id"] for row in await rows(database, "idempotency_records")}
    assert keys == {found[1], charged["idempotency_key"], refunded["idempotency_key"]}
    await check_promises(database)


async def test_a_configuration_has_prices_tiers_and_decimal_places(
    call: Call, ledger: CreditLedger, config_file: str
) -> None:
    """The configuration's rules hold, and amounts can be in credits."""
    await ledger.create_user("ada", credits=5000)
    config = ("--config", config_file)
    _, output, _ = await call("charge", "ada", "generate-post", *config)
    assert (
        "ada: charged 1350 (13.50) for generate-post, balance 5000 (50.00) → 3650 (36.50)" in output
    )
    formula = ("charge", "ada", "ai-completion", "--variable", "token=500", *config)
    assert facts(await call(*formula, "--json"))["cost"] == 150
    code, _, errors = await call("charge", "ada", "generate-image", *config)
    assert (code, "needs the tier 'premium'" in errors) == (2, True)
    assert await call("balance", "ada", *config) == (0, "3500 (35.00)\n", "")
    assert await call("balance", "ada") == (0, "3500 (35.00)\n", "")


async def test_a_dry_run_decides_and_writes_nothing(
    call: Call, ledger: CreditLedger, database: Database, config_file: str
) -> None:
    """It writes no transaction and no key, and no audit row if it would be refused."""
    await ledger.create_user("ada", credits=5000)
    charged = await ledger.charge("ada", "generate-post", amount=10)
    names = ("users", "transactions", "audit_logs", "idempotency_records")
    before = [await rows(database, name) for name in names]
    dry = ("--dry-run", "--config", config_file)
    assert await call("charge", "ada", "generate-post", *dry) == (
        0,
        "ada: would be charged 1350 (13.50) for generate-post, "
        "balance 4990 (49.90) → 3640 (36.40)\ndry run: nothing was written\n",
        "",
    )
    granted = facts(await call("grant", "ada", "5", "--action", "bonus", "--json", *dry))
    assert (granted["dry_run"], granted["balance_after"]) == (True, 4995)
    refund = ("refund", "ada", "11", "--action", "x", "--transaction", charged.transaction_id)
    assert "10 units are refundable, not 11" in (await call(*refund, *dry))[2]
    assert "of the 99999 units" in (await call("charge", "ada", "x", "--amount", "99999", *dry))[2]
    assert "no user 'eve'" in (await call("grant", "eve", "1", "--action", "x", *dry))[2]
    assert [await rows(database, name) for name in names] == before


async def test_accounts_are_opened_and_tiers_changed(
    call: Call, ledger: CreditLedger, database: Database, config_file: str
) -> None:
    """Each makes one transaction with its key, by the rules of the configuration."""
    config = ("--config", config_file)
    key = ("--idempotency-key", "k")
    create = ("create-user", "ada", "--credits", "100", "--tier", "free", *config)
    shown = "ada: created with 100 (1.00), tier free\n"
    assert (await call(*create, *key))[1] == shown
    repeated = f"{shown}done before: this is the result of the key's first use\n"
    assert (await call(*create, *key))[1] == repeated
    upgrade = ("upgrade", "ada", "premium", "--expires-at", "2090-01-01", *config)
    moved = "moved from free to tier premium until 2090-01-01T00:00:00Z"
    balance = "balance 100 (1.00) → 5000 (50.00)"
    _, output, _ = await call(*upgrade, "--dry-run")
    assert output == f"ada: would be {moved}, {balance}\ndry run: nothing was written\n"
    assert await ledger.get_balance("ada") == 100
    _, output, _ = await call(*upgrade, "--idempotency-key", "up", "--metadata", '{"why": "paid"}')
    assert output.startswith(f"ada: {moved}, {balance}\ntransaction ")
    await ledger.charge("ada", "post", amount=1)
    renewed = facts(await call("renew", "ada", "--no-expiry", "--no-refill", *config, "--json"))
    assert (renewed["new_credits"], renewed["membership_expires_at"]) == (4999, None)
    renewed = facts(await call("renew", "ada", "--expires-at", "2091-01-01", *config, "--json"))
    assert renewed["new_credits"] == 5000
    assert renewed["membership_expires_at"] == "2091-01-01T00:00:00.000Z"
    earlier = ("renew", "ada", "--expires-at", "2090-06-01", *config)
    code, _, errors = await call(*earlier)
    assert (code, "2091-01-01" in errors) == (2, True)
    renewed = facts(await call(*earlier, "--allow-earlier", "--json"))
    assert renewed["membership_expires_at"] == "2090-06-01T00:00:00.000Z"
    lowered = facts(await call("downgrade", "ada", "free", "--no-expiry", *config, "--json"))
    assert (lowered["new_tier"], lowered["new_credits"]) == ("free", 1000)
    assert lowered["membership_expires_at"] is None
    operations = [row.operation for row in await ledger.get_history("ada")]
    assert operations == [
        *(
            "downgrade_tier",
            "renew_tier",
            "renew_tier",
            "renew_tier",
            "charge",
            "upgrade_tier",
            "create_user",
        )
    ]
    assert (await call("create-user", "bob"))[0] == 0
    for wrong, told in (
        (create, "exists already"),
        (("upgrade", "ada", "free", *config), "'free'"),
        (("upgrade", "ada", "premium"), "--config"),
        (("renew", "ada", *config), "--expires-at"),
        (("renew", "ada", "--no-expiry", "--expires-at", "2091-01-01", *config), "combined"),
        (("create-user", "eve", "--tier", "free"), "--config"),
        (("create-user", "eve", "--credits", "-5"), "--credits"),
        (("grant", "ada", "-5", "--action", "x"), "negative number"),
    ):
        code, _, errors = await call(*wrong)
        assert (code, told in errors) == (2, True), errors
    await check_promises(database)


async def test_an_unknown_outcome_is_reported_with_its_key(
    call: Call, client: Client, ledger: CreditLedger, replica_set_uri: str, tmp_path: Path
) -> None:
    """The error line has the key with which a repeat settles the call."""
    await ledger.create_user("ada", credits=100)
    config = tmp_path / "short.json"
    config.write_text(json.dumps({"costs": {}, "operation_timeout_seconds": 1}))
    uri = with_options(replica_set_uri, appname="lost-answers")
    grant = ("grant", "ada", "50", "--action", "bonus", "--json", "--config", str(config))
    data = {"failCommands": ["commitTransaction"], "blockConnection": True, "blockTimeMS": 3000}
    async with failing(client, "lost-answers", **data):
        code, output, errors = await call(*grant, uri=uri)
    assert (code, output) == (2, "")
    found = re.search("run the command again with --idempotency-key (.+), which settles it", errors)
    assert found is not None
    # The server may still be at work. A repeat with the key waits for it, or does the work.
    await call(*grant, "--idempotency-key", found[1], uri=uri)
    assert await ledger.get_balance("ada") == 150


# What commands show


async def test_cursors_continue_where_a_page_ended(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """All rows appear once each. Filters and periods are the ledger's."""
    await ledger.create_user("ada", credits=100)
    for number in range(6):
        await ledger.charge("ada", f"action-{number % 2}", amount=1)
    await ledger.get_history("ada")
    with pytest.raises(Exception, match="units required"):
        await ledger.charge("ada", "action-0", amount=1000)
    for command, listed, total in (("history", "transactions", 7), ("audit", "attempts", 8)):
        seen: list[str] = []
        cursor: tuple[str, ...] = ()
        while True:
            page = facts(await call(command, "ada", "--limit", "3", "--json", *cursor))
            seen += [str(row) for row in page[listed]]
            if page["next_cursor"] is None:
                break
            cursor = ("--cursor", page["next_cursor"])
        assert len(seen) == len(set(seen)) == total
        found = facts(await call(command, "ada", "--json", "--action", "action-1"))
        assert len(found[listed]) == 3
        tomorrow = (datetime.now(timezone.utc) + timedelta(days=1)).date().isoformat()
        assert not facts(await call(command, "ada", "--json", "--from", tomorrow))[listed]
        assert len(facts(await call(command, "ada", "--json", "--to", tomorrow))[listed]) == total
    [refused] = facts(await call("audit", "ada", "--json", "--status", "failed"))["attempts"]
    assert refused["details"] == {"code": "INSUFFICIENT_CREDITS"}
    assert facts(await call("audit", "nobody", "--json"))["attempts"] == []


async def test_history_can_include_the_archive(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """With the option it includes the archive. Without it, it says how to include it."""
    await ledger.create_user("ada", credits=100)
    await ledger.charge("ada", "post", amount=1)
    await archive(database, older_than=datetime.now(timezone.utc), kinds="transactions")
    assert await count(database, "transactions") == 0
    code, output, errors = await call("history", "ada")
    # Piped output has column names and rows. Notes go to stderr.
    assert (code, output.count("\n")) == (0, 1)
    assert errors == "ada: no such transactions; --include-archived shows archived ones\n"
    whole = facts(await call("history", "ada", "--json", "--include-archived"))["transactions"]
    assert [row["seq"] for row in whole] == [2, 1]


async def test_users_are_listed_by_id(call: Call, ledger: CreditLedger, database: Database) -> None:
    """Filters by tier and balance work page by page, even on accounts that applications added."""
    for number in range(5):
        tier = "premium" if number % 2 else None
        await ledger.create_user(f"user-{number}", credits=number * 10, membership_tier=tier)
    for theirs in ({"_id": 7, "name": "of the application's"}, {"_id": "x"}):
        await database["users"].insert_one(theirs, bypass_document_validation=True)

    async def listed(*options: str) -> list[str]:
        return [row["user_id"] for row in facts(await call("users", "--json", *options))["users"]]

    assert await listed() == [*(f"user-{number}" for number in range(5)), "x"]
    assert await listed("--tier", "premium") == ["user-1", "user-3"]
    assert await listed("--below", "20") == ["user-0", "user-1"]
    page = facts(await call("users", "--json", "--limit", "2"))
    assert page["next_cursor"] == "user-1"
    assert page["users"][1] == {
        "user_id": "user-1",
        "credits": 10,
        "membership_tier": "premium",
        "membership_expires_at": None,
        "seq": 1,
    }
    assert await listed("--cursor", "user-1") == ["user-2", "user-3", "user-4", "x"]
    assert await call("users", "--limit", "1", "--cursor", "user-0") == (
        0,
        "user\tbalance\ttier\ttier_expires\tseq\nuser-1\t10\tpremium\t\t1\n",
        "next page: --cursor user-1\n",
    )


async def test_metadata_and_keys_are_shown_only_on_request(
    call: Call, ledger: CreditLedger
) -> None:
    """Without the option, no output has them."""
    note = {"note": SECRET, "at": datetime(2026, 1, 1, tzinfo=timezone.utc), "n": float("nan")}
    await ledger.create_user("ada", credits=9, metadata=note, idempotency_key=f"key-{SECRET}")
    for command in (("history", "ada"), ("audit", "ada"), ("users",), ("balance", "ada")):
        for more in ((), ("--json",)):
            code, output, errors = await call(*command, *more)
            assert code == 0
            assert SECRET not in output + errors
    for records in ("history", "audit"):
        assert SECRET in (await call(records, "ada", "--metadata"))[1]
        # The JSON is strict, whatever BSON holds.
        _, output, _ = await call(records, "ada", "--metadata", "--json")
        json.loads(output, parse_constant=pytest.fail)
        assert SECRET in output


async def test_names_control_no_terminal_and_are_not_markup(
    call: Call, ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """This holds on a terminal and in tables. Transaction ids stay in one piece."""
    await ledger.create_user("[bold]\u202eeve", credits=9)
    await ledger.grant("[bold]\u202eeve", 1, action="[red]x")
    here = ("--uri", replica_set_uri, "--database", database.name)
    newest = (await ledger.get_history("[bold]\u202eeve"))[0]
    code, shown = await run_on_terminal("history", "[bold]\u202eeve", *here)
    assert code == 0
    assert "[red]x" in shown
    assert newest.transaction_id in shown
    for command in (("users",), ("audit", "[bold]\u202eeve")):
        code, shown, _ = await call(*command)
        assert code == 0
        assert "\u202e" not in shown
        assert ("[red]x" if command[0] == "audit" else "[bold]\\u202eeve") in shown


# status


async def test_status_shows_the_server_and_the_database(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """It shows the server, its members, collections, indexes, the oldest row, and TTL's delay."""
    await ledger.create_user("ada", credits=10)
    await ledger.grant("ada", 1, action="bonus")
    now = datetime.now(timezone.utc)
    await database["idempotency_records"].insert_one(
        {"_id": "old", "expiresAt": now - timedelta(hours=1)}
    )
    found = facts(await call("status", "--json"))
    assert found["is_ready"] is True
    assert found["server_version"].split(".")[0].isdigit()
    assert [member["state"] for member in found["members"]] == ["PRIMARY"]
    assert found["members"][0]["lag_seconds"] == 0
    by_name = {each["name"]: each for each in found["collections"]}
    assert (by_name["users"]["documents"], by_name["transactions"]["documents"]) == (1, 2)
    assert by_name["transactions"]["data_bytes"] > 0
    assert by_name["transactions_archive"]["exists"] is False
    # A row imported later than it happened.
    imported = {"userId": "bob", "createdAt": datetime(2020, 5, 1, tzinfo=timezone.utc)}
    await database["transactions"].insert_one(imported, bypass_document_validation=True)
    found["oldest_transaction_at"] = facts(await call("status", "--json"))["oldest_transaction_at"]
    assert found["oldest_transaction_at"] == "2020-05-01T00:00:00.000Z"
    await database["transactions"].delete_one(imported)
    found = facts(await call("status", "--json"))
    first = (await ledger.get_history("ada"))[-1]
    assert found["oldest_transaction_at"] == moment_to_milliseconds(first.created_at)
    # The server may have swept it in between.
    if await count(database, "idempotency_records"):
        assert found["ttl_lag_seconds"] == pytest.approx(3600, abs=120)
    assert [found["indexes"][state] for state in ("missing", "different", "in_the_way")] == [[]] * 3


async def test_status_exits_1_if_something_is_missing_or_wrong(
    call: Call, database: Database
) -> None:
    """It names the problem and writes nothing."""
    await database["transactions"].create_index("action", unique=True)
    await database["audit_logs"].drop_index("status_1")
    code, output, errors = await call("status")
    assert (code, errors) == (1, "")
    assert re.search(r"missing\tindex\taudit_logs\.status_1\n", output)
    assert re.search(r"in the way\tindex\ttransactions\.action_1: ", output)
    assert "status_1" not in await database["audit_logs"].index_information()
    await database.client.drop_database(database.name)
    assert (await call("status"))[0] == 1
    assert await database.list_collection_names() == []


async def test_status_shows_what_a_limited_role_may_see(
    call: Call, client: Client, replica_set_uri: str
) -> None:
    """It shows everything that needs no more than to read."""
    uri = with_options(replica_set_uri, appname="reader")
    refused = ["replSetGetStatus", "listCollections", "aggregate"]
    async with failing(client, "reader", failCommands=refused, errorCode=13):
        found = facts(await call("status", "--json", uri=uri))
    assert found["indexes"] is None
    assert [member["state"] for member in found["members"]] == ["PRIMARY"]
    assert {each["data_bytes"] for each in found["collections"]} == {None}
    assert found["collections"][0]["documents"] == 0


# Wrong input

WRONG: tuple[tuple[str, ...], ...] = (
    ("balance", "nobody"),
    ("balance", ""),
    ("balance",),
    ("history", "nobody"),
    ("history", "ada", "--limit", "0"),
    ("history", "ada", "--limit", "1001"),
    ("history", "ada", "--limit", "1_0"),
    ("history", "ada", "--limit", "٣"),
    ("history", "ada", "--cursor", "nonsense"),
    ("history", "ada", "--from", "yesterday"),
    ("history", "ada", "--from", "2026-02-30"),
    ("history", "ada", "--from", "2026-02-02", "--to", "2026-02-01"),
    ("history", "ada", "--action", "a\nb"),
    ("audit", "ada", "--status", "lost"),
    ("audit", "\x1b[31m"),
    ("users", "--limit", "0"),
    ("users", "--below", "-1"),
    ("users", "--below", "1.5"),
    ("users", "--tier", ""),
    ("users", "--cursor", "a\nb"),
    ("grant", "ada", "50"),
    ("grant", "ada", "--action", "x"),
    ("grant", "nobody", "1", "--action", "x", "--json"),
    ("grant", "ada", "0", "--action", "x", "--json"),
    ("grant", "ada", "1.5", "--action", "x"),
    ("grant", "ada", "1e3", "--action", "x"),
    ("grant", "ada", "9" * 30, "--action", "x"),
    ("grant", "ada", "9007199254740992", "--action", "x", "--json"),
    ("grant", "ada", "1", "--action", "", "--json"),
    ("grant", "ada", "1", "--action", "x", "--idempotency-key", ""),
    ("grant", "ada", "1", "--action", "x", "--metadata", SECRET),
    ("grant", "ada", "1", "--action", "x", "--metadata", f'["{SECRET}"]'),
    ("grant", "ada", "1", "--action", "x", "--metadata", '{"a": NaN}'),
    ("grant", "ada", "1", "--action", "x", "--metadata", '{"a": 1' + "0" * 30 + "}", "--json"),
    ("grant", "ada", "1", "--action", "x", "--metadata", "[" * 100_000),
    ("refund", "ada", "1", "--action", "x", "--transaction", "", "--json"),
    ("refund", "ada", "1", "--action", "x", "--transaction", "0" * 24, "--json"),
    ("charge", "ada", "x"),
    ("charge", "ada", "x", "--amount", "11", "--json"),
    ("charge", "ada", "x", "--amount", "1", "--variable", "a"),
    ("charge", "ada", "x", "--amount", "1", "--variable", "a=1", "--json"),
    ("charge", "ada", "x", "--amount", "1", "--variable", "a=inf"),
    ("charge", "ada", "x", "--amount", "1", "--variable", "a=1", "--variable", "a=2"),
    ("charge", "ada", "x", "--config", "/no/such/file"),
    ("charge", "ada", "x", "--config", "/"),
    ("charge", "ada", "x", "--config", "/dev/zero"),
    ("charge", "ada", "x", "--config", __file__),
    ("status", "extra"),
)


async def test_wrong_input_gets_one_line_and_changes_nothing(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """Exit code 2, nothing on stdout, and no secret in the line."""
    await ledger.create_user("ada", credits=10)
    before = await rows(database, "users"), await rows(database, "transactions")
    for arguments in WRONG:
        code, output, errors = await call(*arguments)
        assert (code, output) == (2, ""), (arguments, output, errors)
        assert SECRET not in errors
    assert (await rows(database, "users"), await rows(database, "transactions")) == before


async def test_a_wrong_configuration_is_named(call: Call, tmp_path: Path) -> None:
    """The error has the path of the key."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "decimalPlaces": -1}))
    _, _, errors = await call("charge", "ada", "x", "--config", str(path))
    assert errors.startswith("error: config.decimal")
    path.write_text(json.dumps({"costs": {}, "idempotency": {"enabled": False}}))
    key = ("--amount", "1", "--idempotency-key", "k", "--config", str(path))
    assert "keys are disabled" in (await call("charge", "ada", "x", *key))[2]


async def test_a_price_that_can_round_to_nothing_gives_a_warning(
    call: Call, ledger: CreditLedger, tmp_path: Path
) -> None:
    """One line on stderr names the price, however long, and the command goes on."""
    await ledger.create_user("ada", credits=10)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"costs": {"ask": {"default": "{t} * 2.5e-06"}}}))
    code, _, errors = await call("charge", "ada", "ask", "--variable", "t=1", "--config", str(path))
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith("warning: config.costs.ask.default: the formula ")
    path.write_text('{"costs": {"ask": {"default": 1e9999999999999999999}}}')
    code, _, errors = await call("charge", "ada", "ask", "--config", str(path))
    assert (code, errors) == (
        2,
        "error: config.costs.ask.default: must be from 0 to 9007199254740991\n",
    )


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\x7f", "\u202e", "\u061c"], ids=ascii)
async def test_no_message_controls_the_terminal(call: Call, tmp_path: Path, character: str) -> None:
    """This holds for keys of a configuration and names of databases and files."""
    config = tmp_path / "config.json"
    keys = {"costs": {"x": {}}, f"evil{character}[31m": 1}
    config.write_text(json.dumps(keys, ensure_ascii=False), encoding="utf-8")
    for arguments in (
        ("balance", "ada", "--config", str(config)),
        ("balance", "ada", "--database", f"evil{character}[31m"),
        ("export", "--output", f"/no/evil{character}[31m.csv"),
        ("report", f"/no/evil{character}[31m.html"),
        ("balance", "ada", f"--evil{character}[31m"),
    ):
        code, output, errors = await call(*arguments)
        assert (code, output) == (2, ""), arguments
        assert character not in errors
        assert f"evil{character.encode('unicode_escape').decode()}[31m" in errors


async def test_a_broken_balance_is_reported(
    call: Call, ledger: CreditLedger, database: Database
) -> None:
    """The error is one line, and the list of users shows the stored value."""
    await ledger.create_user("ada", credits=10)
    await database.command(
        {
            "update": "users",
            "updates": [{"q": {"_id": "ada"}, "u": {"$set": {"credits": -5.5, "seq": Int64(1)}}}],
            "bypassDocumentValidation": True,
        }
    )
    assert "is not a whole number" in (await call("balance", "ada"))[2]
    assert await call("users") == (
        0,
        "user\tbalance\ttier\ttier_expires\tseq\nada\t-5.5\t\t\t1\n",
        "",
    )


def test_the_overview_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The groups are accounts, records and maintenance, in this order."""
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    places = [overview.index(f" {group} ") for group in ("Accounts", "Records", "Maintenance")]
    assert places == sorted(places)
    assert places[0] < overview.index(" grant ") < places[1] < overview.index(" history ")
    assert places[2] < overview.index(" status ")


def test_the_configuration_of_these_tests_is_valid() -> None:
    """It is written with the Credit SDK's keys."""
    assert CreditConfig(**CONFIG).decimal_places == 2

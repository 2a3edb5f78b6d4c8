"""Lots, debts and holds on the command line: ``balance``, ``grant``, ``revoke``, ``overdraft``,
``holds``, ``release``, and what ``history``, ``audit``, ``report`` and ``users`` show of them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest_asyncio

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.printing import moment_to_seconds
from tests.integration.commands import run, run_on_terminal, where
from tests.integration.promises import Database, check_promises, rows

CONFIG = CreditConfig(costs={"answer": {"default": 5}}, decimal_places=2)
# Part of all metadata. No command shows it unless asked.
SECRET = "opensesame"  # noqa: S105
NEVER_USED = "0" * 24


class Shop(NamedTuple):
    """A database whose user ann got a lot that has expired since, and a way to run commands."""

    ledger: CreditLedger
    database: Database
    here: tuple[str, ...]
    began: datetime

    async def call(self, command: str, *arguments: str) -> tuple[int, str, str]:
        code, output, errors = await run(command, *self.here, *arguments)
        assert SECRET not in output + errors or "--metadata" in arguments
        return code, output, errors

    async def lines(self, command: str, *arguments: str) -> list[str]:
        """The lines of a successful command, without the key that it announces."""
        code, output, errors = await self.call(command, *arguments)
        assert (code, errors) == (0, "")
        return [line for line in output.splitlines() if not line.startswith("idempotency key: ")]

    async def facts(self, command: str, *arguments: str) -> dict[str, Any]:
        [*lines] = await self.lines(command, *arguments, "--json")
        found: dict[str, Any] = json.loads("\n".join(lines))
        return found


@pytest_asyncio.fixture
async def shop(database: Database, replica_set_uri: str) -> AsyncIterator[Shop]:
    """Ten days ago ann got 100.00 for five days, and an hour's hold of 10.00."""
    began = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=10)
    async with CreditLedger(database, CONFIG, clock=lambda: began) as past:
        await past.ensure_indexes()
        await past.create_user("ann", credits=3000)
        await past.create_user("bob", credits=3000)
        end = began + timedelta(days=5)
        await past.grant("ann", 10_000, action="welcome", expires_at=end, source="promo")
        await past.place_hold("ann", "answer", amount=1000, ttl=3600, metadata={"by": SECRET})
    async with CreditLedger(database, CONFIG) as ledger:
        yield Shop(ledger, database, where(replica_set_uri, database), began)


GRANT = ("--action", "purchase", "--expires-at", "2090-01-01", "--priority", "10")


async def test_a_grant_with_an_end_is_a_lot_that_the_balance_shows(shop: Shop) -> None:
    """The lots come in the order of their use, with what is in none. Others see a number only."""
    assert await shop.lines("balance", "bob") == ["3000 (30.00)"]
    assert await shop.lines("balance", "ann") == ["3000 (30.00)"]
    done, written = await shop.lines("grant", "ann", "5000", *GRANT, "--source", "order 7")
    until = "until 2090-01-01T00:00:00Z"
    balance = "balance 3000 (30.00) → 8000 (80.00)"
    assert done == f"ann: granted 5000 (50.00) for purchase {until}, {balance}"
    first = re.fullmatch(r"transaction (\w{24}), lot \1", written)
    again = await shop.facts("grant", "ann", "700", "--action", "gift", "--priority", "70")
    assert first is not None
    assert await shop.lines("balance", "ann") == [
        "8700 (87.00)",
        "lot\tamount\tamount_credits\texpires\tpriority\tsource",
        f"{first[1]}\t5000\t50.00\t2090-01-01T00:00:00Z\t10\torder 7",
        "in no lot\t3000\t30.00\t\t50\t",
        f"{again['lot_id']}\t700\t7.00\t\t70\t",
    ]
    merged = await shop.facts("grant", "ann", "1", *GRANT, "--source", "order 7")
    assert (merged["lot_id"], merged["transaction_id"] == first[1]) == (first[1], False)
    lots = (await shop.facts("balance", "ann"))["lots"]
    assert lots[0] == {
        "lot_id": first[1],
        "amount": 5001,
        "expires_at": "2090-01-01T00:00:00.000Z",
        "priority": 10,
        "source": "order 7",
    }
    assert len(lots) == 2
    await check_promises(shop.database)


async def test_a_grant_is_revoked_as_far_as_there_is_anything_left(shop: Shop) -> None:
    """Then it says what is uncollected, and a dry run says all of it before."""
    lot = (await shop.facts("grant", "ann", "5000", *GRANT))["transaction_id"]
    await shop.ledger.charge("ann", "answer", amount=7500)
    revoke = ("revoke", lot, "--action", "chargeback")
    words = "revoked 500 (5.00) for chargeback, 4500 (45.00) uncollected, balance 500 (5.00) → 0"
    tried = await shop.lines(*revoke, "--dry-run")
    assert tried == [f"ann: would be {words} (0.00)", "dry run: nothing was written"]
    assert (await shop.lines(*revoke, "--amount", "100", "--dry-run"))[0].startswith(
        "ann: would be revoked 100 (1.00) for chargeback, balance "
    )
    revoked = await shop.facts(*revoke, "--metadata", json.dumps({"why": SECRET}))
    assert (revoked["amount"], revoked["uncollected"]) == (500, 4500)
    assert (revoked["grant_transaction_id"], revoked["balance_after"]) == (lot, 0)
    code, _, errors = await shop.call(*revoke)
    assert (code, f"grant '{lot}' is revoked already" in errors) == (2, True)
    header, row, *_ = await shop.lines("history", "ann")
    assert header.endswith("\ttransaction\tnote")
    assert row.split("\t")[2:] == [
        *("revoke", "chargeback", "-500", "-5.00", "0", "0.00"),
        *(revoked["transaction_id"], "4500 (45.00) uncollected"),
    ]
    await check_promises(shop.database)


async def test_an_overdraft_lets_the_balance_go_below_zero(shop: Shop) -> None:
    """The balance and the list of users show the debt."""
    limit = ("overdraft", "bob", "1000")
    words = "set to an overdraft of 1000 (10.00), before 0 (0.00), balance 3000 (30.00)"
    tried = await shop.lines(*limit, "--dry-run")
    assert tried == [f"bob: would be {words}", "dry run: nothing was written"]
    assert (await shop.lines(*limit))[0] == f"bob: {words}"
    await shop.ledger.charge("bob", "answer", amount=3400)
    assert await shop.lines("balance", "bob") == [
        "-400 (-4.00)",
        "available 600 (6.00), overdraft 1000 (10.00)",
    ]
    listed = (await shop.facts("users"))["users"]
    assert [(row["user_id"], row["credits"]) for row in listed] == [("ann", 3000), ("bob", -400)]
    [in_debt] = (await shop.facts("users", "--below", "0"))["users"]
    assert in_debt["user_id"] == "bob"
    lowered = await shop.facts("overdraft", "bob", "0")
    assert (lowered["old_limit"], lowered["new_limit"], lowered["balance"]) == (1000, 0, -400)
    assert await shop.lines("balance", "bob") == ["-400 (-4.00)"]
    await check_promises(shop.database)


async def test_users_are_listed_without_what_has_expired(shop: Shop) -> None:
    """Nobody has written ann's expiry yet: her document still has 130.00."""
    [stored] = await rows(shop.database, "users", _id="ann")
    assert stored["credits"] == 13_000
    page = await shop.facts("users", "--limit", "1")
    assert (page["users"][0]["credits"], page["next_cursor"]) == (3000, "ann")
    below = [row["user_id"] for row in (await shop.facts("users", "--below", "3001"))["users"]]
    assert below == ["ann", "bob"]
    assert (await shop.facts("users", "--below", "3000"))["users"] == []
    page = await shop.facts("users", "--below", "3001", "--limit", "1")
    assert ([row["user_id"] for row in page["users"]], page["next_cursor"]) == (["ann"], "ann")
    assert [row async for row in shop.database["users"].find({"_id": "ann"})] == [stored]


async def test_holds_are_listed_as_of_now_and_released(shop: Shop) -> None:
    """A hold that time has ended is listed as such. An active one is released once."""
    placed = await shop.ledger.place_hold("ann", "answer", amount=2000, metadata={"by": SECRET})
    await shop.ledger.extend_hold(placed.hold_id, used=40)
    assert await shop.lines("balance", "ann") == [
        "3000 (30.00)",
        "available 1000 (10.00), held 2000 (20.00)",
    ]
    header, active, ended = await shop.lines("holds", "ann")
    assert header == (
        "ends\tstatus\taction\tamount\tamount_credits\tcaptured\tcaptured_credits"
        "\tused\tused_credits\thold"
    )
    ends = moment_to_seconds(placed.expires_at)
    shown = "active\tanswer\t2000\t20.00\t0\t0.00\t40\t0.40"
    # The report has moved the end by the hold's ttl at most.
    assert active.split("\t", 1)[1] == f"{shown}\t{placed.hold_id}"
    assert active.split("\t", 1)[0] >= ends
    end = moment_to_seconds(shop.began + timedelta(hours=1))
    assert ended.startswith(f"{end}\texpired\tanswer\t1000\t10.00\t0\t0.00\t0\t0.00\t")
    assert SECRET in (await shop.lines("holds", "ann", "--metadata"))[1]
    assert len(await shop.lines("holds", "ann", "--status", "active")) == 2
    code, _, errors = await shop.call("holds", "ann", "--limit", "1")
    assert (code, errors) == (0, "only the newest 1 are shown: --limit shows more, up to 1000\n")
    assert (await shop.call("holds", "bob"))[2] == "bob: no such holds\n"
    [first, _] = (await shop.facts("holds", "ann"))["holds"]
    assert (first["hold_id"], first["status"], first["used"]) == (placed.hold_id, "active", 40)
    assert "metadata" not in first

    release = ("release", placed.hold_id)
    words = "freed of the hold of 2000 (20.00) for answer"
    tried = await shop.lines(*release, "--dry-run")
    assert tried == [f"ann: would be {words}", "dry run: nothing was written"]
    assert (await shop.ledger.get_user("ann")).held == 2000
    metadata = ("--metadata", json.dumps({"operator": "Ada", "reason": SECRET}))
    for _ in range(2):
        assert await shop.lines(*release, *metadata) == [f"ann: {words}", f"hold {placed.hold_id}"]
    assert await shop.lines("balance", "ann") == ["3000 (30.00)"]
    attempts = await shop.ledger.get_audit_log("ann", action="release_hold")
    assert [row.metadata for row in attempts] == [{"operator": "Ada", "reason": SECRET}]
    await check_promises(shop.database)


async def test_records_show_what_time_has_done(shop: Shop, replica_set_uri: str) -> None:
    """An expiry is dated when it was due, and noted as written later. Holds move no amount."""
    hold = await shop.ledger.place_hold("ann", "answer", amount=2000)
    await shop.ledger.capture_hold(hold.hold_id, amount=300)
    header, captured, expired, *before = await shop.lines("history", "ann")
    assert header.endswith("\ttransaction\tnote")
    assert captured.split("\t")[2:6] == ["capture", "answer", "-300", "-3.00"]
    due = moment_to_seconds(shop.began + timedelta(days=5))
    assert expired.split("\t")[:8] == [
        *("3", due, "expire", "expire", "-10000", "-100.00", "3000", "30.00")
    ]
    assert expired.endswith("\twritten later")
    assert all(line.endswith("\t") for line in (captured, *before))
    newest, expiry, *_ = (await shop.facts("history", "ann"))["transactions"]
    assert (newest["hold_id"], newest["written_at"]) == (hold.hold_id, None)
    assert expiry["written_at"] > expiry["created_at"]
    assert [leg["source"] for leg in expiry["legs"]] == ["promo"]

    shown = [line.split("\t") for line in await shop.lines("audit", "ann")]
    assert shown[0][-1] == "note"
    notes = {(row[2], row[4], row[-1]) for row in shown[1:]}
    assert ("place_hold", "", "2000 (20.00) held") in notes
    assert ("expire", "-10000", "") in notes
    assert await shop.lines("history", "bob") == [
        "seq\twhen\toperation\taction\tamount\tamount_credits\tbalance\tbalance_credits"
        "\ttransaction",
        (await shop.lines("history", "bob"))[1],
    ]
    code, terminal = await run_on_terminal("history", *shop.here, "ann")
    assert code == 0
    assert re.search(r"expire +expire +-100\.00 +30\.00 +\w{24} +written later", terminal)


async def test_a_report_tells_what_expired_and_was_revoked_from_what_was_spent(shop: Shop) -> None:
    """Captures are spent."""
    lot = (await shop.facts("grant", "ann", "5000", *GRANT))["transaction_id"]
    hold = await shop.ledger.place_hold("ann", "answer", amount=2000)
    await shop.ledger.capture_hold(hold.hold_id, amount=300)
    await shop.ledger.revoke(lot, 1000, action="chargeback")
    lines = await shop.lines("report")
    totals = {
        name: amount for name, amount, *_ in (line.split("\t") for line in lines if "\t" in line)
    }
    assert totals == {
        "total": "amount",
        "granted": str(3000 + 3000 + 10_000 + 5000),
        "spent": "300",
        "refunded": "0",
        "net spend": "300",
        "expired": "10000",
        "revoked": "1000",
    }


WRONG: tuple[tuple[tuple[str, ...], str], ...] = (
    (("grant", "bob", "1", "--action", "x", "--expires-at", "2020-01-01"), "--expires-at"),
    (("grant", "bob", "1", "--action", "x", "--expires-at", "soon"), "--expires-at"),
    (("grant", "bob", "1", "--action", "x", "--priority", "101"), "--priority"),
    (("grant", "bob", "1", "--action", "x", "--priority", "high"), "--priority"),
    (("grant", "bob", "1", "--action", "x", "--source", ""), "--source"),
    (("revoke", NEVER_USED, "--action", "x"), NEVER_USED),
    (("revoke", "", "--action", "x"), "TRANSACTION"),
    (("revoke", NEVER_USED), "--action"),
    (("revoke", NEVER_USED, "--action", "x", "--amount", "0"), "--amount"),
    (("revoke", NEVER_USED, "--action", "x", "--amount", "1.5"), "--amount"),
    (("overdraft", "bob", "-1"), "-1"),
    (("overdraft", "bob", "1.5"), "LIMIT"),
    (("overdraft", "bob", "9007199254740992"), "LIMIT"),
    (("overdraft", "eve", "1"), "eve"),
    (("release", NEVER_USED), NEVER_USED),
    (("release", ""), "HOLD"),
    (("holds", "eve"), "eve"),
    (("holds", "ann", "--status", "open"), "--status"),
    (("holds", "ann", "--limit", "1001"), "--limit"),
)


async def test_wrong_input_gets_one_line_that_names_it(shop: Shop) -> None:
    """Exit code 2, and nothing is written."""
    before = [await rows(shop.database, name) for name in ("users", "transactions", "holds")]
    for arguments, told in WRONG:
        code, _, errors = await shop.call(*arguments)
        assert (code, errors.count("\n"), told in errors) == (2, 1, True), (arguments, errors)
    after = [await rows(shop.database, name) for name in ("users", "transactions", "holds")]
    assert after == before

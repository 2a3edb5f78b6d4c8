"""The promises, checked straight from the collections and the server, without the library's reads.

These checks follow the README's promises, not the code that keeps them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo import CollectionNames

Row: TypeAlias = dict[str, Any]
Client: TypeAlias = AsyncMongoClient[Row]
Database: TypeAlias = AsyncDatabase[Row]

NAMES = CollectionNames()
_CHARGES = ("charge", "capture")
_MOVING_NOTHING = {"place_hold", "extend_hold", "release_hold", "capture"}


async def check_promises(database: Database, names: CollectionNames = NAMES) -> None:
    """Check promises 1, 2, 4, 5, 6 and 8 for every row of a database that only the ledger wrote.

    So are lots, which the legs of the rows lead to, and holds, which users and rows agree with.
    """
    users = await rows(database, names.users)
    transactions = await rows(database, names.transactions)
    audit_logs = await rows(database, names.audit_logs)
    records = await rows(database, names.idempotency_records)
    by_user: dict[str, list[Row]] = defaultdict(list)
    for transaction in transactions:
        by_user[transaction["userId"]].append(transaction)
    assert by_user.keys() == {user["_id"] for user in users}
    for user in users:
        chain = sorted(by_user[user["_id"]], key=lambda row: int(row["seq"]))
        _check_chain(user, chain)
        _check_lots(user, chain)
    _check_holds(users, await rows(database, names.holds), transactions)
    _check_refunds(transactions)
    _check_revocations(transactions)
    _check_audit_logs(transactions, audit_logs)
    _check_keys(transactions, records)


def _check_chain(user: Row, chain: list[Row]) -> None:
    """Check that one user's transactions lead from nothing to the balance without a gap."""
    assert [row["seq"] for row in chain] == list(range(1, len(chain) + 1)), user["_id"]
    assert user["seq"] == len(chain), user["_id"]
    assert user["credits"] == sum(row["amount"] for row in chain), user["_id"]
    assert user["updatedAt"] == chain[-1]["createdAt"], user["_id"]
    balance, limit, moment = 0, 0, chain[0]["createdAt"]
    for row in chain:
        # A debt outlives the limit that allowed it.
        limit = max(limit, row.get("newOverdraft", 0))
        assert row["balanceBefore"] == balance, row
        assert row["balanceAfter"] == balance + row["amount"], row
        assert row["balanceAfter"] >= -limit, row
        assert row["createdAt"] >= moment, row
        balance, moment = row["balanceAfter"], row["createdAt"]
    assert user["credits"] == balance, user["_id"]


def _check_lots(user: Row, chain: list[Row]) -> None:
    """Check that the legs of the rows lead to the user's lots, and that no lot was used late."""
    lots: dict[Any, Row] = {}
    for row in chain:
        legs = row.get("legs", [])
        assert not legs or sum(leg["amount"] for leg in legs) == row["amount"], row
        for leg in legs:
            if leg["lot"] is None:
                continue
            lot = lots.setdefault(leg["lot"], {**leg, "amount": 0})
            assert leg == {**lot, "amount": leg["amount"]}, row
            lot["amount"] += leg["amount"]
            assert lot["amount"] >= 0, row
            ends = leg["expiresAt"]
            if row["operation"] == "charge":
                assert ends is None or row["createdAt"] < ends, row
            elif row["operation"] == "expire":
                assert ends <= row["createdAt"], row
    stored = user.get("creditExtras", {}).get("lots", [])
    left = {lot_id: lot for lot_id, lot in lots.items() if lot["amount"]}
    assert {lot["id"]: {"lot": lot["id"], **lot} for lot in stored} == {
        lot_id: {"id": lot_id, **lot} for lot_id, lot in left.items()
    }, user["_id"]


def _check_holds(users: list[Row], holds: list[Row], transactions: list[Row]) -> None:
    """Check that users know their active holds, which are covered, and that captures add up."""
    active = {row["_id"]: row for row in holds if row["status"] == "active"}
    known: set[Any] = set()
    for user in users:
        pinned: dict[Any, int] = defaultdict(int)
        extras = user.get("creditExtras", {})
        for hold in extras.get("holds", []):
            row = active[hold["id"]]
            known.add(hold["id"])
            assert row["userId"] == user["_id"], row
            for name in ("action", "captured", "uncollected", "used", "expiresAt", "overage"):
                assert hold[name] == row[name], (hold, row)
            held = sum(pin["amount"] for pin in hold["pins"])
            assert held == max(row["amount"] - row["captured"], 0), (hold, row)
            for pin in hold["pins"]:
                pinned[pin["lot"]] += pin["amount"]
        for lot in extras.get("lots", []):
            assert pinned[lot["id"]] <= lot["amount"], user
        assert pinned.keys() <= {None} | {lot["id"] for lot in extras.get("lots", [])}, user
    assert known == active.keys()
    captured: dict[Any, int] = defaultdict(int)
    for row in transactions:
        if row["operation"] == "capture":
            captured[row["holdId"]] -= row["amount"]
    by_id = {row["_id"]: row for row in holds}
    assert captured.keys() <= by_id.keys()
    for hold_id, row in by_id.items():
        assert row["captured"] == captured[hold_id], row


def _check_refunds(transactions: Iterable[Row]) -> None:
    """Check that refunds of a charge never exceed it, and go to the user who paid it."""
    charges = {row["_id"]: row for row in transactions if row["operation"] in _CHARGES}
    refunded: dict[Any, int] = defaultdict(int)
    for row in transactions:
        if row.get("refundOf") is not None:
            assert charges[row["refundOf"]]["userId"] == row["userId"], row
            refunded[row["refundOf"]] += row["amount"]
    for charge_id, amount in refunded.items():
        assert amount <= -charges[charge_id]["amount"], charges[charge_id]


def _check_revocations(transactions: Iterable[Row]) -> None:
    """Check that revocations of a grant never exceed it."""
    by_id = {row["_id"]: row for row in transactions}
    revoked: dict[Any, int] = defaultdict(int)
    for row in by_id.values():
        if row["operation"] == "revoke":
            assert by_id[row["revokeOf"]]["userId"] == row["userId"], row
            revoked[row["revokeOf"]] += row["uncollected"] - row["amount"]
    for grant_id, amount in revoked.items():
        assert amount <= by_id[grant_id]["amount"], by_id[grant_id]


def _check_audit_logs(transactions: Iterable[Row], audit_logs: Iterable[Row]) -> None:
    """Check that transactions and the audit rows of successes match one to one.

    Successes on holds that moved no credits have audit rows alone.
    """
    by_id = {row["_id"]: row for row in transactions}
    successes = {row["_id"]: row for row in audit_logs if row["status"] == "success"}
    of_holds = [row for row in successes.values() if "balanceAfter" not in row["details"]]
    assert {row["operation"] for row in of_holds} <= _MOVING_NOTHING
    assert successes.keys() - {row["_id"] for row in of_holds} == by_id.keys()
    for row_id, row in by_id.items():
        for field in ("userId", "operation", "action", "createdAt", "metadata"):
            assert successes[row_id][field] == row[field], row
        assert successes[row_id]["details"]["amount"] == row["amount"], row
    for row in audit_logs:
        assert row["status"] in ("success", "failed"), row
        assert row["status"] == "success" or row["_id"] not in by_id, row


def _check_keys(transactions: Iterable[Row], records: Iterable[Row]) -> None:
    """Check that keys and the transactions with a key match one to one.

    Keys of calls that moved no credits have no transaction.
    """
    keyed = [row for row in transactions if row["idempotencyKey"] is not None]
    by_key = {row["idempotencyKey"]: row for row in keyed}
    assert len(by_key) == len(keyed), "one key, two effects"
    moving = [row for row in records if not _moves_nothing(row)]
    assert by_key.keys() == {row["_id"] for row in moving}
    for record in moving:
        transaction, result = by_key[record["_id"]], record["result"]
        assert record["userId"] == transaction["userId"] == result["user_id"], record["operation"]
        assert record["operation"] == transaction["operation"]
        if record["operation"] == "create_user":
            assert result["credits"] == transaction["balanceAfter"]
        else:
            assert result["transaction_id"] == str(transaction["_id"])


def _moves_nothing(record: Row) -> bool:
    """Whether a key stands for a call on a hold that took no credits."""
    result = record["result"]
    return "hold_id" in result and result.get("transaction_id") is None


async def rows(database: Database, collection: str, **query: Any) -> list[Row]:
    """Return a collection's documents, or those with these values."""
    return await database[collection].find(query).to_list(None)


async def count(database: Database, collection: str, **query: Any) -> int:
    """Count a collection's documents, or those with these values."""
    return await database[collection].count_documents(query)


async def open_transactions(client: Client) -> int:
    """Count the transactions that are open on the primary."""
    status = await client.admin.command("serverStatus")
    return int(status["transactions"]["currentOpen"])


async def check_that_no_transaction_stays_open(client: Client, seconds: float = 4.0) -> None:
    """Check this within seconds: after a minute the server itself ends open transactions."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    still_open = await open_transactions(client)
    while still_open and loop.time() < deadline:
        await asyncio.sleep(0.05)
        still_open = await open_transactions(client)
    assert still_open == 0, f"{still_open} transactions are open {seconds} s later"


async def end_all_transactions(client: Client) -> None:
    """End all transactions, so that one test cannot fail for what another left open."""
    if await open_transactions(client):
        await client.admin.command({"killAllSessions": []})


def with_options(uri: str, **options: Any) -> str:
    """Return the URI with more options."""
    given = "&".join(f"{name}={value}" for name, value in options.items())
    if "?" in uri:
        return f"{uri}&{given}"
    has_path = uri.count("/") > 2
    return f"{uri}?{given}" if has_path else f"{uri}/?{given}"


class Failure:
    """A fail point while it is set."""

    def __init__(self) -> None:
        self.hits = 0


@asynccontextmanager
async def failing(
    client: Client, app_name: str, mode: Any = "alwaysOn", **data: Any
) -> AsyncIterator[Failure]:
    """Make commands of the clients with this name fail on the primary, and count the failures."""
    point: Row = {"configureFailPoint": "failCommand"}
    failure = Failure()
    before = await client.admin.command(
        {**point, "mode": mode, "data": {"appName": app_name, **data}}
    )
    try:
        yield failure
    finally:
        after = await client.admin.command({**point, "mode": "off"})
        failure.hits = after["count"] - before["count"]

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
from credit_mongo.core.operations import WITHOUT_TRANSACTION

Row: TypeAlias = dict[str, Any]
Client: TypeAlias = AsyncMongoClient[Row]
Database: TypeAlias = AsyncDatabase[Row]

NAMES = CollectionNames()


async def check_promises(database: Database, names: CollectionNames = NAMES) -> None:
    """Check promises 1, 2, 4, 5, 6 and 8 for every row of a database that only the ledger wrote."""
    users = await rows(database, names.users)
    transactions = await rows(database, names.transactions)
    audit_logs = await rows(database, names.audit_logs)
    records = await rows(database, names.idempotency_records)
    by_user: dict[str, list[Row]] = defaultdict(list)
    for transaction in transactions:
        by_user[transaction["userId"]].append(transaction)
    assert by_user.keys() == {user["_id"] for user in users}
    for user in users:
        _check_chain(user, sorted(by_user[user["_id"]], key=lambda row: int(row["seq"])))
    _check_refunds(transactions)
    _check_audit_logs(transactions, audit_logs)
    _check_keys(transactions, records)


def _check_chain(user: Row, chain: list[Row]) -> None:
    """Check that one user's transactions lead from nothing to the balance without a gap."""
    assert [row["seq"] for row in chain] == list(range(1, len(chain) + 1)), user["_id"]
    assert user["seq"] == len(chain), user["_id"]
    assert user["credits"] == sum(row["amount"] for row in chain), user["_id"]
    assert user["updatedAt"] == chain[-1]["createdAt"], user["_id"]
    balance, moment = 0, chain[0]["createdAt"]
    for row in chain:
        assert row["balanceBefore"] == balance, row
        assert row["balanceAfter"] == balance + row["amount"], row
        assert row["balanceAfter"] >= 0, row
        assert row["createdAt"] >= moment, row
        balance, moment = row["balanceAfter"], row["createdAt"]
    assert user["credits"] == balance >= 0, user["_id"]


def _check_refunds(transactions: Iterable[Row]) -> None:
    """Check that refunds of a charge never exceed it, and go to the user who paid it."""
    charges = {row["_id"]: row for row in transactions if row["operation"] == "charge"}
    refunded: dict[Any, int] = defaultdict(int)
    for row in transactions:
        if row.get("refundOf") is not None:
            assert charges[row["refundOf"]]["userId"] == row["userId"], row
            refunded[row["refundOf"]] += row["amount"]
    for charge_id, amount in refunded.items():
        assert amount <= -charges[charge_id]["amount"], charges[charge_id]


def _moved_nothing(audit_log: Row) -> bool:
    """Whether an attempt succeeded without a transaction: holds move no credits by themselves."""
    operation, details = audit_log.get("operation"), audit_log["details"]
    return operation in WITHOUT_TRANSACTION or (operation == "capture" and "amount" not in details)


def _check_audit_logs(transactions: Iterable[Row], audit_logs: Iterable[Row]) -> None:
    """Check that transactions and the audit rows of successes match one to one."""
    by_id = {row["_id"]: row for row in transactions}
    successes = {
        row["_id"]: row
        for row in audit_logs
        if row["status"] == "success" and not _moved_nothing(row)
    }
    assert successes.keys() == by_id.keys()
    for row_id, row in by_id.items():
        for field in ("userId", "operation", "action", "createdAt", "metadata"):
            assert successes[row_id][field] == row[field], row
        assert successes[row_id]["details"]["amount"] == row["amount"], row
    for row in audit_logs:
        assert row["status"] in ("success", "failed"), row
        assert row["status"] == "success" or row["_id"] not in by_id, row


def _check_keys(transactions: Iterable[Row], records: Iterable[Row]) -> None:
    """Check that keys and the transactions with a key match one to one."""
    keyed = [row for row in transactions if row["idempotencyKey"] is not None]
    by_key = {row["idempotencyKey"]: row for row in keyed}
    assert len(by_key) == len(keyed), "one key, two effects"
    assert by_key.keys() == {row["_id"] for row in records}
    for record in records:
        transaction, result = by_key[record["_id"]], record["result"]
        assert record["userId"] == transaction["userId"] == result["user_id"], record["operation"]
        assert record["operation"] == transaction["operation"]
        if record["operation"] == "create_user":
            assert result["credits"] == transaction["balanceAfter"]
        else:
            assert result["transaction_id"] == str(transaction["_id"])


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

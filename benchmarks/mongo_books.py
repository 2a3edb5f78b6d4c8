"""Checks the books of a peer that keeps them in this library's four collections.

Straight from the rows, without the library: users, transactions, audit logs, idempotency records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.load import COST, Outcome
from benchmarks.peers import BooksAreOffError

__all__ = ["LOWEST_ID", "Account", "Base", "check_books"]

_Row = dict[str, Any]
_KEYS_AT_ONCE: Final = 10_000
LOWEST_ID: Final = ObjectId("0" * 24)


@dataclass(frozen=True)
class Account:
    """What a user had at some moment."""

    credits: int
    seq: int


@dataclass(frozen=True)
class Base:
    """What was there before the run. Its rows are not looked at again, only counted."""

    last_id: ObjectId = LOWEST_ID
    """No row of the base has a higher id; every row of the run has."""
    accounts: Mapping[str, Account] = field(default_factory=dict)
    transactions: int = 0
    idempotency_records: int = 0


async def check_books(
    database: AsyncDatabase[_Row],
    opening_credits: int,
    outcome: Outcome,
    base: Base | None = None,
) -> None:
    """All that was acknowledged is there, in chains without a gap, and nothing else is.

    Without a base, each user begins with one transaction: the opening credits. Raises
    BooksAreOffError.
    """
    base = base or Base()
    since_base = {"_id": {"$gt": base.last_id}}
    fields = ("userId", "seq", "amount", "balanceBefore", "balanceAfter", "idempotencyKey")
    transactions = await (
        database["transactions"].find(since_base, dict.fromkeys(fields, 1)).to_list(None)
    )
    chains: dict[str, list[_Row]] = defaultdict(list)
    for row in transactions:
        chains[row["userId"]].append(row)
    missing = set(outcome.acknowledged)
    async for user in database["users"].find({}, {"credits": 1, "seq": 1}):
        missing.discard(user["_id"])
        chain = sorted(chains.pop(user["_id"], []), key=lambda row: int(row["seq"]))
        before = base.accounts.get(user["_id"], Account(0, 0))
        _check_chain(user, chain, before)
        charges = len(chain) if base.accounts else len(chain) - 1
        opened_with = before.credits if base.accounts else opening_credits
        _check_charges(user, charges, opened_with, outcome)
    _must(not missing, f"{len(missing)} users that were charged are not there")
    _must(not chains, f"{len(chains)} users have transactions and no account")
    await _check_audit_logs(database, transactions, base)
    await _check_keys(database, transactions, base)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BooksAreOffError(otherwise)


def _check_chain(user: _Row, chain: list[_Row], before: Account) -> None:
    """A user's transactions lead from what was before to the balance, without a gap."""
    name, balance, seq = user["_id"], before.credits, before.seq
    for row in chain:
        seq += 1
        _must(row["seq"] == seq, f"{name}: transaction {row['seq']} stands where {seq} should")
        _must(row["balanceBefore"] == balance, f"{name}: the chain is broken at {seq}")
        balance += row["amount"]
        _must(row["balanceAfter"] == balance >= 0, f"{name}: a wrong balance after {seq}")
    _must(user["seq"] == seq, f"{name}: seq is {user['seq']}, with {seq} transactions")
    _must(
        user["credits"] == balance,
        f"{name}: has {user['credits']} credits, and transactions for {balance}",
    )


def _check_charges(user: _Row, charges: int, opened_with: int, outcome: Outcome) -> None:
    """A user paid for every charge that was acknowledged, and for no other."""
    name = user["_id"]
    least = outcome.acknowledged.get(name, 0)
    most = least + outcome.unknown.get(name, 0)
    _must(
        least <= charges <= most,
        f"{name}: {charges} charges stored, {least} acknowledged, {most - least} unknown",
    )
    paid = opened_with - int(user["credits"])
    _must(paid == COST * charges, f"{name}: paid {paid} for {charges} charges at {COST}")


async def _check_audit_logs(
    database: AsyncDatabase[_Row], transactions: list[_Row], base: Base
) -> None:
    audit_logs = database["audit_logs"]
    rows = await audit_logs.find({"_id": {"$gt": base.last_id}}, {"status": 1}).to_list(None)
    _must(all(row["status"] == "success" for row in rows), "an attempt failed")
    _must(
        {row["_id"] for row in rows} == {row["_id"] for row in transactions},
        f"{len(rows)} audit rows do not match {len(transactions)} transactions",
    )
    for collection in ("audit_logs", "transactions"):
        count = await database[collection].estimated_document_count()
        expected = base.transactions + len(transactions)
        _must(count == expected, f"{collection}: {count} rows, {expected} expected")


async def _check_keys(database: AsyncDatabase[_Row], transactions: list[_Row], base: Base) -> None:
    """Every charge has its key, and every key its one charge."""
    by_key = {
        row["idempotencyKey"]: row for row in transactions if row.get("idempotencyKey") is not None
    }
    keys = list(by_key)
    records = database["idempotency_records"]
    found = 0
    for begin in range(0, len(keys), _KEYS_AT_ONCE):
        some = {"_id": {"$in": keys[begin : begin + _KEYS_AT_ONCE]}}
        async for record in records.find(some, {"userId": 1, "result.transaction_id": 1}):
            row = by_key[record["_id"]]
            found += 1
            _must(record["userId"] == row["userId"], "a key belongs to another user")
            _must(record["result"]["transaction_id"] == str(row["_id"]), "a key tells another id")
    charged = sum(row["amount"] < 0 for row in transactions)
    _must(found == len(keys) == charged, f"{found} records, {len(keys)} keys, {charged} charges")
    count = await records.estimated_document_count()
    expected = base.idempotency_records + len(keys)
    _must(count == expected, f"idempotency_records: {count} rows, {expected} expected")

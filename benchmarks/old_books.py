"""Books with a past: years of transactions with their audit logs, inserted directly."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import charge_rows
from benchmarks.load import COST, OPENING_CREDITS
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditLedger

__all__ = ["fill"]

_ROWS_AT_ONCE: Final = 5_000
# All rows lie between these ages.
_OLDEST: Final = timedelta(days=700)
_NEWEST: Final = timedelta(days=200)


async def fill(
    database: AsyncDatabase[dict[str, Any]],
    users: tuple[str, ...],
    rows: int,
    *,
    with_keys: bool = False,
) -> None:
    """Chains of old charges, each after a grant; the users take turns.

    With keys, each has a record of its key, which is still remembered.
    """
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
    begin = datetime.now(timezone.utc) - _OLDEST
    step = (_OLDEST - _NEWEST) / rows
    for first in range(0, rows, _ROWS_AT_ONCE):
        made = [
            _row(users, number, begin + step * number)
            for number in range(first, min(first + _ROWS_AT_ONCE, rows))
        ]
        names = ("transactions", "audit_logs", "idempotency_records")
        for name, documents in zip(names, zip(*made, strict=True), strict=True):
            if name == names[-1] and not with_keys:
                continue
            await database.command(
                {"insert": name, "documents": list(documents), "writeConcern": {"w": 1}}
            )
    now = datetime.now(timezone.utc)
    accounts = []
    for number, user_id in enumerate(users):
        seq = rows // len(users) + (number < rows % len(users))
        credits_left = OPENING_CREDITS - COST * (seq - 1)
        accounts.append(
            {"_id": user_id, "credits": credits_left, "seq": seq, "createdAt": begin}
            | {"membershipTier": None, "membershipExpiresAt": None, "updatedAt": now - _NEWEST}
        )
    await database["users"].insert_many(accounts)
    await database.client.admin.command("fsync")


def _row(
    users: tuple[str, ...], number: int, now: datetime
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    earlier, user = divmod(number, len(users))
    balance = OPENING_CREDITS - COST * (earlier - 1) if earlier else 0
    cost = COST if earlier else -OPENING_CREDITS
    transaction, audit_log, record = charge_rows(
        users[user], earlier + 1, balance, cost=cost, key=f"{number:032x}", now=now
    )
    if not earlier:
        transaction["operation"] = audit_log["operation"] = "grant"
    audit_log["details"] = {
        name: transaction[name] for name in ("amount", "balanceBefore", "balanceAfter")
    }
    record |= {
        "operation": transaction["operation"],
        "fingerprint": "0" * 64,
        "expiresAt": now + _OLDEST + timedelta(days=2),
    }
    transaction["keyExpiresAt"] = record["expiresAt"]
    return transaction, audit_log, record

"""Books as years of use would have left them, inserted directly, and what the server does there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any, Final
from uuid import uuid4

from bson import ObjectId

from credit_mongo import CreditConfig, CreditLedger
from tests.integration.promises import Client, Database, Row

__all__ = ["CONFIG", "HEAVY", "LIGHT", "RARE", "Books", "Examined", "grown_books"]

HEAVY: Final = "heavy"
"""A user with half of all rows."""
LIGHT: Final = "light 0000"
"""A user with few of them."""
RARE: Final = "top-up"
"""An action of which each user has two rows, the oldest ones."""
ACTIONS: Final = ("post", "image", "translate", "complete")
CONFIG: Final = CreditConfig(
    costs={action: {"default": 1} for action in ACTIONS},
    # The server may be busy with tens of thousands of rows that were just inserted.
    operation_timeout_seconds=120,
)
_ROWS_OF_LIGHT: Final = 25
_FAILED_EVERY: Final = 10
_random: Final = Random(14)
_PROFILE: Final = "system.profile"
_COUNT: Final = {"$group": {"_id": 1, "n": {"$sum": 1}}}
"""The driver's stage for ``count_documents``."""
# Old enough to be archived and cleaned up, but their keys are still remembered.
_BEGINNING: Final = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=100)


@dataclass(frozen=True)
class Examined:
    """What the server did for one command."""

    command: str
    """Operation and collection."""
    keys: int
    rows: int
    """Returned or changed."""
    plan: str
    is_sorted: bool
    """In memory."""
    body: Row = field(repr=False, compare=False)


class Books:
    """A database, and a ledger that works in it."""

    def __init__(self, database: Database, ledger: CreditLedger) -> None:
        self.database = database
        self.ledger = ledger

    async def watch(self) -> None:
        """Let the server note each command from now on."""
        await self.database.command("profile", 0)
        await self.database.drop_collection(_PROFILE)
        await self.database.create_collection(_PROFILE, capped=True, size=64 << 20)
        await self.database.command("profile", 2)

    async def examined(self) -> list[Examined]:
        """Return what the server has noted, also in transactions, and end the watch."""
        await self.database.command("profile", 0)
        noted = await self.database[_PROFILE].find({"planSummary": {"$exists": True}}).to_list()
        return [_examined(each) for each in noted]


def _examined(noted: Any) -> Examined:
    collection = noted["ns"].partition(".")[2]
    body = noted.get("originatingCommand", noted["command"])
    rows = sum(noted.get(name, 0) for name in ("nreturned", "nMatched", "ndeleted"))
    if _COUNT in body.get("pipeline", ()) and not noted["docsExamined"]:
        # It returns one row, whatever it has counted: index keys.
        rows = noted["keysExamined"]
    name = noted["op"]
    if name == "command":
        name = next(iter(body))
    return Examined(
        f"{name} {collection}",
        noted.get("keysExamined", 0),
        rows,
        noted["planSummary"],
        noted.get("hasSortStage", False),
        body,
    )


@asynccontextmanager
async def grown_books(client: Client, size: int) -> AsyncIterator[Books]:
    """Books of ``size`` transactions: half of one user's, the others of users with few each."""
    database = client[f"test_{uuid4().hex[:12]}"]
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        users = {HEAVY: size // 2}
        users |= {f"light {n:04}": _ROWS_OF_LIGHT for n in range(size // 2 // _ROWS_OF_LIGHT)}
        rows: dict[str, list[Row]] = defaultdict(list)
        for user_id, count in users.items():
            _add_user(rows, user_id, count)
            await _insert(database, rows, at_least=5000)
        await _insert(database, rows)
        yield Books(database, ledger)
    await client.drop_database(database.name)


async def _insert(database: Database, rows: dict[str, list[Row]], *, at_least: int = 1) -> None:
    for name, documents in rows.items():
        if len(documents) >= at_least:
            for begin in range(0, len(documents), 5000):
                some = documents[begin : begin + 5000]
                await database[name].insert_many(some, ordered=False)
            documents.clear()


def _add_user(rows: dict[str, list[Row]], user_id: str, count: int) -> None:
    balance, moment, add = 0, _BEGINNING, rows.__getitem__
    # Spread over the same time, however many there are.
    step = timedelta(days=90) / count
    for seq in range(1, count + 1):
        moment = _BEGINNING + (seq - 1) * step
        moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        amount, operation, action = -1, "charge", ACTIONS[seq % len(ACTIONS)]
        if seq == 1:
            amount, operation, action = 10**6, "create_user", "create_user"
        elif seq <= 3:
            amount, operation, action = 10, "grant", RARE
        same: Row = {"userId": user_id, "operation": operation, "action": action, "metadata": None}
        changes = {"amount": amount, "balanceBefore": balance, "balanceAfter": balance + amount}
        # As if all users had been there at the same time: between two ids of one are others'.
        same["createdAt"], row_id = moment, ObjectId(_random.randbytes(12))
        key, expires_at = f"{user_id} {seq}", moment + timedelta(days=95 if seq % 2 else 365)
        keyed: Row = {"idempotencyKey": key, "keyExpiresAt": expires_at}
        keyed = keyed if operation == "charge" else {}
        add("transactions").append({"_id": row_id, "seq": seq, **same, **changes, **keyed})
        audit = {"status": "success", "details": changes, "errorMessage": None}
        add("audit_logs").append({"_id": row_id, **same, **audit})
        if seq % _FAILED_EVERY == 0:
            refused = {"status": "failed", "details": {"code": "X"}, "errorMessage": "refused"}
            add("audit_logs").append({"_id": ObjectId(), **same, **refused})
        if operation == "charge":
            result = {"transaction_id": str(row_id), "balance_before": balance, "cost": 1}
            result |= {"balance_after": balance - 1, "action": action, "user_id": user_id}
            record = {"operation": operation, "userId": user_id, "fingerprint": "f" * 64}
            dates = {"createdAt": moment, "expiresAt": expires_at}
            add("idempotency_records").append({"_id": key, **record, "result": result, **dates})
        balance += amount
    add("users").append(
        {
            "_id": user_id,
            "credits": balance,
            "seq": count,
            "membershipTier": None,
            "membershipExpiresAt": None,
            "createdAt": _BEGINNING,
            "updatedAt": moment,
        }
    )

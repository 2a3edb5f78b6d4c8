"""Deployments of the Credit SDK as its Prisma schema lays them out, for the tests of the import."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.maintenance.imports.importing import import_credit_sdk
from credit_mongo.maintenance.imports.report import ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.sources import source_of
from credit_mongo.maintenance.imports.tables import Names
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.promises import Database, check_promises

__all__ = [
    "BEGIN",
    "COLUMNS",
    "CONFIG",
    "Deployment",
    "SqliteFile",
    "check_books",
    "filled",
    "imported",
]

BEGIN: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)
_SECOND: Final = timedelta(seconds=1)


@dataclass
class Deployment:
    """What the SDK does with its tables: the rows, by table."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    now: datetime = BEGIN

    def sign_up(self, user_id: str, credits_given: Any = 0, tier: str | None = None) -> None:
        """The application makes a user. No transaction says where the credits came from."""
        at = self._tick()
        self.users[user_id] = {
            "id": user_id,
            "credits": credits_given,
            "membershipTier": tier,
            "membershipExpiresAt": None,
            "createdAt": at,
            "updatedAt": at,
        }

    def move(
        self,
        user_id: str,
        operation: str,
        amount: Any,
        *,
        action: str = "post",
        key: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Charge (a negative amount), refund or grant. Returns the transaction's id."""
        user, at = self.users[user_id], self._tick()
        before = user["credits"]
        after = before + amount
        user |= {"credits": after, "updatedAt": at}
        own = metadata or {}
        row_id = self.add_transaction(user_id, action, amount, before, after, at=at, metadata=own)
        told = {"operation": action, "balanceBefore": before, "balanceAfter": after}
        self.add_audit(user_id, operation, "success", {**told, "transactionId": row_id, **own})
        if key is not None:
            result = {"success": True, "transactionId": row_id, "balanceAfter": after}
            self.add_key(key, {**result, "cost": -amount, "balanceBefore": before})
        return row_id

    def upgrade(self, user_id: str, tier: str, cap: int, *, key: str | None = None) -> None:
        """Set the tier, and the credits to its cap."""
        user, at = self.users[user_id], self._tick()
        before = user["credits"]
        facts = {"oldTier": user["membershipTier"], "newTier": tier, "creditsDelta": cap - before}
        user |= {"credits": cap, "membershipTier": tier, "updatedAt": at}
        row_id = self.add_transaction(
            user_id, "tier-upgrade", cap - before, before, cap, at=at, metadata=facts
        )
        self.add_audit(user_id, "upgradeTier", "success", {**facts, "transactionId": row_id})
        if key is not None:
            self.add_key(key, {"success": True, "transactionId": row_id, **facts})

    def fail(self, user_id: str, action: str = "post") -> None:
        """A charge that is refused."""
        told = {"operation": action, "error": "Insufficient credits", "job": 7}
        self.add_audit(user_id, "charge", "failed", told, error="Insufficient credits")

    def add_transaction(
        self,
        user_id: str,
        action: str,
        amount: Any,
        before: Any,
        after: Any,
        *,
        at: datetime | None = None,
        metadata: Any = None,
    ) -> str:
        """Add a row as it is."""
        row_id = f"ctx{len(self.rows['Transaction']):08d}"
        self.rows["Transaction"].append(
            {
                "id": row_id,
                "userId": user_id,
                "action": action,
                "amount": amount,
                "balanceBefore": before,
                "balanceAfter": after,
                "metadata": metadata or {},
                "createdAt": at or self._tick(),
            }
        )
        return row_id

    def add_audit(
        self, user_id: str, action: str, status: str, metadata: Any, error: str | None = None
    ) -> None:
        """Add a row as it is."""
        self.rows["AuditLog"].append(
            {
                "id": f"aud{len(self.rows['AuditLog']):08d}",
                "userId": user_id,
                "action": action,
                "status": status,
                "metadata": metadata,
                "errorMessage": error,
                "createdAt": self.now + timedelta(milliseconds=3),
            }
        )

    def add_key(self, key: str, result: Any, *, lives: timedelta = timedelta(days=9999)) -> None:
        """Add a row as it is."""
        self.rows["IdempotencyRecord"].append(
            {
                "key": key,
                "result": result,
                "createdAt": self.now + timedelta(milliseconds=4),
                "expiresAt": self.now + timedelta(milliseconds=4) + lives,
            }
        )

    def _tick(self) -> datetime:
        self.now += _SECOND
        return self.now

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return all rows, by Prisma's names."""
        names = ("Transaction", "AuditLog", "IdempotencyRecord")
        return {"User": list(self.users.values()), **{name: self.rows[name] for name in names}}


COLUMNS: Final = {
    "User": ("id", "credits", "membershipTier", "membershipExpiresAt", "createdAt", "updatedAt"),
    "Transaction": (
        *("id", "userId", "action", "amount", "balanceBefore", "balanceAfter"),
        *("metadata", "createdAt"),
    ),
    "AuditLog": ("id", "userId", "action", "status", "metadata", "errorMessage", "createdAt"),
    "IdempotencyRecord": ("key", "result", "createdAt", "expiresAt"),
}


class SqliteFile:
    """A deployment on SQLite, with dates as milliseconds or as text."""

    def __init__(self, path: Path, *, dates: str = "milliseconds", amounts: str = "INTEGER"):
        self.path = path
        self.url = f"sqlite:///{path}"
        self._dates = dates
        with self._open() as connection:
            for table, columns in COLUMNS.items():
                first, *others = columns
                typed = ", ".join(f'"{name}" {_type(name, amounts)}' for name in others)
                connection.execute(f'CREATE TABLE "{table}" ("{first}" TEXT PRIMARY KEY, {typed})')
            connection.execute('CREATE INDEX t ON "Transaction" ("userId", "createdAt")')
            connection.execute('CREATE INDEX a ON "AuditLog" ("userId", "createdAt")')

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path)

    def save(self, deployment: Deployment) -> None:
        """Store all rows, and replace those that are there."""
        connection = self._open()
        with connection:
            for table, rows in deployment.tables().items():
                names = ", ".join(f'"{name}"' for name in COLUMNS[table])
                marks = ", ".join("?" for _ in COLUMNS[table])
                connection.executemany(
                    f'INSERT OR REPLACE INTO "{table}" ({names}) VALUES ({marks})',  # noqa: S608
                    [[self._stored(row.get(name)) for name in COLUMNS[table]] for row in rows],
                )
        connection.close()

    def execute(self, statement: str, *values: Any) -> None:
        """Run a statement."""
        connection = self._open()
        with connection:
            connection.execute(statement, values)
        connection.close()

    def _stored(self, value: Any) -> Any:
        if isinstance(value, datetime):
            if self._dates == "milliseconds":
                return int(value.timestamp() * 1000)
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if isinstance(value, Decimal):
            return float(value)
        if isinstance(value, dict | list):
            return json.dumps(value, default=float)
        return value


def _type(name: str, amounts: str) -> str:
    if name in ("credits", "amount", "balanceBefore", "balanceAfter"):
        return amounts
    return "DATETIME" if name.endswith("At") else "TEXT"


CONFIG = CreditConfig(
    costs={"post": {"default": 10}},
    membership={"tiers": {"free": 0, "pro": 1}, "credits_caps": {"free": 100, "pro": 500}},
)


def filled() -> Deployment:
    """Users with all that the SDK does."""
    deployment = Deployment()
    deployment.sign_up("ann", 100, "free")
    deployment.sign_up("bob")
    deployment.sign_up("cat", 7)
    deployment.move("ann", "charge", -10, key="k-charge", metadata={"job": 1})
    deployment.move("bob", "grant", 30, action="welcome")
    deployment.move("ann", "refund", 4, action="sorry", key="k-refund")
    deployment.fail("bob", "render")
    deployment.upgrade("ann", "pro", 500, key="k-upgrade")
    deployment.move("ann", "charge", -10)
    return deployment


async def imported(
    database: Database, url: str, rules: ImportRules | None = None, **options: Any
) -> ImportReport:
    """Import into a ledger, which is set up first."""
    async with CreditLedger(database, CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
    source = source_of(url, Names.of(options.pop("names", {}), options.pop("without", ())))
    return await import_credit_sdk(
        source, LedgerDatabase.of(database), rules or ImportRules(), **options
    )


async def check_books(database: Database) -> None:
    """All promises hold, and a verification finds nothing."""
    await check_promises(database)
    assert (await verify(database)).findings == ()

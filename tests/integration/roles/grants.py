"""What each role may do, and how tests look at what it did."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo.errors import OperationFailure

from credit_mongo import CreditConfig, StorageError
from credit_mongo.maintenance.roles import Privilege, Role
from tests.integration.access_control import UNAUTHORIZED
from tests.integration.promises import Client, Row

ROOT = Path(__file__).parents[3]
UTC = timezone.utc
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
APP, OTHER = "app", "other"
SETTINGS = "ledger_settings"

# Each role's privileges, written from what its work needs, not from the module that grants them.
WORK: Final[Mapping[str, Mapping[str, set[str]]]] = {
    "creditRuntime": {
        "users": {"find", "insert", "update"},
        "transactions": {"find", "insert"},
        "audit_logs": {"find", "insert"},
        "idempotency_records": {"find", "insert", "remove"},
        "holds": {"find", "insert", "update"},
        "turns": {"find", "insert", "update"},
        "paid_requests": {"find", "insert", "update"},
        "erasures": {"find"},
        "transactions_archive": {"find"},
        "audit_logs_archive": {"find"},
        "holds_archive": {"find"},
        "archive_borders": {"find"},
        SETTINGS: {"find"},
    },
    "creditArchiver": {
        SETTINGS: {"find"},
        "users": {"find"},
        "transactions": {"find", "remove"},
        "audit_logs": {"find", "remove"},
        "holds": {"find", "remove"},
        "transactions_archive": {"find", "insert", "createIndex"},
        "audit_logs_archive": {"find", "insert", "createIndex"},
        "holds_archive": {"find", "insert", "createIndex"},
        "archive_borders": {"find", "insert", "update"},
        "archive_manifests": {"find", "insert", "update"},
        "erasures": {"find"},
    },
    "creditEraser": {
        **{
            name: {"find", "remove"}
            for name in (
                *("users", "transactions", "audit_logs", "idempotency_records"),
                *("transactions_archive", "audit_logs_archive", "archive_borders"),
                *("holds", "holds_archive", "paid_requests"),
            )
        },
        "erasures": {"find", "insert", "update", "remove"},
        SETTINGS: {"find"},
    },
    "creditSetup": {
        **{
            name: {"createCollection", "createIndex", "collMod", "listIndexes"}
            for name in (
                *("users", "transactions", "audit_logs", "idempotency_records"),
                *("holds", "paid_requests"),
            )
        },
        **{
            name: {"listIndexes"}
            for name in (
                *("turns", "transactions_archive", "audit_logs_archive", "archive_manifests"),
                *("archive_borders", "erasures", "holds_archive"),
            )
        },
        SETTINGS: {"createCollection", "createIndex", "find", "insert", "listIndexes", "update"},
    },
    "creditReader": {
        **{
            name: {"find", "listIndexes"}
            for name in (
                *("users", "idempotency_records", "turns"),
                *("transactions_archive", "audit_logs_archive", "archive_manifests"),
                *("archive_borders", "erasures", "paid_requests", "holds", "holds_archive"),
                SETTINGS,
            )
        },
        # The command watch follows both.
        **{
            name: {"changeStream", "find", "listIndexes"} for name in ("transactions", "audit_logs")
        },
        "ledger_backups": {"find"},
    },
    "creditBackup": {"ledger_backups": {"find", "insert", "update"}},
    "creditRestorer": {
        **{
            name: {
                *("createCollection", "createIndex", "find", "insert", "update"),
                *("collMod", "dropCollection", "listIndexes", "remove"),
            }
            for name in (
                *("users", "transactions", "audit_logs", "idempotency_records", "turns"),
                *("transactions_archive", "audit_logs_archive", "archive_manifests"),
                *("archive_borders", "erasures", "paid_requests", "holds", "holds_archive"),
                *("ledger_migrations", "ledger_imports"),
            )
        },
        SETTINGS: {"createCollection", "createIndex", "find", "insert", "update", "listIndexes"},
        "ledger_backups": {"find", "remove"},
    },
    "creditImporter": {
        "users": {"find", "insert", "update"},
        "transactions": {"find", "insert", "update", "remove"},
        "audit_logs": {"find", "insert", "remove"},
        "idempotency_records": {"find", "insert"},
        "ledger_imports": {"find", "insert", "update"},
        **{
            name: {"find"}
            for name in ("erasures", "transactions_archive", "audit_logs_archive", SETTINGS)
        },
    },
}
# What a role may do in the whole database.
EVERYWHERE: Final[Mapping[str, set[str]]] = {
    "creditSetup": {"listCollections"},
    "creditBackup": {"changeStream", "find", "listCollections", "listIndexes"},
}
ROLES = list(WORK)
COLLECTIONS = [*WORK["creditReader"], "ledger_imports", "ledger_migrations"]


def config(**changes: Any) -> CreditConfig:
    """Return prices and tiers, with other settings."""
    return CreditConfig(
        costs={"post": {"default": 10}, "view": {"premium": 1}},
        membership={"tiers": {"free": 0, "premium": 1}, "credits_caps": {"free": 5, "premium": 99}},
        **changes,
    )


async def dump(administrator: Client) -> dict[str, Any]:
    """Return everything in the two databases, with users, roles and indexes."""
    found: dict[str, Any] = {}
    for name in (APP, OTHER):
        database = administrator[name]
        for collection in await database.list_collection_names():
            found[f"{name}.{collection}"] = [
                await database[collection].find().sort("_id").to_list(None),
                await (await database[collection].list_indexes()).to_list(None),
            ]
        for command in ("usersInfo", "rolesInfo"):
            found[f"{name} {command}"] = await database.command({command: 1})
            for reply in ("$clusterTime", "operationTime"):
                found[f"{name} {command}"].pop(reply)
    return found


class Clock:
    """The real time, which a test can move forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def check_unauthorized(call: Awaitable[Any]) -> None:
    """Check for a StorageError that names the missing privilege, caused by the driver's error."""
    with pytest.raises(StorageError) as caught:
        await call
    assert type(caught.value) is StorageError
    assert str(caught.value) == "the server refused the operation: Unauthorized (code 13)"
    assert caught.value.code == "STORAGE_ERROR"
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert caught.value.__cause__.code == UNAUTHORIZED


def without(role: Role, collection: str, action: str) -> list[Row]:
    """Return a role's privileges without one action."""
    return [
        Privilege(
            p.database,
            p.collection,
            tuple(a for a in p.actions if (p.collection, a) != (collection, action)),
        ).to_dict()
        for p in role.privileges
        if p.actions != (action,) or p.collection != collection
    ]

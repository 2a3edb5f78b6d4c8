"""Databases for development, which can be emptied and made anew. No other database can."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

from pymongo.errors import DuplicateKeyError, OperationFailure

from credit_mongo.config import MIGRATIONS_COLLECTION, SETTINGS_COLLECTION
from credit_mongo.errors import ConfigurationError
from credit_mongo.maintenance.indexes import ensure_all
from credit_mongo.maintenance.migrations.runner import MigrationRun, Migrations
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import NAMESPACE_NOT_FOUND

__all__ = ["is_for_development", "mark_for_development", "reset"]

_MARK: Final[Raw] = {"_id": "development"}


async def is_for_development(database: LedgerDatabase) -> bool:
    """Whether the database was made for development. Raises PyMongoError."""
    return await database[MIGRATIONS_COLLECTION].find_one(_MARK) is not None


async def mark_for_development(database: LedgerDatabase) -> None:
    """Mark a new database. Nothing removes the mark but dropping the database.

    Raises ConfigurationError if the database has users or transactions, and PyMongoError.
    """
    if await is_for_development(database):
        return
    for name in (database.names.users, database.names.transactions):
        if await database[name].find_one({}, {"_id": 1}) is not None:
            raise ConfigurationError(
                "development",
                f"{database.name} has documents in {name!r}, and only a new database can be marked",
            )
    try:
        marked = {**_MARK, "at": datetime.now(timezone.utc)}
        await database[MIGRATIONS_COLLECTION].insert_one(marked)
    except DuplicateKeyError:
        return  # another process was first


async def reset(database: LedgerDatabase, migrations: Migrations) -> list[MigrationRun]:
    """Drop all collections, create the ledger's anew, and apply all migrations.

    The ledger's settings and the mark stay. So a run that was killed can be repeated.

    Raises ConfigurationError if the database was not made for development or the role may not drop
    its collections, MigrationError and PyMongoError.
    """
    if not await is_for_development(database):
        raise ConfigurationError(
            "",
            f"{database.name} was not made for development: only a database that was made by "
            "credit-mongo init --development can be reset",
        )
    await _check_role(database)
    async with migrations.locked():
        await _drop_all(database)
        await migrations.forget_all()
        await ensure_all(database, decimal_places=None)
    return await migrations.up()


async def _drop_all(database: LedgerDatabase) -> None:
    for name in await database.collection_names():
        if name in (SETTINGS_COLLECTION, MIGRATIONS_COLLECTION) or name.startswith("system."):
            continue
        try:
            await database.ensure({"drop": name})
        except OperationFailure as error:
            if error.code != NAMESPACE_NOT_FOUND:
                raise


async def _check_role(database: LedgerDatabase) -> None:
    """Refuse before anything is dropped. The server would refuse in the middle."""
    status = await database.ask_admin({"connectionStatus": 1, "showPrivileges": True})
    found = status["authInfo"]
    if found["authenticatedUsers"] and not any(
        "dropCollection" in each["actions"] and _is_all_of(each["resource"], database.name)
        for each in found["authenticatedUserPrivileges"]
    ):
        raise ConfigurationError(
            "", f"this user's role may not drop the collections of {database.name}"
        )


def _is_all_of(resource: Any, database: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in (database, "") and resource.get("collection") == ""

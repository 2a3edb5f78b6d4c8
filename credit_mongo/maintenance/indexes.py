"""Creates the collections, indexes and validator of the ledger, and never drops anything.

``documents.py`` says what the ledger needs. This module compares that with the database and makes
the missing parts. If something of the application's is in the way, the module keeps and reports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pymongo.errors import OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.price_checks import check_decimal_places
from credit_mongo.core.values import check_flag, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.maintenance.index_plan import (
    Description,
    IndexChange,
    IndexReport,
    Step,
    Wanted,
    all_wanted,
    drop_index,
    plan,
    why_unusable,
)
from credit_mongo.maintenance.ttl_indexes import deleting_indexes
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.settings import (
    SETTINGS_COLLECTION,
    LedgerSettings,
    keep_settings,
    stored_settings,
)

__all__ = ["IndexChange", "IndexReport", "ensure_all", "ensure_indexes"]

_NAMESPACE_EXISTS: Final = 48
_INDEX_BUILD_IN_PROGRESS: Final = 12587
_PAUSE_SECONDS: Final = 0.2


async def ensure_indexes(
    database: AnyDatabase,
    names: CollectionNames,
    users: UserMapping | None = None,
    *,
    decimal_places: int | None = None,
    validators: bool = True,
    dry_run: bool = False,
) -> IndexReport:
    """Create the collections, indexes and (with ``validators``) the users' validator if missing.

    The function first stores the ledger's settings: the names, the mapping and ``decimal_places``
    of the configuration. If an older version of the library stored them, the function adds what is
    missing. Without ``decimal_places``, it stores no settings anew. If the ledger in the database
    was set up with other settings, it raises ConfigurationError and creates nothing.

    You can run it again, and in several processes at once. It keeps indexes that fit, whatever
    their names, and corrects a different TTL or a hidden index. It never drops or overwrites
    anything. If something is in the way, it reports a conflict with the remedy and continues.
    Conflicts are also a unique index of the application's that would refuse the ledger's rows, and
    a TTL index on a collection whose rows must stay. With ``dry_run`` it writes nothing.

    The users' validator makes sure that ``credits`` is always a whole number, whoever writes it,
    and 0 or more unless the user has lots, holds or an overdraft. No user can be inserted without
    ``credits``, not even by the application. With ``users``, the documents belong to the
    application: they may lack ``credits``, and the validator uses the mapped names. The validator
    of an earlier version, which refuses every debt, is replaced. The holds have a validator too.

    If a collection has many documents, the server may need long to build its indexes. New
    collections need the role readWrite. Changing a TTL or the validator of an existing collection
    also needs dbAdmin; without that role, the change is reported as a conflict.

    Raises InvalidRequestError, ConfigurationError and PyMongoError.
    """
    return await ensure_all(
        LedgerDatabase.of(database, names, users, names_are="names"),
        decimal_places=check_optional(check_decimal_places, "decimal_places", decimal_places),
        validators=check_flag("validators", validators),
        dry_run=check_flag("dry_run", dry_run),
    )


async def ensure_all(
    database: LedgerDatabase,
    *,
    decimal_places: int | None,
    validators: bool = True,
    dry_run: bool = False,
) -> IndexReport:
    """Do the work of ``ensure_indexes`` for a ledger."""
    names, users = database.names, database.mapping
    settings = LedgerSettings(names, users, decimal_places)
    changes = await _keep_settings(database, settings, dry_run=dry_run)
    for wanted in all_wanted(names, users):
        each = wanted if validators else replace(wanted, validator=None)
        changes += await _ensure_collection(database, each, dry_run=dry_run)
    # A TTL index that conflicts with one of the ledger's is already reported, with the same remedy.
    known = {change.remedy for change in changes}
    deleting = await _deleting_indexes(database)
    return IndexReport((*changes, *(each for each in deleting if each.remedy not in known)))


async def _deleting_indexes(database: LedgerDatabase) -> list[IndexChange]:
    conflicts = []
    for kind, name in {**database.names.model_dump(), "settings": SETTINGS_COLLECTION}.items():
        _, indexes = await _look(database, name)
        for index in deleting_indexes(kind, indexes, database.mapping):
            reason = "it is a TTL index, so the server deletes rows that the ledger must keep"
            change = IndexChange(name, index, "index", "conflict", reason, drop_index(name, index))
            conflicts.append(change)
    return conflicts


async def _keep_settings(
    database: LedgerDatabase, settings: LedgerSettings, *, dry_run: bool
) -> list[IndexChange]:
    names = settings.collections
    row = settings.check(await stored_settings(database))
    if row is None and settings.decimal_places is None:
        return []
    stored = () if row is None else row["names"]
    for wanted in all_wanted(names, settings.users):
        if wanted.collection in stored:
            continue
        found, _ = await _look(database, wanted.collection)
        if found is not None and why_unusable(found):
            # The remedy is another name. Once stored in the settings, this one could not change.
            return []
    state, reason = await keep_settings(database, settings, dry_run=dry_run)
    return [IndexChange(SETTINGS_COLLECTION, names.transactions, "settings", state, reason)]


async def _ensure_collection(
    database: LedgerDatabase, wanted: Wanted, *, dry_run: bool
) -> list[IndexChange]:
    while True:
        steps = plan(wanted, *await _look(database, wanted.collection))
        if dry_run:
            return [step.change for step in steps]
        try:
            return [await _carry_out(database, step) for step in steps]
        except OperationFailure as error:
            # Another process has created the collection in the meantime: look again.
            if error.code != _NAMESPACE_EXISTS:
                raise


async def _look(
    database: LedgerDatabase, collection: str
) -> tuple[Description | None, Sequence[Description]]:
    """Return the collection's entry in listCollections (or None) and its indexes."""
    found = await database.describe(collection)
    if found is None or found["type"] != "collection":
        return found, []
    return found, await database[collection].list_indexes()


async def _carry_out(database: LedgerDatabase, step: Step) -> IndexChange:
    while step.command is not None:
        try:
            await database.ensure(step.command)
            break
        except OperationFailure as error:
            if error.code == _INDEX_BUILD_IN_PROGRESS:
                # Unlike createIndexes, collMod doesn't wait for a running build.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            remedy = step.remedies.get(error.code or 0)
            if remedy is None:
                raise
            name = (error.details or {}).get("codeName", "error")
            reason = f"the server refused the change: {name} (code {error.code})"
            return replace(step.change, state="conflict", reason=reason, remedy=remedy)
    return step.change

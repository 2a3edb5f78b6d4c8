"""Finds TTL indexes that make the server delete rows which the ledger must keep.

Only idempotency records and paid requests expire, at their ``expiresAt``. On any other collection,
an index with ``expireAfterSeconds: 0`` on a date would delete everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pymongo.errors import OperationFailure

from credit_mongo.config import SETTINGS_COLLECTION
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import COMMAND_NOT_SUPPORTED_ON_VIEW

__all__ = ["deleting_indexes", "find_deleting_indexes"]

_EXPIRING: Final = frozenset({"idempotency_records", "paid_requests"})
_OWN_KEYS: Final = [("expiresAt", 1)]


def deleting_indexes(
    kind: str, indexes: Iterable[Mapping[str, Any]], users: UserMapping | None
) -> list[str]:
    """Return the names of the TTL indexes that must not exist.

    ``kind`` is the collection's field of CollectionNames. If the users are the application's
    documents, a partial TTL index on them is allowed: the application chooses which ones expire.
    """
    return [
        index["name"]
        for index in indexes
        if "expireAfterSeconds" in index
        and not (kind in _EXPIRING and list(index["key"].items()) == _OWN_KEYS)
        and not (kind == "users" and users is not None and "partialFilterExpression" in index)
    ]


async def find_deleting_indexes(database: LedgerDatabase) -> list[str]:
    """Return those of all collections, each as ``collection.index``. Raises PyMongoError."""
    found: list[str] = []
    for kind, name in {**database.names.model_dump(), "settings": SETTINGS_COLLECTION}.items():
        try:
            indexes = await database[name].list_indexes()
        except OperationFailure as error:
            if error.code != COMMAND_NOT_SUPPORTED_ON_VIEW:
                raise
            continue
        found += [f"{name}.{each}" for each in deleting_indexes(kind, indexes, database.mapping)]
    return found

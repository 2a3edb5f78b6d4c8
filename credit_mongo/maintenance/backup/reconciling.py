"""Finds what an application has acknowledged and a restored ledger lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from bson import ObjectId

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.drivers import AnyDatabase
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["missing_since"]

_AT_ONCE: Final = 10_000


async def missing_since(
    database: AnyDatabase,
    acknowledged: Iterable[str],
    *,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
) -> list[str]:
    """Return those of the transaction ids and idempotency keys that the ledger knows nothing of.

    After a restore, the ledger has forgotten what came after the backup. A request that is repeated
    with such a key happens again; one that is not repeated never happened. The result has each of
    them once, in the order of ``acknowledged``.

    - ``collections``, ``users``: the same values as in the ledger's configuration.

    Keys are found as long as the ledger remembers them, and in transactions after that. Raises
    ConfigurationError, InvalidRequestError and PyMongoError.
    """
    ledger = LedgerDatabase.of(database, collections, users)
    names = ledger.names
    transactions = (names.transactions, names.transactions_archive)
    missing: list[str] = []
    for some in _in_parts(dict.fromkeys(acknowledged)):
        left = dict.fromkeys(some)
        looks: list[tuple[str, str]] = [
            *((name, "_id") for name in transactions),
            (names.idempotency_records, "_id"),
            # No index leads to these, so they come last.
            *((name, "idempotencyKey") for name in transactions),
        ]
        for collection, field in looks:
            if left:
                for found in await _found(ledger, collection, field, left):
                    left.pop(found, None)
        missing += left
    return missing


async def _found(
    ledger: LedgerDatabase, collection: str, field: str, wanted: Iterable[str]
) -> list[str]:
    values: list[Any] = list(wanted)
    if field == "_id":
        values += [ObjectId(each) for each in wanted if ObjectId.is_valid(each)]
    rows = await ledger[collection].find({field: {"$in": values}}, {field: 1}).to_list()
    return [str(row[field]) for row in rows]


def _in_parts(values: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(values)
    while part := list(islice(rest, _AT_ONCE)):
        yield part

"""Collections that compare text as the ledger does: byte by byte.

With a collation of its own, a collection may take "ANN" for "ann": one user would be read, charged
and erased for another, and so would keys and transactions. Queries with the simple collation could
not use its indexes, and each charge would read all users. So such a collection is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from pymongo.errors import OperationFailure

from credit_mongo.errors import ConfigurationError
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import COMMAND_NOT_FOUND, UNAUTHORIZED

__all__ = ["check_collations"]

_SIMPLE: Final = "simple"


async def check_collations(database: LedgerDatabase) -> None:
    """Raise ConfigurationError if a collection of the ledger has a collation.

    A role that may read the collections may look. Those that don't exist have none.
    """
    names, users = database.names, database.mapping
    fields = ["transactions", "audit_logs", "idempotency_records"]
    if users is None or users.id_type == "string":
        # Other ids than strings are compared alike in any collation.
        fields.insert(0, "users")
    found = await asyncio.gather(
        *(_collation_of(database, getattr(names, field)) for field in fields)
    )
    for field, locale in zip(fields, found, strict=True):
        if locale != _SIMPLE:
            raise ConfigurationError(
                f"collections.{field}",
                f"the collection {getattr(names, field)!r} has the collation {locale!r}, which may "
                "take different user ids or keys for the same: copy it into a collection without "
                "one, and name that here",
            )


async def _collation_of(database: LedgerDatabase, collection: str) -> str:
    # The plan of a query says by which collation it compares, and needs no role but to read.
    query = {"find": collection, "filter": {"_id": {"$gte": ""}}, "limit": 1}
    try:
        plan = await database.ask({"explain": query, "verbosity": "queryPlanner"})
    except OperationFailure as error:
        # Memory has no plans, and compares by bytes; what a role may not read it does not use.
        if error.code in (COMMAND_NOT_FOUND, UNAUTHORIZED):
            return _SIMPLE
        raise
    return _locale_in(plan.get("queryPlanner", {}))


def _locale_in(plan: object) -> str:
    """Of the collation that stands anywhere in a plan, of a shard's as well."""
    if isinstance(plan, dict):
        if isinstance(collation := plan.get("collation"), dict):
            return str(collation.get("locale", _SIMPLE))
        parts: Sequence[object] = list(plan.values())
    else:
        parts = plan if isinstance(plan, list) else ()
    return next((found for part in parts if (found := _locale_in(part)) != _SIMPLE), _SIMPLE)

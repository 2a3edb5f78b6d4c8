"""Erasures under way: whose rows are about to go, and up to which moment.

The first step of an erasure removes the account and leaves a document in the collection
``erasures``; the last step takes it away. In between, each of the user's rows that is not later
than the document's ``until`` belongs to the erased account, and counts for nobody. An account that
is opened anew meanwhile begins after that moment, whatever the clock says (``Books``).

So no operation needs to be told of erasures but those that could meet an old row: they look here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from credit_mongo.errors import StorageError
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import UNAUTHORIZED

__all__ = ["NEVER", "after", "erased_until", "is_erased", "not_after", "place_of"]

NEVER: Final = datetime(1, 1, 1, tzinfo=timezone.utc)
"""Before all rows."""
# BSON has later ones, which Python has no form for. The ledger does not write them.
_LAST: Final = datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=timezone.utc)


def place_of(user_id: str) -> Raw:
    """The ``_id`` of the document that tells of the user's erasure."""
    return {"erasing": user_id}


async def erased_until(
    database: LedgerDatabase,
    user_ids: Collection[str],
    session: AsyncClientSession | None = None,
    *,
    field: str = "until",
) -> dict[str, datetime]:
    """Of those among the users whose erasure is under way, the last moment of the erased account.

    ``field``: "until" by the clocks of the ledgers, "requestsUntil" by that of the server.

    Raises StorageError if the database role may not look.
    """
    if not user_ids:
        return {}
    erasures = database.names.erasures
    places = {"_id": {"$in": [place_of(user_id) for user_id in user_ids]}}
    try:
        found = await database[erasures].find(places, {field: 1}, session=session).to_list()
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        raise StorageError(
            f"the database role may not read the collection {erasures!r}, which tells whose "
            "erasure is under way: run credit-mongo roles --create"
        ) from error
    never = NEVER if database.is_time_zone_aware else NEVER.replace(tzinfo=None)
    return {record["_id"]["erasing"]: record.get(field) or never for record in found}


def is_erased(row: Mapping[str, Any], until: datetime | None) -> bool:
    """Whether a row or record of a user whose erasure is under way (None: is not) is to go."""
    if until is None:
        return False
    moment = row.get("createdAt")
    return not isinstance(moment, datetime) or moment <= until


def after(until: datetime) -> Raw:
    """The condition on the moment of rows that stay."""
    return {"$gt": until, "$lte": _LAST}


def not_after(until: datetime) -> Raw:
    """The condition on the moment of rows that are to go, among them those without a moment."""
    return {"$not": after(until)}

"""Whose erasure is under way: what stands in the collection ``erasures`` until the last step."""

from __future__ import annotations

from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.rows import Raw

__all__ = ["is_being_erased", "place_of"]

_UNAUTHORIZED: Final = 13


def place_of(user_id: str) -> Raw:
    """The ``_id`` of the document that tells it."""
    return {"erasing": user_id}


async def is_being_erased(
    database: AsyncDatabase[Any],
    names: CollectionNames,
    user_id: str,
    session: AsyncClientSession | None = None,
) -> bool:
    """Whether an erasure of the user has begun and has not come to its end.

    For a database role that may not know, nobody is being erased.
    """
    place, erasures = {"_id": place_of(user_id)}, database[names.erasures]
    try:
        return await erasures.find_one(place, {"_id": 1}, session=session) is not None
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        return False

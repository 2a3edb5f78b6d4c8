"""Reads that must agree with each other: in one snapshot, and once more if that one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, ServerSelectionTimeoutError

from credit_mongo.storage.server_errors import is_gone

__all__ = ["can_be_read_again", "in_one_snapshot"]

_T = TypeVar("_T")
_MOST_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.5


def can_be_read_again(error: ConnectionFailure | OperationFailure) -> bool:
    """Return whether a new snapshot, cursor or connection may give what this one didn't.

    If no server was found, the driver has already waited for one.
    """
    return is_gone(error) and not isinstance(error, ServerSelectionTimeoutError)


async def in_one_snapshot(
    client: AsyncMongoClient[Any], look: Callable[[AsyncClientSession], Awaitable[_T]]
) -> _T:
    """Return what ``look`` reads in one snapshot. If that is gone, ``look`` starts over in another.

    Raises PyMongoError after five attempts, and at once if another attempt wouldn't help.
    """
    for number in range(1, _MOST_TRIES + 1):
        try:
            async with client.start_session(snapshot=True) as session:
                return await look(session)
        except (ConnectionFailure, OperationFailure) as error:
            if number == _MOST_TRIES or not can_be_read_again(error):
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError

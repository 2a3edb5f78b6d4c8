"""The latest write that was acknowledged: what is read afterwards shows it.

A new primary does not know at once how much a majority has, and until then its majority reads show
an older state. So reads ask for the state after the ledger's latest commit, and wait for it.
Several reads that have to agree are of one snapshot, which is not from before that commit either.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from bson import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.snapshots import can_be_read_again

__all__ = ["LatestWrite"]

_T = TypeVar("_T")
_PAUSE_SECONDS: Final = 0.01
# The driver repeats a read whose connection breaks, but neither a command nor the rest of a cursor.
_MOST_BREAKS: Final = 3


class LatestWrite:
    """When the ledger's latest commit was, by the servers' clock."""

    def __init__(self, client: AsyncMongoClient[Any]) -> None:
        self._client = client
        self._operation_time: Timestamp | None = None
        self._cluster_time: Mapping[str, Any] | None = None

    def was(self, session: AsyncClientSession) -> None:
        """The session's transaction was acknowledged."""
        time = session.operation_time
        if time is not None and (self._operation_time is None or time > self._operation_time):
            self._operation_time, self._cluster_time = time, session.cluster_time

    @contextlib.asynccontextmanager
    async def seen_by(
        self, session: AsyncClientSession | None
    ) -> AsyncIterator[AsyncClientSession]:
        """A session to read in: the application's, or one that sees the latest write."""
        if session is not None:
            yield session
            return
        async with self._client.start_session(causal_consistency=True) as own:
            if self._operation_time is not None and self._cluster_time is not None:
                own.advance_cluster_time(self._cluster_time)
                own.advance_operation_time(self._operation_time)
            yield own

    async def in_snapshot(
        self,
        database: LedgerDatabase,
        collection: str,
        session: AsyncClientSession | None,
        look: Callable[[AsyncClientSession], Awaitable[_T]],
    ) -> _T:
        """What a function that reads the database sees in one snapshot; it may be called again.

        The snapshot is that of the application's transaction, or one that has the latest write, and
        what the application's session has written. ``collection`` is one that exists.
        """
        if session is not None and session.in_transaction:
            return await look(session)
        breaks = 0
        after = [self._operation_time, None if session is None else session.operation_time]
        while True:
            async with self._client.start_session(snapshot=True) as own:
                try:
                    moment = await _moment_of(database, collection, own)
                    if all(time is None or moment is None or moment >= time for time in after):
                        return await look(own)
                except (ConnectionFailure, OperationFailure) as error:
                    breaks += isinstance(error, ConnectionFailure)
                    if breaks > _MOST_BREAKS or not can_be_read_again(error):
                        raise
            # Until the primary knows more; the caller's deadline ends it.
            await asyncio.sleep(_PAUSE_SECONDS)


async def _moment_of(
    database: LedgerDatabase, collection: str, session: AsyncClientSession
) -> Timestamp | None:
    """Fix the moment of a snapshot session by a first read. mongomock has none."""
    reply = await database.command(
        {
            "find": collection,
            "filter": {"_id": ""},
            "projection": {"_id": 1},
            "batchSize": 1,
            "singleBatch": True,
        },
        session=session,
    )
    moment: Timestamp | None = reply["cursor"].get("atClusterTime")
    return moment

"""The latest write that was acknowledged: what is read afterwards shows it.

A new primary does not know at once how much a majority has, and until then its majority reads show
an older state. So reads ask for the state after the ledger's latest commit, and wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bson import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient

__all__ = ["LatestWrite"]


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

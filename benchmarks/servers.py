"""The servers of a benchmark, started when they are first needed, all stopped at its end."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from pymongo import AsyncMongoClient
from typing_extensions import Self

from benchmarks.options import Options
from benchmarks.peers.postgresql_server import PostgresServer
from credit_mongo.local import LocalReplicaSet

__all__ = ["Servers"]


class Servers:
    """One replica set at a time, and one PostgreSQL."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._members = 0
        self._uri = ""
        self._replica_set = AsyncExitStack()
        self._postgresql: PostgresServer | None = None
        self._postgresql_stack = AsyncExitStack()
        self.mongod_version = ""

    @property
    def postgresql_version(self) -> str:
        """Empty if it was not started."""
        return self._postgresql.version if self._postgresql is not None else ""

    async def mongodb(self, members: int) -> str:
        """The URI of a replica set with so many members. One with others is stopped before."""
        if members != self._members:
            await self._replica_set.aclose()
            self._members = 0
            cache = self._options.cache_gigabytes
            replica_set = await self._replica_set.enter_async_context(
                LocalReplicaSet(members, cache_gigabytes=cache)
            )
            self._uri, self._members = replica_set.uri, members
            async with AsyncMongoClient[dict[str, Any]](self._uri) as client:
                self.mongod_version = str((await client.server_info())["version"])
        return self._uri

    async def postgresql(self) -> PostgresServer:
        """PostgreSQL. Raises PeerUnavailableError."""
        if self._postgresql is None:
            server = PostgresServer(self._options.cache_gigabytes, max(self._options.pools))
            self._postgresql = await self._postgresql_stack.enter_async_context(server)
        return self._postgresql

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._postgresql_stack.aclose()
        finally:
            await self._replica_set.aclose()

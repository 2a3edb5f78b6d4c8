"""The servers of a benchmark: started when they are first needed, and all stopped at its end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

from pymongo import AsyncMongoClient
from typing_extensions import Self

from benchmarks.delay import Delay
from benchmarks.options import Options
from benchmarks.peers import PeerUnavailableError
from benchmarks.peers.postgresql_server import PostgresServer
from benchmarks.results import Network
from credit_mongo.local import LocalReplicaSet

__all__ = ["Servers"]

# The driver measures the round trip with each heartbeat, by default every ten seconds. A ledger
# chooses its lanes by that, and a run lasts two seconds.
_URI_OPTIONS: Final = "heartbeatFrequencyMS=500"


class Servers:
    """One replica set at a time, and one PostgreSQL."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._network: Network | None = None
        self._uri = ""
        self._replica_set = AsyncExitStack()
        self._postgresql: PostgresServer | None = None
        self._postgresql_ports: dict[float, int] = {}
        self._postgresql_stack = AsyncExitStack()
        self.mongod_version = ""

    @property
    def postgresql_version(self) -> str:
        """Empty if it was not started."""
        return self._postgresql.version if self._postgresql is not None else ""

    async def mongodb(self, network: Network) -> str:
        """The URI of a replica set on this network. One on another network is stopped before."""
        if network != self._network:
            await self._replica_set.aclose()
            self._network = None
            replica_set = await self._replica_set.enter_async_context(
                LocalReplicaSet(network.members, cache_gigabytes=self._options.cache_gigabytes)
            )
            ports = [member.port for member in replica_set.members]
            if network.delay_ms:
                delay = Delay(network.delay_ms, ports)
                ports = (await self._replica_set.enter_async_context(delay)).ports
                await _advertise(replica_set, ports)
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            self._uri, self._network = f"mongodb://{hosts}/?replicaSet=rs0&{_URI_OPTIONS}", network
            async with AsyncMongoClient[dict[str, Any]](self._uri) as client:
                self.mongod_version = str((await client.server_info())["version"])
        return self._uri

    async def postgresql(self, delay_ms: float) -> dict[str, Any]:
        """How to connect to PostgreSQL, so far away. Raises PeerUnavailableError."""
        if self._postgresql is None:
            _check_asyncpg()
            server = PostgresServer(self._options.cache_gigabytes, max(self._options.pools))
            self._postgresql = await self._postgresql_stack.enter_async_context(server)
        connection = self._postgresql.connection
        if delay_ms and delay_ms not in self._postgresql_ports:
            delay = Delay(delay_ms, [connection["port"]])
            await self._postgresql_stack.enter_async_context(delay)
            self._postgresql_ports[delay_ms] = delay.ports[0]
        return {**connection, "port": self._postgresql_ports.get(delay_ms, connection["port"])}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._postgresql_stack.aclose()
        finally:
            await self._replica_set.aclose()


def _check_asyncpg() -> None:
    try:
        import asyncpg  # noqa: F401, PLC0415
    except ImportError:
        raise PeerUnavailableError("install asyncpg (the extra `bench`)") from None


async def _advertise(replica_set: LocalReplicaSet, ports: list[int]) -> None:
    """Have the members be reached at these ports, by clients and by each other."""
    port = replica_set.members[0].port
    async with AsyncMongoClient[Any]("127.0.0.1", port, directConnection=True) as client:
        config = (await client.admin.command("replSetGetConfig"))["config"]
        for member, port in zip(config["members"], ports, strict=True):
            member["host"] = f"127.0.0.1:{port}"
        config["version"] += 1
        await client.admin.command("replSetReconfig", config, force=True)
    await asyncio.sleep(1)  # the others learn it from that one, with their next heartbeat
    await replica_set.wait_until_ready()

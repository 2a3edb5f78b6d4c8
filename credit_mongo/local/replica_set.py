"""A replica set on this machine: start its members, configure the set, and end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.errors import CreditError, InvalidRequestError, StorageError
from credit_mongo.local.directories import make_kept_directories, make_temporary_directory
from credit_mongo.local.members import START_SECONDS, Member, find_mongod, until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalReplicaSet"]

_NAME = "rs0"
_PROBE_SECONDS = 2.0  # for one probe of one member
_ALREADY_INITIALIZED = 23  # the server's error code


def _client(port: int) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient("127.0.0.1", port, directConnection=True)


class LocalReplicaSet:
    """A real replica set on loopback, which runs while its ``async with`` block does.

    - ``members``: 1 or 3.
    - ``data_directory``: keeps the data for the next set with as many members, whatever their
      ports. None: a temporary directory. A member needs 300 MB or more.
    - ``parameters``: for ``mongod --setParameter``, for example ``{"enableTestCommands": "1"}``.
    - ``port``: the first member's port. The other members take the next ones. None: free ports
      below 32,000.
    - ``cache_gigabytes``: each member's WiredTiger cache, 0.25 or more.

    Three members elect a new primary after two seconds without one.

    The constructor raises InvalidRequestError for a wrong ``members`` or ``port``. Entering raises
    StorageError if there is no mongod, or it doesn't start, or it isn't ready within minutes.

    However the block ends, even by ``kill -9`` of this process, no mongod and no temporary data
    stays behind. Only a kill in the instant before the first keeper starts can leave an empty
    directory.

    Only their owner can access the directories (mode 0700). Entering raises StorageError for a
    ``data_directory`` that belongs to another user, or that other users can write to.
    """

    def __init__(
        self,
        members: int = 1,
        data_directory: str | os.PathLike[str] | None = None,
        parameters: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        cache_gigabytes: float = 0.25,
    ) -> None:
        if members not in (1, 3):
            raise InvalidRequestError("members", f"must be 1 or 3, not {members!r:.40}")
        if port is not None and not 1 <= port <= 65_536 - members:
            raise InvalidRequestError("port", f"must be from 1 to {65_536 - members}, not {port}")
        self._size = members
        self._data = None if data_directory is None else Path(data_directory)
        self._parameters = dict(parameters or {})
        self._port = port
        self._cache_gigabytes = cache_gigabytes
        self._entered = False
        self._members: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in an order that never changes. Empty before the first entry.

        Any of them may be the primary.
        """
        return self._members

    @property
    def uri(self) -> str:
        """The connection string, ``mongodb://127.0.0.1:…/?replicaSet=rs0``."""
        return f"mongodb://{','.join(m.host for m in self._members)}/?replicaSet={_NAME}"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise StorageError("this local replica set is already running: enter it once")
        command = self._mongod_command()
        kept = self._data is not None
        if self._data is None:
            directory = make_temporary_directory()
        else:
            directory = make_kept_directories(self._data, self._size)
        self._members = tuple(
            Member(directory / f"member-{n}", self._port and self._port + n, kept, command)
            for n in range(self._size)
        )
        self._entered = True
        try:
            await self._start()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, (OSError, PyMongoError)) and not isinstance(error, CreditError):
                message = f"the local replica set can't be started: {error}"
                raise StorageError(message) from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self._members:
            member._release()  # all of them before the first await, which may be cancelled
        await asyncio.gather(*(member._wait_until_released() for member in self._members))
        if self._data is None:  # the keepers have removed it, unless one was killed
            root = self._members[0].directory.parent
            await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
        self._entered = False

    async def wait_until_ready(self, timeout_seconds: float = 90.0) -> None:
        """Wait until a primary accepts writes and all other members are up-to-date secondaries.

        Raises StorageError after ``timeout_seconds``, and at once if a member isn't running.
        """
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(_client(m.port)) for m in self._members]

            async def ready() -> bool:
                for member in self._members:
                    member._signal(0)
                try:
                    return await _are_ready(clients)
                except PyMongoError:
                    return False

            await until(ready, "has no primary with all its secondaries", timeout_seconds)

    def _mongod_command(self) -> list[str]:
        parameters = {
            "diagnosticDataCollectionEnabled": "false",
            # By default, mongod waits 15 s after SIGTERM for its clients to leave.
            "shutdownTimeoutMillisForSignaledShutdown": "100",
            **self._parameters,
        }
        # Journaling is the default, and --journal is an error since 6.1. --oplogSize is a maximum
        # in MB.
        options = f"--replSet {_NAME} --bind_ip 127.0.0.1 --nounixsocket --quiet --oplogSize 1024"
        cache = ["--wiredTigerCacheSizeGB", f"{self._cache_gigabytes}"]
        given = [part for item in parameters.items() for part in ("--setParameter", "=".join(item))]
        return [str(find_mongod()), *options.split(), *cache, *given]

    async def _start(self) -> None:
        for member in self._members:
            await member._start()
        for member in self._members:
            await member._wait_until_listening()
        async with _client(self._members[0].port) as client:
            with pymongo.timeout(START_SECONDS):
                await until(lambda: self._configure(client), "is not configured", START_SECONDS)
        await self.wait_until_ready(START_SECONDS)

    async def _configure(self, client: AsyncMongoClient[dict[str, Any]]) -> bool:
        members = [{"_id": n, "host": member.host} for n, member in enumerate(self._members)]
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
        new = {"_id": _NAME, "members": members, "settings": settings}
        try:
            await client.admin.command("replSetInitiate", new)
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
        else:
            return True
        # Kept data has the ports of its last run. On other ports the members find no majority, so
        # the change must be forced. The other members learn it from this one.
        try:
            kept = (await client.admin.command("replSetGetConfig"))["config"]
            if [member["host"] for member in kept["members"]] != [m["host"] for m in members]:
                kept.update(members=members, version=kept["version"] + 1)
                await client.admin.command("replSetReconfig", kept, force=True)
        except OperationFailure:  # the member is still loading its configuration
            return False
        return True


async def _are_ready(clients: Sequence[AsyncMongoClient[dict[str, Any]]]) -> bool:
    primaries = []
    secondaries = 0
    for client in clients:
        with pymongo.timeout(_PROBE_SECONDS):
            hello = await client.admin.command("hello")
        secondaries += bool(hello.get("secondary"))
        if hello["isWritablePrimary"]:
            primaries.append(client)
    if len(primaries) != 1 or secondaries != len(clients) - 1:
        return False
    with pymongo.timeout(_PROBE_SECONDS):  # a write to the oplog only, acknowledged by all
        note: dict[str, Any] = {"data": {"msg": "ready"}, "writeConcern": {"w": len(clients)}}
        await primaries[0].admin.command({"appendOplogNote": 1, **note})
    return True

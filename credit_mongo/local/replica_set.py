"""A replica set on this machine: start its members, make them a set, end them again."""

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
_PROBE_SECONDS = 2.0  # for one question to one member
_ALREADY_INITIALIZED = 23  # the server's error code


def _client(port: int) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient("127.0.0.1", port, directConnection=True)


class LocalReplicaSet:
    """A real replica set on loopback, up while its ``async with`` block runs.

    - ``members``: 1 or 3.
    - ``data_directory``: where the data is kept, and found again by the next set of as many
      members, on whatever ports. None: a temporary directory. 300 MB and more a member.
    - ``parameters``: for ``mongod --setParameter``, say ``{"enableTestCommands": "1"}``.
    - ``port``: of the first member, the others follow. None: free ones below 32,000.
    - ``cache_gigabytes``: WiredTiger's cache of each member, 0.25 or more.

    Without a primary for two seconds, three members elect another.

    Entering raises InvalidRequestError for arguments out of their limits, and StorageError when
    there is no mongod, or it doesn't start, or isn't ready within minutes. However the block ends,
    a ``kill -9`` of this process included, no mongod and no data stays behind: in the instant
    before the first mongod's keeper starts, an empty directory may.

    Directories are their owner's alone (mode 0700). A ``data_directory`` that belongs to another
    user, or that other users can write to, raises StorageError.
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
            raise InvalidRequestError("members", "must be 1 or 3")
        if port is not None and not 1 <= port <= 65_536 - members:
            raise InvalidRequestError("port", "must be from 1 to 65535, for every member")
        self._size = members
        self._data = None if data_directory is None else Path(data_directory)
        self._parameters = dict(parameters or {})
        self._port = port
        self._cache_gigabytes = cache_gigabytes
        self._entered = False
        self._members: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in one order for good; any may be primary. Empty before the first entry."""
        return self._members

    @property
    def uri(self) -> str:
        """The connection string, ``mongodb://127.0.0.1:…/?replicaSet=rs0``."""
        return f"mongodb://{','.join(m.host for m in self._members)}/?replicaSet={_NAME}"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise StorageError("this local replica set runs already")
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
            member._release()  # all of them, before the first await can be cancelled
        await asyncio.gather(*(member._wait_until_released() for member in self._members))
        if self._data is None:  # gone by now, if nobody killed a keeper
            root = self._members[0].directory.parent
            await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
        self._entered = False

    async def wait_until_ready(self, timeout_seconds: float = 90.0) -> None:
        """Wait until a primary accepts writes and every other member is a secondary, up to date.

        Raises StorageError after ``timeout_seconds``, and at once if a member doesn't run.
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
            # Else a SIGTERM takes 15 s, for clients to go elsewhere.
            "shutdownTimeoutMillisForSignaledShutdown": "100",
            **self._parameters,
        }
        # Journaling is the default, and --journal an error since 6.1. The oplog is in MB, at most.
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
        # Kept data knows the ports of its last run. On others it finds no majority, so the
        # change must be forced; the other members learn it from this one.
        try:
            kept = (await client.admin.command("replSetGetConfig"))["config"]
            if [member["host"] for member in kept["members"]] != [m["host"] for m in members]:
                kept.update(members=members, version=kept["version"] + 1)
                await client.admin.command("replSetReconfig", kept, force=True)
        except OperationFailure:  # its configuration is still being loaded
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
    with pymongo.timeout(_PROBE_SECONDS):  # a write in no collection, acknowledged by all
        note: dict[str, Any] = {"data": {"msg": "ready"}, "writeConcern": {"w": len(clients)}}
        await primaries[0].admin.command({"appendOplogNote": 1, **note})
    return True

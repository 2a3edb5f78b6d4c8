"""A replica set with access control, and users with one role each."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from credit_mongo.local import LocalReplicaSet
from tests.integration.promises import Client, Row

UNAUTHORIZED: Final = 13
ADMINISTRATOR: Final = "administrator"


class GuardedReplicaSet(LocalReplicaSet):
    """A local replica set of one member with access control.

    Until it has a user, clients on this machine may create the first one.
    """

    def __init__(self, directory: Path) -> None:
        # Without test commands: with them, any user could set fail points.
        super().__init__(1)
        self._key_file = directory / "key-file"
        self._key_file.write_text(secrets.token_hex(32))
        self._key_file.chmod(0o600)
        self.password = secrets.token_hex(16)

    def uri_of(self, user: str, database: str = "admin") -> str:
        """Return the URI with which a user of that database connects. All have one password."""
        credentials = f"mongodb://{user}:{self.password}@"
        return self.uri.replace("mongodb://", credentials) + f"&authSource={database}"

    async def wait_until_ready(self, timeout_seconds: float = 90.0) -> None:
        """Wait for the primary without a login, which allows no other question."""
        deadline = time.monotonic() + timeout_seconds
        async with AsyncMongoClient[Row](self.uri) as client:
            while not (await client.admin.command("hello"))["isWritablePrimary"]:
                assert time.monotonic() < deadline, "there is no primary"
                await asyncio.sleep(0.05)

    def _mongod_command(self) -> list[str]:
        # The fewest rounds of hashing that the server allows: tests log in often.
        rounds = ("scramIterationCount=5000", "scramSHA256IterationCount=5000")
        options = [part for each in rounds for part in ("--setParameter", each)]
        return [*super()._mongod_command(), "--keyFile", str(self._key_file), *options]

    async def create_administrator(self) -> None:
        """Create the first user, who may do everything."""
        async with AsyncMongoClient[Row](self.uri) as stranger:
            await stranger.admin.command(
                {"createUser": ADMINISTRATOR, "pwd": self.password, "roles": ["root"]}
            )

    @asynccontextmanager
    async def client_of(self, user: str, database: str = "admin") -> AsyncIterator[Client]:
        """Open a client that is logged in."""
        uri = self.uri_of(user, database)
        async with AsyncMongoClient[Row](uri, tz_aware=True, appname=user) as client:
            yield client


async def create_user_with(
    administrator: Client, database: str, name: str, roles: Iterable[str], password: str
) -> None:
    """Create a user of the database with these roles and no others."""
    await administrator[database].command(
        {"createUser": name, "pwd": password, "roles": list(roles)}
    )


async def code_of(command: Awaitable[object]) -> int | None:
    """Return the server's code for a refused command, or None if it succeeds."""
    try:
        await command
    except OperationFailure as error:
        return error.code
    return None

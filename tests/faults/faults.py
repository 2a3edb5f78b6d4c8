"""The failures that a server can be told to have, and how to tell it.

Each was observed at the commit of a real transaction. Here every command meets every failure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.faults.commands import Command
from tests.integration.promises import Client, Row

__all__ = ["FAULTS", "Fault", "Primary"]

# Commands that write nothing: a server adds no write concern error to their replies.
_READS: Final = frozenset({"find", "aggregate", "getMore", "killSessions"})


@dataclass(frozen=True)
class Fault:
    """What the server does to one command.

    ``passes``: a retry can succeed, and the ledger must make it. ``is_applied``: the command takes
    effect, but its reply reports a failure.
    """

    name: str
    data: Row = field(repr=False)
    passes: bool = True
    is_applied: bool = False

    def fits(self, command: Command) -> bool:
        """Whether a server can fail the command this way."""
        return not (self.is_applied and command.name in _READS)


def _error(name: str, code: int, *labels: str, passes: bool = True) -> Fault:
    data: Row = {"errorCode": code, **({"errorLabels": list(labels)} if labels else {})}
    return Fault(name, data, passes=passes)


def _applied(name: str, code: int, *labels: str, **facts: Any) -> Fault:
    data: Row = {"writeConcernError": {"code": code, "errmsg": "x", **facts}}
    if labels:
        data["errorLabels"] = list(labels)
    return Fault(name, data, is_applied=True)


FAULTS: Final = (
    _error("a write conflict", 112),
    _error("a lock that was not granted", 24),
    _error("the network's time limit", 262),
    _error("no longer primary", 10107),
    Fault("a lost connection", {"closeConnection": True}),
    _error("a transaction that is gone", 251, "TransientTransactionError"),
    _error("interrupted by a step down", 11602, "RetryableWriteError"),
    _applied("applied while shutting down", 91, "RetryableWriteError"),
    _applied(
        "applied without a majority in time",
        64,
        codeName="WriteConcernFailed",
        errInfo={"wtimeout": True},
    ),
    _applied("applied with an unsatisfiable concern", 100),
    _applied("applied and out of time", 50, codeName="MaxTimeMSExpired"),
    _error("out of time", 50, passes=False),
    _error("no right to it", 13, passes=False),
    _error("a transaction too old", 225, passes=False),
)


class Primary:
    """Sets fail points on whichever member is primary."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def fail(self, command: Command, app_name: str, database: str, data: Row) -> None:
        """Fail one command of the clients of that name, but none of the same kind before it."""
        # A server can skip some commands or fail some, not both. So all fail until `heal`.
        mode: Any = {"skip": command.number} if command.number else {"times": 1}
        if command.collection:
            data = {"namespace": f"{database}.{command.collection}", **data}
        await self.set(mode, app_name, failCommands=[command.name], **data)

    async def set(self, mode: Any, app_name: str, **data: Any) -> None:
        """Set ``failCommand``. A server has only one."""
        await self._client.admin.command(
            {
                "configureFailPoint": "failCommand",
                "mode": mode,
                "data": {"appName": app_name, **data},
            }
        )

    async def heal(self) -> None:
        """Let all commands succeed again."""
        await self._client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    @asynccontextmanager
    async def failing(
        self, app_name: str, mode: Any = "alwaysOn", **data: Any
    ) -> AsyncIterator[None]:
        """Fail commands inside the block."""
        await self.set(mode, app_name, **data)
        try:
            yield
        finally:
            await self.heal()


def client_of(uri: str, app_name: str = "observer", **options: Any) -> Client:
    """Open a client that soon notices when a server recovers."""
    return AsyncMongoClient(
        uri, appname=app_name, tz_aware=True, heartbeatFrequencyMS=500, **options
    )

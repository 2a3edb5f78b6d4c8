"""Connect to the database, with the options that every command has for that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import typer
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config import CollectionNames, CreditConfig, Settings
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.opening import Opening
from credit_mongo.errors import ConfigurationError
from credit_mongo.storage.connection import check_replica_set, connect
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.settings import LedgerSettings

__all__ = ["Connecting", "Database", "DatabaseName", "Timeout", "Uri", "seconds_up_to"]

Database: TypeAlias = AsyncDatabase[dict[str, Any]]
_T = TypeVar("_T")

_LONGEST_TIMEOUT_SECONDS: Final = 3600


def seconds_up_to(longest: int) -> Callable[[str | float], float]:
    """A parser for the command line: a time span in seconds, above 0 and up to ``longest``."""

    def read(text: str | float) -> float:
        with contextlib.suppress(ValueError):
            if 0 < float(text) <= longest:
                return float(text)
        raise typer.BadParameter(f"must be above 0 and at most {longest} seconds")

    return read


Uri = Annotated[
    str | None,
    typer.Option(metavar="URI", show_default=False, help="Default: MONGODB_URI, or localhost."),
]
DatabaseName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default=False, help="Default: MONGODB_DATABASE, or 'credits'."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        parser=seconds_up_to(_LONGEST_TIMEOUT_SECONDS),
        metavar="SECONDS",
        help="How long to wait for the server's first answer.",
    ),
]


@dataclass(frozen=True, slots=True)
class Connecting:
    """Where the database is, and how long to wait for its server."""

    uri: str = field(repr=False)
    database: str
    timeout_seconds: float

    @classmethod
    def to(cls, uri: str | None, database: str | None, timeout_seconds: float) -> Connecting:
        """Take what the command line gives, and the rest from the environment."""
        settings = Settings()
        return cls(
            settings.uri if uri is None else uri,
            settings.database if database is None else database,
            timeout_seconds,
        )

    def run(self, work: Callable[[Database], Awaitable[_T]]) -> _T:
        """Connect, check that the server is a replica set, do the work, and close.

        SIGTERM ends the work as Ctrl-C does: its transaction is aborted.

        Raises ConfigurationError, ReplicaSetRequiredError, asyncio.TimeoutError and PyMongoError.
        """
        with _sigterm_as_ctrl_c():
            return asyncio.run(self._run(work))

    def run_anyway(self, work: Callable[[Database], Awaitable[_T]]) -> _T:
        """The same without the check: whatever the server is, and if there is none."""
        with _sigterm_as_ctrl_c():
            return asyncio.run(self._run(work, checks=False))

    def run_on_ledger(self, config: CreditConfig, work: Callable[[Database], Awaitable[_T]]) -> _T:
        """As `run`, but only on a database that has a ledger with these settings.

        So a mistyped name is refused and creates nothing. Raises ConfigurationError if there is no
        ledger, or if it was set up with other settings.
        """

        async def checked(database: Database) -> _T:
            ledger = LedgerDatabase.of(database, config.collections, config.users)
            opening = Opening(
                ledger,
                LedgerSettings.of(config),
                Deadlines(ledger.client),
                timeout_seconds=self.timeout_seconds,
            )
            await asyncio.wait_for(opening.check(), self.timeout_seconds + 1)
            await _check_ledger(database, config.collections)
            return await work(database)

        return self.run(checked)

    async def _run(self, work: Callable[[Database], Awaitable[_T]], *, checks: bool = True) -> _T:
        database = connect(self.uri, self.database, self.timeout_seconds)
        try:
            if checks:
                # A second more, so that the driver can say which servers did not answer in time.
                await asyncio.wait_for(
                    check_replica_set(LedgerDatabase.of(database)), self.timeout_seconds + 1
                )
            return await work(database)
        finally:
            await database.client.close()


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Don't let SIGTERM kill the process: an open transaction would block others for a minute."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _check_ledger(database: Database, collections: CollectionNames) -> None:
    """Raise ConfigurationError if neither users nor transactions exist, not even empty."""
    wanted = {"name": {"$in": [collections.users, collections.transactions]}}
    # Lists only collections that the role may read.
    if await database.list_collection_names(filter=wanted, authorizedCollections=True):
        return
    # If the role may read neither, this raises Unauthorized.
    await database[collections.transactions].find_one({}, {"_id": 1})
    raise ConfigurationError(
        "database",
        f"{database.name} has no ledger: check the name (--database, MONGODB_DATABASE), "
        "or run credit-mongo init to create one",
    )

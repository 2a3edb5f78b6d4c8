"""Clients that faults are aimed at, and applications that call the ledger in a transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import pytest
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from credit_mongo import (
    CommitOutcomeUnknownError,
    CreditError,
    CreditLedger,
    StorageError,
    TransactionAbortedError,
)
from tests.faults.calls import Call
from tests.faults.commands import Command, Commands
from tests.faults.faults import client_of
from tests.integration.promises import Database

__all__ = [
    "ORDERS",
    "InTransaction",
    "Target",
    "in_a_stubborn_transaction",
    "in_a_transaction",
    "spread_over",
    "take_turns",
    "turn_held",
]

ORDERS: Final = "orders"
_OPTIONS: Final[Mapping[str, Any]] = {
    "read_concern": ReadConcern("snapshot"),
    "write_concern": WriteConcern("majority", j=True),
}
InTransaction: TypeAlias = Callable[[Call, CreditLedger, Database], Awaitable[Any]]
"""An application that calls in a transaction of its own."""
_T = TypeVar("_T")


class Target:
    """A client with a name of its own, so that a fault hits it alone, and its commands."""

    def __init__(self, uri: str, number: int) -> None:
        self.app_name = f"target-{number}"
        self.commands = Commands()
        self.client = client_of(uri, self.app_name, event_listeners=[self.commands])

    def sent(self, *, in_session: bool) -> list[Command]:
        """Return what the operation sent, including the commit of an application's transaction."""
        of_application = {"abortTransaction", "killSessions"} if in_session else set()
        return [
            command
            for command in self.commands.sent
            if command.name not in of_application and command.collection != ORDERS
        ]


async def spread_over(
    targets: Iterable[Target], cases: Iterable[_T], work: Callable[[Target, _T], Awaitable[None]]
) -> None:
    """Run all cases, one on each target at a time."""
    left = iter(cases)

    async def go_on(target: Target) -> None:
        for case in left:
            await work(target, case)

    await asyncio.gather(*(go_on(target) for target in targets))


async def in_a_transaction(call: Call, ledger: CreditLedger, database: Database) -> Any:
    """Call as an application should: an order and its charge, together or not at all."""

    async def work(session: AsyncClientSession) -> Any:
        await database[ORDERS].insert_one({"_id": call.mark}, session=session)
        return await call.on(ledger, session)

    async with _session_of(database) as session:
        return await session.with_transaction(work, **_OPTIONS)


async def in_a_stubborn_transaction(call: Call, ledger: CreditLedger, database: Database) -> Any:
    """Call as an application should not: catch the error that ends the call, then commit anyway."""
    async with _session_of(database) as session:
        await session.start_transaction(**_OPTIONS)
        await database[ORDERS].insert_one({"_id": call.mark}, session=session)
        try:
            outcome = await call.on(ledger, session)
        except (StorageError, CommitOutcomeUnknownError, asyncio.CancelledError) as error:
            with pytest.raises((TransactionAbortedError, asyncio.CancelledError)):
                await session.commit_transaction()
            raise error from None
        await session.commit_transaction()
        return outcome


@asynccontextmanager
async def _session_of(database: Database) -> AsyncIterator[AsyncClientSession]:
    async with database.client.start_session() as session:
        try:
            yield session
        except CreditError:
            raise
        except PyMongoError as error:
            # The application's own commit failed: the ledger has no part in it and no error for it.
            raise CommitOutcomeUnknownError from error
        finally:
            # The driver leaves a transaction open if its commit or abort failed.
            with contextlib.suppress(PyMongoError):
                end = database.client.admin.command({"killSessions": [session.session_id]})
                await asyncio.shield(asyncio.ensure_future(end))


async def take_turns(
    ledger: CreditLedger, commands: Commands, database: Database, user_id: str
) -> None:
    """Cause conflicts until the ledger takes turns. ``database`` is of another client."""
    commands.start()
    async with database.client.start_session() as session, await session.start_transaction():
        change = {"$set": {"note": "busy"}}
        await database["users"].update_one({"_id": user_id}, change, session=session)
        charging = asyncio.create_task(ledger.charge(user_id, "post"))
        await commands.until(lambda: any(c.name == "findAndModify" for c in commands.sent))
        await session.abort_transaction()
    await charging


@asynccontextmanager
async def turn_held(commands: Commands, database: Database) -> AsyncIterator[None]:
    """Hold the turn until the ledger waits for it. ``database`` is of another client."""

    def is_awaited() -> bool:
        return any((c.name, c.collection) == ("update", "turns") for c in commands.sent)

    async with database.client.start_session() as session:
        await session.start_transaction()
        turn = {"_id": "turn"}
        await database["turns"].update_one(turn, {"$inc": {"taken": 1}}, session=session)

        async def let_go() -> None:
            # A call that fails earlier never waits for the turn.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(commands.until(is_awaited), 0.05)
            await session.abort_transaction()

        letting_go = asyncio.create_task(let_go())
        try:
            yield
        finally:
            await letting_go

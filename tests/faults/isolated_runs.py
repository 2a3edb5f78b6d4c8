"""One operation, run again and again, for tests that disturb one command in each run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias
from uuid import uuid4

from credit_mongo import CreditLedger
from tests.faults.calls import Call, outcome_of
from tests.faults.commands import Command
from tests.faults.operations import Operation, prices
from tests.faults.targets import InTransaction, Target, in_a_transaction, take_turns, turn_held
from tests.integration.promises import Database

__all__ = ["IsolatedRuns", "Perform"]

Perform: TypeAlias = Callable[[Call], Awaitable[Any]]


class IsolatedRuns:
    """Runs of one operation, each with a new ledger and a new user."""

    def __init__(
        self,
        operation: Operation,
        target: Target,
        database: Database,
        *,
        in_session: bool,
        application: InTransaction = in_a_transaction,
    ) -> None:
        self.operation = operation
        self.target = target
        self.database = database
        self.in_session = in_session
        self.application = application

    @contextlib.asynccontextmanager
    async def prepared(
        self, **options: Any
    ) -> AsyncIterator[tuple[CreditLedger, list[Call], Perform]]:
        """Prepare a run: a ledger, the calls to make, and the function that makes them."""
        user_id = f"user-{uuid4().hex}"
        async with CreditLedger(self.database, prices()) as books:
            calls = await self.operation.prepare(books, self.database, user_id)
        of_target = self.target.client[self.database.name]
        async with CreditLedger(of_target, prices(**options)) as ledger:
            if self.operation.in_turns:
                await take_turns(ledger, self.target.commands, self.database, user_id)

            def perform(call: Call) -> Awaitable[Any]:
                if self.in_session:
                    return self.application(call, ledger, of_target)
                return call.on(ledger)

            async with contextlib.AsyncExitStack() as stack:
                if self.operation.turn_is_taken:
                    await stack.enter_async_context(turn_held(self.target.commands, self.database))
                self.target.commands.start()
                yield ledger, calls, perform

    async def record_commands(self) -> list[Command]:
        """Run the operation undisturbed, and return the commands that it sends."""
        async with self.prepared() as (_, calls, perform):
            await asyncio.gather(*(outcome_of(perform(call)) for call in calls))
            return self.target.sent(in_session=self.in_session)

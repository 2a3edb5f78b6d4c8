"""One operation, asked again and again: for the tests that go through its commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias
from uuid import uuid4

from credit_mongo import CreditLedger
from tests.faults.asks import Ask, outcome_of
from tests.faults.commands import Command
from tests.faults.operations import Operation, prices
from tests.faults.stages import InTransaction, Stage, in_a_transaction, take_turns, turn_held
from tests.integration.promises import Database

__all__ = ["Call", "Trial"]

Call: TypeAlias = Callable[[Ask], Awaitable[Any]]


class Trial:
    """One operation, asked again and again by another ledger for another user."""

    def __init__(
        self,
        operation: Operation,
        stage: Stage,
        database: Database,
        *,
        in_session: bool,
        application: InTransaction = in_a_transaction,
    ) -> None:
        self.operation = operation
        self.stage = stage
        self.database = database
        self.in_session = in_session
        self.application = application

    @contextlib.asynccontextmanager
    async def asking(self, **options: Any) -> AsyncIterator[tuple[CreditLedger, list[Ask], Call]]:
        """A ledger, what is to be asked, and how."""
        user_id = f"user-{uuid4().hex}"
        async with CreditLedger(self.database, prices()) as books:
            asks = await self.operation.prepare(books, self.database, user_id)
        of_stage = self.stage.client[self.database.name]
        async with CreditLedger(of_stage, prices(**options)) as ledger:
            if self.operation.in_turns:
                await take_turns(ledger, self.stage.commands, self.database, user_id)

            def call(ask: Ask) -> Awaitable[Any]:
                if self.in_session:
                    return self.application(ask, ledger, of_stage)
                return ask.of(ledger)

            async with contextlib.AsyncExitStack() as stack:
                if self.operation.turn_is_taken:
                    await stack.enter_async_context(turn_held(self.stage.commands, self.database))
                self.stage.commands.start()
                yield ledger, asks, call

    async def record(self) -> list[Command]:
        """The commands that it sends."""
        async with self.asking() as (_, asks, call):
            await asyncio.gather(*(outcome_of(call(ask)) for ask in asks))
            return self.stage.sent(in_session=self.in_session)

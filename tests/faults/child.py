"""A client process that kills itself at one of its commands."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

from credit_mongo import CreditLedger
from tests.faults.asks import Ask
from tests.faults.commands import Command
from tests.faults.faults import client_of
from tests.faults.operations import prices
from tests.faults.stages import Stage, in_a_transaction, take_turns, turn_held

__all__ = ["MOMENTS", "Errand", "run"]

MOMENTS = ("before it is sent", "when it was sent", "when it was answered")


@dataclass(frozen=True)
class Errand:
    """What a process asks for, and when it dies."""

    uri: str
    database: str
    asks: tuple[Ask, ...]
    in_turns: bool
    turn_is_taken: bool
    in_session: bool
    command: Command
    moment: str


def run(errand: Errand) -> None:
    """Never returns, unless the command was not sent."""
    asyncio.run(_run(errand))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _run(errand: Errand) -> None:
    stage = Stage(errand.uri, 1)
    loop = asyncio.get_running_loop()

    def when_sent(command: Command) -> None:
        if command == errand.command and errand.moment == MOMENTS[0]:
            _die()
        if command == errand.command and errand.moment == MOMENTS[1]:
            # The driver writes it before it waits for the first time.
            loop.call_soon(_die)

    def when_answered(command: Command) -> None:
        if command == errand.command and errand.moment == MOMENTS[2]:
            _die()

    async with client_of(errand.uri) as other_client:
        other = other_client[errand.database]
        database = stage.client[errand.database]
        ledger = CreditLedger(database, prices())
        if errand.in_turns:
            await take_turns(ledger, stage.commands, other, errand.asks[0].user_id)
        stage.commands.start()
        stage.commands.when_sent, stage.commands.when_answered = when_sent, when_answered
        if errand.in_session:
            await in_a_transaction(errand.asks[0], ledger, database)
        elif errand.turn_is_taken:
            async with turn_held(stage.commands, other):
                await errand.asks[0].of(ledger)
        else:
            await asyncio.gather(*(ask.of(ledger) for ask in errand.asks))

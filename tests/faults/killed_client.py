"""A client process that kills itself at one of its commands."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

from credit_mongo import CreditLedger
from tests.faults.calls import Call
from tests.faults.commands import Command
from tests.faults.faults import client_of
from tests.faults.operations import prices
from tests.faults.targets import Target, in_a_transaction, take_turns, turn_held

__all__ = ["MOMENTS", "ClientTask", "run"]

MOMENTS = ("before it is sent", "when it was sent", "when it was answered")


@dataclass(frozen=True)
class ClientTask:
    """What calls a process makes, and when it dies."""

    uri: str
    database: str
    calls: tuple[Call, ...]
    in_turns: bool
    turn_is_taken: bool
    in_session: bool
    command: Command
    moment: str


def run(task: ClientTask) -> None:
    """Make the calls. Returns only if the fatal command was never sent."""
    asyncio.run(_run(task))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _run(task: ClientTask) -> None:
    target = Target(task.uri, 1)
    loop = asyncio.get_running_loop()

    def when_sent(command: Command) -> None:
        if command == task.command and task.moment == MOMENTS[0]:
            _die()
        if command == task.command and task.moment == MOMENTS[1]:
            # The driver writes the command before its first await.
            loop.call_soon(_die)

    def when_answered(command: Command) -> None:
        if command == task.command and task.moment == MOMENTS[2]:
            _die()

    database = target.client[task.database]
    # This client connects when it is first used.
    other = client_of(task.uri)[task.database]
    ledger = CreditLedger(database, prices())
    if task.in_turns:
        await take_turns(ledger, target.commands, other, task.calls[0].user_id)
    target.commands.start()
    target.commands.when_sent, target.commands.when_answered = when_sent, when_answered
    if task.in_session:
        await in_a_transaction(task.calls[0], ledger, database)
    elif task.turn_is_taken:
        async with turn_held(target.commands, other):
            await task.calls[0].on(ledger)
    else:
        await asyncio.gather(*(call.on(ledger) for call in task.calls))

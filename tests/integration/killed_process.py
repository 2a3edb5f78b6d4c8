"""Child processes that kill themselves at one of the commands they send."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from pymongo import AsyncMongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from tests.integration.promises import Database, Row

__all__ = ["MOMENTS", "CommandCounter", "Job", "run_until_killed"]

MOMENTS = ("before it is sent", "when it was sent", "when it was answered")
Job: TypeAlias = Callable[[Database, str], Awaitable[object]]
"""What a child does with a database, and one word that says with what of it."""

# The driver sends these for itself.
_OF_THE_DRIVER = ("hello", "endSessions", "killSessions")
_CHILD_SECONDS = 60
_PROCESSES = multiprocessing.get_context("forkserver")


class CommandCounter(CommandListener):
    """Counts commands, and reports each one when it is sent and when it is answered."""

    def __init__(self, on_event: Callable[[int, bool], None] = lambda _number, _answered: None):
        self.sent: list[str] = []
        self._on_event = on_event
        self._numbers: dict[int, int] = {}

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name not in _OF_THE_DRIVER:
            self._numbers[event.request_id] = len(self.sent)
            self.sent.append(event.command_name)
            self._on_event(len(self.sent) - 1, False)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._answered(event.request_id)

    def failed(self, event: CommandFailedEvent) -> None:
        self._answered(event.request_id)

    def _answered(self, request_id: int) -> None:
        number = self._numbers.pop(request_id, None)
        if number is not None:
            self._on_event(number, True)


@dataclass(frozen=True)
class _Task:
    uri: str
    database: str
    job: Job
    word: str
    command: int
    moment: str


async def run_until_killed(
    uri: str, database: str, job: Job, word: str, *, command: int, moment: str
) -> bool:
    """Run a job in a process that dies at its ``command``-th command. Returns whether it died."""
    task = _Task(uri, database, job, word, command, moment)
    _PROCESSES.set_forkserver_preload([__name__, job.__module__])
    process = _PROCESSES.Process(target=_run, args=(task,))
    process.start()
    try:
        await asyncio.to_thread(process.join, _CHILD_SECONDS)
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        return process.exitcode != 0
    finally:
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()


def _run(task: _Task) -> None:
    asyncio.run(_do(task))


async def _do(task: _Task) -> None:
    loop = asyncio.get_running_loop()

    def on_event(number: int, is_answered: bool) -> None:
        if number != task.command:
            return
        if task.moment == MOMENTS[2 if is_answered else 0]:
            _die()
        if task.moment == MOMENTS[1] and not is_answered:
            # The driver writes the command before its first await.
            loop.call_soon(_die)

    async with AsyncMongoClient[Row](
        task.uri, tz_aware=True, event_listeners=[CommandCounter(on_event)]
    ) as client:
        await task.job(client[task.database], task.word)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

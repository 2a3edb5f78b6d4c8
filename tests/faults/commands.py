"""The commands that a client sends, as its driver reports them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

__all__ = ["Command", "Commands"]

# The driver sends these for itself.
_OF_THE_DRIVER: Final = ("hello", "endSessions")


@dataclass(frozen=True)
class Command:
    """The ``number``-th command (from 0) of this name on a collection ("" if it has none)."""

    name: str
    collection: str
    number: int

    def __str__(self) -> str:
        again = f", time {self.number + 1}" if self.number else ""
        return f"{self.name} {self.collection}".strip() + again


class Commands(CommandListener):
    """Records the commands sent since ``start``, and reports each as it is sent and answered."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.failures: list[Command] = []
        self.when_sent: Callable[[Command], None] = _nothing
        self.when_answered: Callable[[Command], None] = _nothing
        self._by_request: dict[int, Command] = {}
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def start(self) -> None:
        """Forget earlier commands, and record from here on."""
        self.sent, self.failures = [], []
        self.when_sent = self.when_answered = _nothing
        self._by_request = {}
        self._numbers = Counter()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the recorded commands and failures holds."""
        if not condition():
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append((condition, answer))
            await answer

    def started(self, event: CommandStartedEvent) -> None:
        """Record a command that is about to be sent."""
        name = event.command_name
        if name in _OF_THE_DRIVER:
            return
        value = event.command.get(name)
        collection = value if isinstance(value, str) else ""
        command = Command(name, collection, self._numbers[name, collection])
        self._numbers[name, collection] += 1
        self._by_request[event.request_id] = command
        self.sent.append(command)
        self._look()
        self.when_sent(command)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Record an answer, which may contain a failure."""
        has_failed = "writeConcernError" in event.reply or "writeErrors" in event.reply
        self._answered(event.request_id, has_failed=has_failed)

    def failed(self, event: CommandFailedEvent) -> None:
        """Record a failed command or connection."""
        self._answered(event.request_id, has_failed=True)

    def _answered(self, request_id: int, *, has_failed: bool) -> None:
        command = self._by_request.pop(request_id, None)
        if command is None:
            return
        if has_failed:
            self.failures.append(command)
        self._look()
        self.when_answered(command)

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for condition, answer in waiting:
            if answer.done():
                continue
            if condition():
                answer.set_result(None)
            else:
                self._waiting.append((condition, answer))


def _nothing(_: Command) -> None:
    pass

"""Heartbeats: a call that is repeated while something lasts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from credit_mongo.engine import tasks
from credit_mongo.errors import CommitOutcomeUnknownError, CreditError, StorageError

__all__ = ["Heartbeats"]

_LOG: Final = logging.getLogger("credit_mongo")
_SOONER: Final = 4
"""After a failure, the next heartbeat comes this many times sooner."""


class Heartbeats:
    """Awaits ``beat`` every ``seconds``, until it is stopped or refused.

    A heartbeat that the database didn't take is repeated sooner. One that the ledger refuses is the
    last. Neither raises.
    """

    def __init__(self, beat: Callable[[], Awaitable[None]], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._task: asyncio.Task[None] | None = None
        # Most holds are over before their first heartbeat, so there is no task until then.
        self._timer = loop.call_later(seconds, self._start)

    async def stop(self) -> None:
        """Send no more, and wait for the one that is on its way."""
        self._timer.cancel()
        if not self._stopped.done():
            self._stopped.set_result(None)
        if self._task is not None:
            await asyncio.wait({self._task})

    def _start(self) -> None:
        self._task = tasks.start(self._run())

    async def _run(self) -> None:
        try:
            while not self._stopped.done():
                seconds = self._seconds
                try:
                    await self._beat()
                except (StorageError, CommitOutcomeUnknownError) as error:
                    _LOG.info("a heartbeat failed: %s", error.code)
                    seconds /= _SOONER
                await asyncio.wait({self._stopped}, timeout=seconds)
        except CreditError as error:
            _LOG.info("the heartbeats have ended: %s", error.code)

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
        self._stopped = asyncio.Event()
        self._task = tasks.start(self._run())

    async def stop(self) -> None:
        """Send no more, and wait for the one that is on its way."""
        self._stopped.set()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        stopped = tasks.start(self._stopped.wait())
        seconds = self._seconds
        try:
            while not (await asyncio.wait({stopped}, timeout=seconds))[0]:
                try:
                    await self._beat()
                    seconds = self._seconds
                except (StorageError, CommitOutcomeUnknownError) as error:
                    _LOG.info("a heartbeat failed: %s", error.code)
                    seconds = self._seconds / _SOONER
        except CreditError as error:
            _LOG.info("the heartbeats have ended: %s", error.code)
        finally:
            stopped.cancel()

"""Deadlines that end the waiting, and not at once the work.

Before Python 3.12, a task that is cancelled while PyMongo waits for a server can leave the client's
topology locked for good: every later call then waits for ever. So work that is late is left alone,
with nobody waiting for it, until the driver must have stopped looking for a server. Only then is
what still waits for an answer cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

from pymongo.asynchronous.mongo_client import AsyncMongoClient

from credit_mongo.engine import tasks

__all__ = ["Deadlines", "Late"]

Late: TypeAlias = asyncio.Future[Any]
"""Work that nobody waits for any more."""

_T = TypeVar("_T")
_SPARE_SECONDS: Final = 1.0


class Deadlines:
    """Does a client's work, each piece for as long as somebody has time for it."""

    def __init__(self, client: AsyncMongoClient[Any]) -> None:
        self._client = client
        self._late: set[Late] = set()

    async def keep(
        self, work: Coroutine[Any, Any, _T], seconds: float, left: list[Late] | None = None
    ) -> _T:
        """What the work comes to. Raises asyncio.TimeoutError if it is not done in time.

        Work that was left alone, at the deadline or because the caller was cancelled, goes on for a
        while, and is added to ``left``: what it must not do any more, it has to be told.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        return await self.keep_while(work, lambda: deadline - clock(), left)

    async def keep_while(
        self,
        work: Coroutine[Any, Any, _T],
        seconds_left: Callable[[], float],
        left: list[Late] | None = None,
    ) -> _T:
        """The same with a deadline that may move while the work is under way."""
        task = tasks.start(work)
        try:
            while not (await asyncio.wait({task}, timeout=max(seconds_left(), 0)))[0]:
                if seconds_left() <= 0:
                    break
        except asyncio.CancelledError:
            self._leave(task, left)
            raise
        if task.done():
            return task.result()
        self._leave(task, left)
        raise asyncio.TimeoutError

    async def keep_or_cancel(
        self, work: Coroutine[Any, Any, _T], seconds: float, left: list[Late]
    ) -> _T:
        """The same for work in a session of the application's: late work is cancelled.

        Left alone, it would go on in a session that the application uses again. Work that does not
        end at once, or whose caller is cancelled a second time, is added to ``left``.
        """
        task = tasks.start(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if done:
                return task.result()
            task.cancel()
            await asyncio.wait({task}, timeout=_SPARE_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=_SPARE_SECONDS)
            raise
        finally:
            if not task.done():
                left.append(task)
            task.add_done_callback(tasks.seen)
        if task.done() and not task.cancelled():
            return task.result()
        raise asyncio.TimeoutError

    async def close(self, seconds: float) -> None:
        """Wait for what is late, but not longer: it ends when the driver gives up.

        It is not cancelled here either: a client that is closed lets it go within half a second.
        """
        if self._late:
            await asyncio.wait(self._late, timeout=seconds)

    def _leave(self, task: Late, left: list[Late] | None) -> None:
        if left is not None:
            left.append(task)
        seconds = self._client.options.server_selection_timeout + _SPARE_SECONDS
        timer = asyncio.get_running_loop().call_later(seconds, task.cancel)

        def ended(task: Late) -> None:
            timer.cancel()
            self._late.discard(task)
            tasks.seen(task)

        self._late.add(task)
        task.add_done_callback(ended)

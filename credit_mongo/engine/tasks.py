"""Tasks that don't show what they came to.

Their results are rows, with keys and metadata in them, and their errors may quote a row. asyncio
shows both in the ``repr`` of a task or future. Its debug mode logs that when a step takes long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

__all__ = ["in_thread", "result_of", "seen", "start", "stop"]

_AGAIN_SECONDS: Final = 2.0

_T = TypeVar("_T")
_Arguments = ParamSpec("_Arguments")


def start(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Begin work in a task of its own. The package begins all its tasks here."""
    return _Task(work, loop=asyncio.get_running_loop())


async def result_of(task: asyncio.Future[_T]) -> _T:
    """Wait for what a task comes to. It goes on if the caller is cancelled.

    Unlike asyncio.shield, it makes no future of its own that would show the result.
    """
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.add_done_callback(seen)
        raise
    return task.result()


async def in_thread(
    work: Callable[_Arguments, _T], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _T:
    """Run file work in a thread. If cancelled, still wait: two must not write at once."""
    working = start(asyncio.to_thread(work, *arguments, **options))
    try:
        return await result_of(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        raise


async def stop(*running: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they do.

    A cancellation can get lost: before Python 3.12, asyncio.wait_for passes over one that comes
    together with what it waits for, and the driver uses it. A task that repeats something would
    then go on for ever. So what has not ended after a while is cancelled again.
    """
    while pending := [task for task in running if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_SECONDS)
    for task in running:
        seen(task)


def seen(task: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more, so nobody is told how it has ended."""
    if not task.cancelled():
        task.exception()


class _Task(asyncio.Task[_T]):
    """Its ``repr`` says what it does and how far it is, and no value."""

    def __repr__(self) -> str:
        if not self.done():
            state = "pending"
        elif self.cancelled():
            state = "cancelled"
        else:
            state = "finished"
        work = getattr(self.get_coro(), "__qualname__", "?")
        return f"<Task {state} name={self.get_name()!r} coro=<{work}()>>"

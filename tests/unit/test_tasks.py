"""Tasks are stopped, whatever becomes of a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from credit_mongo.engine import tasks


async def test_a_task_that_loses_a_cancellation_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits in asyncio.wait_for can, before Python 3.12, and then goes on for ever."""
    monkeypatch.setattr(tasks, "_AGAIN_SECONDS", 0.01)
    lost = 0

    async def repeat() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    losing, other = tasks.start(repeat()), tasks.start(asyncio.sleep(60))
    await asyncio.sleep(0)
    try:
        await asyncio.wait_for(tasks.stop(losing, other), 5)
    finally:
        while not losing.done():  # or the event loop could not be closed
            losing.cancel()
            await asyncio.sleep(0)
    assert (losing.cancelled(), other.cancelled(), lost) == (True, True, 3)


async def test_stopping_tells_nobody_how_a_task_has_failed() -> None:
    """Its error may quote a row, and is no longer anybody's."""

    async def fail() -> None:
        raise ValueError("a row")

    failed = tasks.start(fail())
    await asyncio.sleep(0)
    await tasks.stop(failed)
    assert isinstance(failed.exception(), ValueError)
    await tasks.stop()

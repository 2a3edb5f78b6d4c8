"""Deadlines: how long callers wait, and what becomes of the work after that."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.errors import StorageError


@pytest_asyncio.fixture
async def deadlines() -> AsyncIterator[Deadlines]:
    """Deadlines of a client that never connects."""
    async with AsyncMongoClient[dict[str, Any]](connect=False) as client:
        yield Deadlines(client)


@contextmanager
def unhandled() -> Iterator[list[str]]:
    """The errors that asyncio reports because nobody retrieved them."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    try:
        yield told
        gc.collect()
    finally:
        loop.set_exception_handler(before)


async def conflict_when_cancelled() -> None:
    """Raise as if the server's answer arrived at the same moment as the cancellation."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise StorageError("a conflict") from None


async def go_on(seconds: float) -> str:
    """Do work that a cancellation does not stop at once."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)
    return "done"


async def test_an_error_that_meets_a_cancellation_is_not_reported_as_unhandled(
    deadlines: Deadlines,
) -> None:
    """The caller sees only its cancellation."""
    with unhandled() as told:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(
                deadlines.keep_or_cancel(conflict_when_cancelled(), 60, []), 0.01
            )
        await asyncio.sleep(0)
    assert told == []


async def test_work_that_ends_just_as_it_is_late_keeps_its_result(deadlines: Deadlines) -> None:
    """A result or an error that comes right at the deadline is returned, and no work is left."""
    left: list[Late] = []
    assert await deadlines.keep_or_cancel(go_on(0), 0.01, left) == "done"
    with pytest.raises(StorageError, match="a conflict"):
        await deadlines.keep_or_cancel(conflict_when_cancelled(), 0.01, left)
    with pytest.raises(asyncio.TimeoutError):
        await deadlines.keep_or_cancel(asyncio.sleep(60), 0.01, left)
    assert left == []


async def test_a_caller_cancelled_twice_leaves_the_work_that_still_runs(
    deadlines: Deadlines,
) -> None:
    """The caller stops waiting. The session's next user learns what it has to wait for."""
    left: list[Late] = []
    caller = asyncio.ensure_future(deadlines.keep_or_cancel(go_on(0.2), 60, left))
    for _ in range(2):
        await asyncio.sleep(0.01)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    [work] = left
    assert not work.done()
    assert await work == "done"


async def test_a_deadline_can_move_while_the_work_runs(deadlines: Deadlines) -> None:
    """Whenever the deadline comes up, the work gets the time that is left by then."""
    clock = asyncio.get_running_loop().time
    began = clock()
    moving = [began + 0.02]

    def seconds_left() -> float:
        if clock() >= began + 0.01 and len(moving) == 1:
            moving.append(began + 60)
        return moving[-1] - clock()

    assert await deadlines.keep_while(asyncio.sleep(0.05, "done"), seconds_left) == "done"

"""The queues for contended users: their order, and that nobody stops them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from credit_mongo.engine import contention
from credit_mongo.engine.contention import ContendedUsers


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def contended(*user_ids: str) -> ContendedUsers:
    users = ContendedUsers()
    for user_id in user_ids:
        users.met(user_id)
    return users


@pytest.mark.asyncio(loop_scope="function")
async def test_a_user_is_contended_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are not, and the ledger forgets those of long ago."""
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    users = contended("ann")
    assert (users.include("ann"), users.include("bob")) == (True, False)
    now += 6
    assert not users.include("ann")
    now += 100
    users.met("bob")
    assert list(users._lately) == ["bob"]
    monkeypatch.undo()


async def test_each_goes_when_the_one_before_has_left() -> None:
    """In the order of arrival. Leaving without a turn, or twice, changes nothing."""
    users, went = contended("ann"), list[int]()

    async def go(number: int) -> None:
        await users.join(["ann"], number, within=100)
        went.append(number)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(go(number)))
        await settle()
    assert went == [0]
    users.leave(["ann", "bob"], 2)
    assert went == [0]
    for number in range(3):
        users.leave(["ann"], number)
        users.leave(["ann"], number)
        await settle()
    assert went == [0, 1, 2]
    assert not users._queues


async def test_users_do_not_wait_for_each_other() -> None:
    """A transaction of another user goes at once, and so does one of users without conflicts."""
    users = contended("ann", "bob")
    await users.join(["ann"], "first", within=100)
    await asyncio.wait_for(users.join(["bob"], "second", within=100), 5)
    await asyncio.wait_for(users.join(["carl"], "third", within=100), 5)
    assert sorted(users._queues) == ["ann", "bob"]


async def test_transactions_of_the_same_users_never_wait_for_each_other_in_a_circle() -> None:
    """Whichever order their users are given in."""
    users, went = contended("ann", "bob"), list[int]()

    async def go(number: int, user_ids: list[str]) -> None:
        await users.join(user_ids, number, within=100)
        await settle()
        went.append(number)
        users.leave(user_ids, number)

    pairs = [["ann", "bob"], ["bob", "ann"]] * 5
    await asyncio.wait_for(asyncio.gather(*(go(n, pair) for n, pair in enumerate(pairs))), 30)
    assert went == list(range(10))
    assert not users._queues


async def test_whoever_gives_up_or_is_cancelled_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one goes in their place. The turn may come at the moment of the cancellation."""
    monkeypatch.setattr(contention, "_LONGEST_TURN_SECONDS", 100)
    users = contended("ann")
    await users.join(["ann"], "first", within=100)
    await users.join(["ann"], "gave up", within=0.001)
    cancelled = [
        asyncio.create_task(users.join(["ann"], f"cancelled {n}", within=100)) for n in range(2)
    ]
    await settle()
    cancelled[0].cancel()
    users.leave(["ann"], "first")
    cancelled[1].cancel()
    for task in cancelled:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await asyncio.wait_for(users.join(["ann"], "last", within=100), 5)
    users.leave(["ann"], "last")
    assert not users._queues


async def test_nobody_has_the_turn_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an application that forgets to end its transaction."""
    monkeypatch.setattr(contention, "_LONGEST_TURN_SECONDS", 0.01)
    users = contended("ann")
    await users.join(["ann"], "forgotten", within=100)
    await asyncio.wait_for(users.join(["ann"], "next", within=100), 5)
    users.leave(["ann"], "forgotten")
    assert users._queues["ann"]._turn_of == "next"


async def test_lanes_wait_for_transactions_and_not_for_lanes() -> None:
    """A transaction that has begun takes its turn only where nobody has it."""
    users = contended("ann")
    await asyncio.wait_for(users.join_transactions("ann", "lane", within=100), 5)
    users.take("ann", "begun")
    users.take("ann", "also begun")
    lane = asyncio.create_task(users.join_transactions("ann", "lane", within=100))
    await settle()
    users.leave(["ann"], "also begun")
    await settle()
    assert not lane.done()
    users.leave(["ann"], "begun")
    await asyncio.wait_for(lane, 5)
    await asyncio.wait_for(users.join_transactions("ann", "other lane", within=100), 5)
    transaction = asyncio.create_task(users.join(["ann"], "transaction", within=100))
    await settle()
    assert not transaction.done()
    users.leave(["ann"], "lane")
    await asyncio.wait_for(transaction, 5)

"""Contended users: users whom another transaction had lately, and who writes them next.

A transaction of the application's has its users from its first write to its end, and everybody else
fails at them meanwhile. With many such transactions each fails again and again, and a plain call,
which comes between two of them only by luck, may not get through before its deadline.

So once a user was contended, there is a queue for it in this process. A transaction of the
application's waits in it before its first command, and has its turn until it ends. It waits for
several users in the order of their ids, so no two wait for each other. A lane waits there with its
commit while there are such transactions. Nobody waits who has sent a command in its transaction:
its snapshot would get old, and those who wait for it would wait longer.

Only speed depends on the queues. Whoever has its turn for too long is passed over, and whoever has
waited for too long goes on: both meet conflicts then, as without a queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from credit_mongo.engine.cooldown import Cooldown

__all__ = ["PART_TO_WAIT", "ContendedUsers"]

# A user that application transactions write again and again delays a batch of others this seldom.
_SHORTEST_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
_LONGEST_TURN_SECONDS: Final = 1.0
PART_TO_WAIT: Final = 0.5
"""Which part of its time a call may wait for its turn. The rest is left for the work itself."""


class ContendedUsers:
    """Who was contended lately, with a queue for each of them that is in use."""

    def __init__(self) -> None:
        self._lately: dict[str, Cooldown] = {}
        self._queues: dict[str, _Queue] = {}

    def met(self, user_id: str) -> None:
        """A conflict over this user was met."""
        now = asyncio.get_running_loop().time()
        if user_id not in self._lately:
            self._lately = {u: c for u, c in self._lately.items() if c.was_on_lately(now)}
            self._lately[user_id] = Cooldown(
                shortest_seconds=_SHORTEST_SECONDS, longest_seconds=_LONGEST_SECONDS
            )
        self._lately[user_id].begin(now)

    def include(self, user_id: str) -> bool:
        """Whether the user was contended lately."""
        cooldown = self._lately.get(user_id)
        return cooldown is not None and cooldown.is_on(asyncio.get_running_loop().time())

    async def join(self, user_ids: Iterable[str], who: object, *, within: float) -> None:
        """Wait for the transaction's turn at these users, for ``within`` seconds in all at most.

        Users who were not contended are left out. The turn ends with ``leave``.
        """
        end = asyncio.get_running_loop().time() + within
        for user_id in sorted(filter(self.include, user_ids)):
            left = max(end - asyncio.get_running_loop().time(), 0.0)
            await self._queue(user_id).join(who, left, is_transaction=True)

    async def join_transactions(self, user_id: str, who: object, *, within: float) -> None:
        """Wait for a lane's turn if transactions wait or have theirs. Lanes alone never wait."""
        queue = self._queues.get(user_id)
        if queue is not None and queue.has_transactions:
            await queue.join(who, within, is_transaction=False)

    def take(self, user_id: str, who: object) -> None:
        """Begin the turn of a transaction that must not wait, if nobody has it."""
        if self.include(user_id):
            self._queue(user_id).take(who)

    def leave(self, user_ids: Iterable[str], who: object) -> None:
        """Let the next ones go where it is the turn of ``who``. Leaving twice does no harm."""
        for user_id in user_ids:
            if queue := self._queues.get(user_id):
                queue.leave(who)

    def _queue(self, user_id: str) -> _Queue:
        queue = self._queues.get(user_id)
        if queue is None:
            queue = self._queues[user_id] = _Queue(lambda: self._queues.pop(user_id))
        return queue


class _Waiting(NamedTuple):
    turn: asyncio.Future[None]
    who: object
    is_transaction: bool


class _Queue:
    """The queue for one user. It exists while somebody has the turn."""

    def __init__(self, when_empty: Callable[[], object]) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._turn_of: object | None = None
        self._is_of_transaction = False
        self._timer: asyncio.TimerHandle | None = None
        self._when_empty = when_empty

    @property
    def has_transactions(self) -> bool:
        return self._is_of_transaction or any(each.is_transaction for each in self._waiting)

    async def join(self, who: object, within: float, *, is_transaction: bool) -> None:
        if self._turn_of is None:
            self._begin(who, is_transaction=is_transaction)
            return
        if self._turn_of is who:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(turn, who, is_transaction)
        self._waiting.append(waiting)
        try:
            await asyncio.wait({turn}, timeout=within)
        except asyncio.CancelledError:
            self.leave(who)  # its turn may just have come
            raise
        finally:
            if not turn.done():
                self._waiting.remove(waiting)

    def take(self, who: object) -> None:
        if self._turn_of is None:
            self._begin(who, is_transaction=True)

    def leave(self, who: object) -> None:
        if self._turn_of is who:
            self._next()

    def _begin(self, who: object, *, is_transaction: bool) -> None:
        self._turn_of, self._is_of_transaction = who, is_transaction
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LONGEST_TURN_SECONDS, self._next)

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._turn_of, self._is_of_transaction, self._timer = None, False, None
        if self._waiting:
            turn, who, is_transaction = self._waiting.popleft()
            turn.set_result(None)
            self._begin(who, is_transaction=is_transaction)
        else:
            self._when_empty()

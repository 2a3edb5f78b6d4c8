"""Group commit: requests that arrive while a lane is busy share its next commit.

No timers and no added delay: an idle lane commits at once, and what arrives meanwhile goes next. A
user's requests go to one lane at a time, so that a process never conflicts with itself.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from credit_mongo.core.batch import Later, Outcome
from credit_mongo.core.decision import AnyRequest, R, Request
from credit_mongo.engine import tasks
from credit_mongo.engine.commit import Contended, More, TakeMore
from credit_mongo.engine.contention import PART_TO_WAIT, ContendedUsers
from credit_mongo.engine.lane_count import MOST_LANES, LaneCount
from credit_mongo.engine.observer import BatchEnded, Tell
from credit_mongo.engine.turns import Turns
from credit_mongo.errors import (
    CommitOutcomeUnknownError,
    CreditError,
    LedgerBusyError,
    StorageError,
)

__all__ = ["LARGEST_BATCH", "Commit", "Lanes"]

Commit: TypeAlias = Callable[
    [list[AnyRequest], float, TakeMore], Awaitable[list[Outcome | Contended]]
]
"""Requests, a deadline (of the loop's clock) and a way to more → outcomes in the same order."""

# Up to 2,048 documents, where MongoDB advises some 1,000 a transaction: they are small, and the
# cost of the commit is shared by all. What a batch reads stays below 16 MB (see store.py).
LARGEST_BATCH: Final = 512
# Seconds of work, at thousands a second: who comes later would only wait for the deadline.
LONGEST_QUEUE: Final = 20_000
# How many requests are under way at most if their callers wait for room: for every lane a full
# batch in its commit and another behind it. More would not be faster, and would be late sooner.
ROOM: Final = 2 * MOST_LANES * LARGEST_BATCH
_COARSEST_DEADLINE_SECONDS: Final = 0.01


class _Waiting:
    """A caller and its request."""

    __slots__ = ("answer", "deadline", "in_flight", "request")

    def __init__(self, request: AnyRequest, answer: asyncio.Future[Any], deadline: float) -> None:
        self.request = request
        self.answer = answer
        self.deadline = deadline
        self.in_flight = False

    def tell(self, outcome: Outcome) -> None:
        """Wake the caller, if it still waits."""
        if not self.answer.done():
            if isinstance(outcome, CreditError):
                self.answer.set_exception(outcome)
            else:
                self.answer.set_result(outcome)

    def give_up(self) -> None:
        """Wake the caller at its deadline."""
        self.tell(
            CommitOutcomeUnknownError()
            if self.in_flight
            else StorageError("the operation was not begun in time; nothing was written")
        )


class _Lane:
    """A queue, and the task that empties it while there is something in it."""

    def __init__(
        self,
        commit: Commit,
        spare_seconds: float,
        *,
        when_contended: Callable[[_Waiting], None],
        when_through: Callable[[str], None],
        when_empty: Callable[[], None],
        tell: Tell | None = None,
    ) -> None:
        self._commit = commit
        self._spare_seconds = spare_seconds
        self._when_contended = when_contended
        self._when_through = when_through
        self._when_empty = when_empty
        self._tell = tell
        self._queue: deque[_Waiting] = deque()
        self._in_flight: list[_Waiting] = []
        # One timer a lane, at the deadline of the oldest: callers come and go by the thousands.
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, waiting: _Waiting) -> None:
        loop = waiting.answer.get_loop()
        self._queue.append(waiting)
        if self._timer is None or waiting.deadline < self._timer.when():
            self._stop_timer()
            self._timer = loop.call_at(waiting.deadline, self._give_up_late_ones, loop)
        if self.task is None:
            # In a context of its own: a caller's pymongo.timeout() is not the batch's.
            self.task = contextvars.Context().run(tasks.start, self._run())

    def _give_up_late_ones(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        in_time = []
        for waiting in (*self._in_flight, *self._queue):
            if waiting.deadline <= now:
                waiting.give_up()
            else:
                in_time.append(waiting.deadline)
        self._timer = None
        if in_time:
            # Not once for each of thousands that came within a moment.
            next_time = max(min(in_time), now + _COARSEST_DEADLINE_SECONDS)
            self._timer = loop.call_at(next_time, self._give_up_late_ones, loop)

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                if self._tell is None:
                    await self._commit_batch(batch)
                else:
                    await self._commit_and_tell(batch, self._tell)
                # Callers that call again at once share the next batch with those who wait.
                await asyncio.sleep(0)
        finally:
            # Empty, unless the event loop is being shut down.
            for waiting in self._queue:
                waiting.give_up()
                self._when_through(waiting.request.user_id)
            self._queue.clear()
            self.task = None
            self._stop_timer()
            self._when_empty()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next_batch(self) -> list[_Waiting]:
        self._in_flight = []
        self._take_more()
        return self._in_flight

    def _take_more(self) -> More:
        """Fill the batch from the queue; what is new in it, and the deadline of all that is."""
        before = len(self._in_flight)
        while self._queue and len(self._in_flight) < LARGEST_BATCH:
            waiting = self._queue.popleft()
            # Those who were cancelled or gave up meanwhile asked for nothing.
            if waiting.answer.done():
                self._when_through(waiting.request.user_id)
            else:
                waiting.in_flight = True
                self._in_flight.append(waiting)
        latest = max((waiting.deadline for waiting in self._in_flight), default=0.0)
        requests = [waiting.request for waiting in self._in_flight[before:]]
        return More(requests, latest - self._spare_seconds)

    async def _commit_and_tell(self, batch: list[_Waiting], tell: Tell) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._commit_batch(batch)
        tell(BatchEnded(len(batch), len(self._queue), clock() - began))

    async def _commit_batch(self, batch: list[_Waiting]) -> None:
        deadline = max(waiting.deadline for waiting in batch) - self._spare_seconds
        requests = [waiting.request for waiting in batch]
        try:
            outcomes = await self._commit(requests, deadline, self._take_more)
        except BaseException as error:
            # A bug, or the end of the event loop. Nobody is left waiting, and nobody is told that
            # nothing happened.
            for waiting in batch:
                unknown = CommitOutcomeUnknownError()
                unknown.__cause__ = error
                waiting.tell(unknown)
            if not isinstance(error, Exception):
                raise
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                # What is left to post for a user is posted in a lane of its own as well.
                if isinstance(outcome, Contended | Later):
                    waiting.in_flight = False
                    self._when_contended(waiting)
                else:
                    waiting.tell(outcome)
        finally:
            for waiting in batch:
                self._when_through(waiting.request.user_id)


class Lanes:
    """All queues of a ledger.

    Most users share one lane, or a few if there is work for them. A user stays in its lane as long
    as it has requests there, so that two lanes never meet on a user. A contended user, whom another
    transaction has (say the application's own), gets a lane of its own until its requests are
    through, and for some seconds more: nobody waits for somebody else's user.
    """

    def __init__(
        self,
        commit: Commit,
        commit_patiently: Commit,
        turns: Turns,
        contended: ContendedUsers,
        *,
        timeout_seconds: float,
        round_trip_seconds: Callable[[], float],
        tell: Tell | None = None,
    ) -> None:
        self._tell = tell
        self._count = LaneCount(round_trip_seconds)
        self._commit_patiently = commit_patiently
        self._turns = turns
        self._timeout_seconds = timeout_seconds
        # Commits end this much before their callers give up, so that these hear how.
        self._spare_seconds = min(0.5, timeout_seconds / 10)
        self._shared = [
            _Lane(
                commit,
                self._spare_seconds,
                when_contended=self._set_apart,
                when_through=self._through,
                when_empty=self._count.shrink,
                tell=tell,
            )
            for _ in range(MOST_LANES)
        ]
        # By user with requests in a shared lane: that lane, and how many requests there are.
        self._staying: dict[str, tuple[_Lane, int]] = {}
        self._apart: dict[str, _Lane] = {}
        self._contended = contended
        self._room = asyncio.Semaphore(ROOM)
        self._closed = False

    def submit(self, request: Request[R], *, spent_seconds: float = 0.0) -> asyncio.Future[R]:
        """A request's result, by its deadline; the future raises what it was refused for.

        ``spent_seconds`` of its time are over already.

        Cancelling it withdraws a request that is not in flight and does not stop one that is.
        Raises LedgerBusyError.
        """
        if self._closed:
            raise LedgerBusyError("the ledger is closed")
        loop = asyncio.get_running_loop()
        now = loop.time()
        user_id = request.user_id
        lane = self._apart.get(user_id)
        if lane is None and self._is_apart(user_id):
            lane = self._lane_apart(user_id)
        if lane is None:
            lane, requests, waiting = self._shared_lane(user_id, now)
            if waiting < LONGEST_QUEUE:
                self._staying[user_id] = (lane, requests + 1)
        else:
            waiting = len(lane)
        if waiting >= LONGEST_QUEUE:
            raise LedgerBusyError(
                f"{LONGEST_QUEUE:,} operations are waiting already; nothing was written. Repeat "
                "the call later, or set on_busy='wait' in the configuration to wait for room"
            )
        answer: asyncio.Future[R] = loop.create_future()
        lane.add(_Waiting(request, answer, now + self._timeout_seconds - spent_seconds))
        return answer

    async def submit_when_there_is_room(
        self, request: Request[R], *, spent_seconds: float = 0.0
    ) -> R:
        """The same, but while many requests are under way, wait until one of them has ended.

        Callers get room in order of arrival. The request's time begins when it has room: however
        many wait, each is given as long as it would have alone. Raises LedgerBusyError only if the
        ledger is closed meanwhile.
        """
        async with self._room:
            return await self.submit(request, spent_seconds=spent_seconds)

    def _shared_lane(self, user_id: str, now: float) -> tuple[_Lane, int, int]:
        """Find the user's lane, how many requests the user has there, and how many wait in all."""
        waiting = sum(map(len, self._shared))
        staying = self._staying.get(user_id)
        if staying is not None:
            return *staying, waiting
        self._count.grow(waiting, now)
        # In turns, all share one.
        lanes = 1 if self._turns.are_needed(now) else self._count.open
        return self._shared[hash(user_id) % lanes], 0, waiting

    def _through(self, user_id: str) -> None:
        """One of the user's requests has left its lane."""
        staying = self._staying.get(user_id)
        if staying is None:
            return
        lane, requests = staying
        if requests == 1:
            del self._staying[user_id]
        else:
            self._staying[user_id] = (lane, requests - 1)

    def load(self) -> tuple[int, int]:
        """How many lanes have a batch under way, and how many requests wait. From any thread."""
        lanes = (*self._shared, *tuple(self._apart.values()))
        return sum(lane.task is not None for lane in lanes), sum(map(len, lanes))

    async def close(self) -> None:
        """Accept no more, and finish what was accepted."""
        self._closed = True
        while running := [
            lane.task for lane in (*self._shared, *self._apart.values()) if lane.task is not None
        ]:
            await asyncio.wait(running)

    def _is_apart(self, user_id: str) -> bool:
        """Whether a user stays out of the shared lanes, because it was contended lately."""
        if user_id in self._staying:
            return False  # it meets one lane at a time
        return self._contended.include(user_id)

    def _set_apart(self, waiting: _Waiting) -> None:
        user_id = waiting.request.user_id
        self._contended.met(user_id)
        self._lane_apart(user_id).add(waiting)

    async def _commit_in_turn(
        self, requests: list[AnyRequest], deadline: float, take_more: TakeMore
    ) -> list[Outcome | Contended]:
        """Commit a contended user's requests between the application's transactions."""
        turn, user_id = object(), requests[0].user_id
        left = max(deadline - asyncio.get_running_loop().time(), 0.0)
        await self._contended.join_transactions(user_id, turn, within=PART_TO_WAIT * left)
        try:
            return await self._commit_patiently(requests, deadline, take_more)
        finally:
            self._contended.leave([user_id], turn)

    def _lane_apart(self, user_id: str) -> _Lane:
        """The user's own lane, which goes when it is empty."""

        def when_empty() -> None:
            del self._apart[user_id]

        lane = self._apart.get(user_id)
        if lane is None:
            lane = self._apart[user_id] = _Lane(
                self._commit_in_turn,
                self._spare_seconds,
                when_contended=self._set_apart,
                when_through=_nothing,
                when_empty=when_empty,
                tell=self._tell,
            )
        return lane


def _nothing(user_id: str) -> None:
    """A user set apart has one lane, which goes when it is empty."""

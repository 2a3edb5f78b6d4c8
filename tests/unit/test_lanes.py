"""Group commit's queues: who shares a commit, who waits, and what each caller is told.

Other tests show real commits on a replica set. Here a stand-in holds each commit until the test
lets it go, so that any order of events can be played.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import pytest
import pytest_asyncio

from credit_mongo.core.batch import LATER, Outcome
from credit_mongo.core.decision import Request
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.engine.commit import CONTENDED, Contended, TakeMore
from credit_mongo.engine.contention import ContendedUsers
from credit_mongo.engine.lane_count import LaneCount
from credit_mongo.engine.lanes import LARGEST_BATCH, LONGEST_QUEUE, ROOM, Lanes
from credit_mongo.engine.turns import Turns
from credit_mongo.errors import (
    CommitOutcomeUnknownError,
    InsufficientCreditsError,
    LedgerBusyError,
    StorageError,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def request(number: int, user_id: str = "user") -> GrantRequest:
    """Return a request that differs from those with other numbers."""
    return GrantRequest(user_id=user_id, transaction_id=str(number), amount=1, action="gift")


def result(of: Request[Any]) -> GrantResult:
    """Return the result that the request's caller must get."""
    return GrantResult(of.transaction_id, of.user_id, of.action, 1, 0, 1, NOW, None)


class Commits:
    """Stand-in commits that wait until the gate opens, and the batches that they were given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.batch_deadlines: list[float] = []
        self.patient: list[list[str]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.contended: set[str] = set()
        self.released = asyncio.Event()
        self.takes_more = False
        self.deadlines = (0.0, 0.0)
        self.refused: dict[str, Exception] = {}
        self.failure: BaseException | None = None
        self.later = 0

    async def commit(
        self, requests: list[Request[Any]], deadline: float, take_more: TakeMore
    ) -> list[Outcome | Contended]:
        """Return the outcomes once the gate is open."""
        assert deadline > asyncio.get_running_loop().time()
        self.batches.append([r.transaction_id for r in requests])
        self.batch_deadlines.append(deadline)
        self.begun.set()
        await self.gate.wait()
        if self.takes_more:
            more = take_more()
            requests += more.requests
            self.deadlines = (deadline, more.deadline)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.contended:
            return [
                CONTENDED if r.user_id in self.contended else self._outcome(r) for r in requests
            ]
        return self._later_or(requests)

    async def commit_patiently(
        self, requests: list[Request[Any]], deadline: float, _take_more: TakeMore
    ) -> list[Outcome | Contended]:
        """Do the same for a user who travels alone."""
        assert deadline > asyncio.get_running_loop().time()
        self.patient.append([r.transaction_id for r in requests])
        if self.contended & {r.user_id for r in requests}:
            await self.released.wait()
        return self._later_or(requests)

    def _later_or(self, requests: list[Request[Any]]) -> list[Outcome | Contended]:
        """Return LATER for all as often as the test says, then the outcomes."""
        if self.later:
            self.later -= 1
            return [LATER for _ in requests]
        return [self._outcome(r) for r in requests]

    def _outcome(self, of: Request[Any]) -> Outcome:
        refusal = self.refused.get(of.transaction_id)
        return refusal if isinstance(refusal, InsufficientCreditsError) else result(of)


# For tests that move the time of their event loop. On the shared loop, that would put off the
# client's monitor, and later tests would find no server.
on_a_loop_of_its_own = pytest.mark.asyncio(loop_scope="function")


@pytest_asyncio.fixture
async def commits() -> AsyncIterator[Commits]:
    """Commits, which are let go at the end of the test."""
    commits = Commits()
    yield commits
    commits.gate.set()


def lanes_on(commits: Commits, timeout_seconds: float = 5.0) -> Lanes:
    """Put lanes in front of these commits."""
    return Lanes(
        commits.commit,
        commits.commit_patiently,
        Turns(),
        ContendedUsers(),
        timeout_seconds=timeout_seconds,
        round_trip_seconds=lambda: 0.0,
    )


def submit(lanes: Lanes, *requests: Request[Any]) -> list[asyncio.Task[object]]:
    """Start a caller for each request."""
    return [asyncio.ensure_future(lanes.submit(r)) for r in requests]


async def settle() -> None:
    """Let every event happen that can happen."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_idle_lane_commits_at_once(commits: Commits) -> None:
    """No timer collects a batch: a lone request is on its way before anything else happens."""
    [caller] = submit(lanes_on(commits), request(1))
    await settle()
    assert commits.batches == [["1"]]
    commits.gate.set()
    assert await caller == result(request(1))


async def test_requests_that_arrive_while_a_lane_is_busy_share_the_next_commit(
    commits: Commits,
) -> None:
    """All waiting requests share one commit, in order of arrival. Each gets its own result."""
    lanes = lanes_on(commits)
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    callers += submit(lanes, *(request(n) for n in range(1, 40)))
    await settle()
    commits.gate.set()
    assert await asyncio.gather(*callers) == [result(request(n)) for n in range(40)]
    assert commits.batches == [["0"], [str(n) for n in range(1, 40)]]


async def test_requests_queued_while_a_commit_waits_for_its_turn_join_it(commits: Commits) -> None:
    """They join before the commit reads anything. Each has its own result and deadline."""
    lanes = lanes_on(commits)
    commits.takes_more = True
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    await asyncio.sleep(0.05)
    callers += submit(lanes, request(1), request(2))
    await settle()
    commits.gate.set()
    assert await asyncio.gather(*callers) == [result(request(n)) for n in range(3)]
    assert commits.batches == [["0"]]
    first, latest = commits.deadlines
    assert latest - first >= 0.04


async def test_a_commit_has_no_more_requests_than_its_limit(commits: Commits) -> None:
    """The remaining requests go with the next commit."""
    lanes = lanes_on(commits)
    callers = submit(lanes, *(request(n) for n in range(LARGEST_BATCH + 7)))
    await settle()
    commits.gate.set()
    await asyncio.gather(*callers)
    assert [len(batch) for batch in commits.batches] == [LARGEST_BATCH, 7]


def user_of_lane(number: int) -> str:
    """Return a user who goes to this one of two lanes."""
    return next(f"u-{n}" for n in itertools.count() if hash(f"u-{n}") % 2 == number)


async def test_few_callers_share_one_lane_and_many_that_wait_open_others(
    commits: Commits,
) -> None:
    """One full batch costs less than two that are half empty."""
    lanes = lanes_on(commits)
    few = submit(lanes, request(0), *(request(n, f"u-{n}") for n in range(1, LARGEST_BATCH // 2)))
    await settle()
    assert len(commits.batches) == 1
    many = submit(lanes, *(request(n, f"v-{n}") for n in range(2 * LARGEST_BATCH)))
    await settle()
    assert len(commits.batches) > 1
    commits.gate.set()
    await asyncio.gather(*few, *many)


@pytest.mark.parametrize(
    ("round_trip_seconds", "opens_at"),
    [(0.0, [256, 512, 768]), (0.0015, [256, 512, 768]), (0.0025, [128, 512, 768])],
)
def test_if_the_server_is_far_fewer_waiting_requests_open_the_second_lane(
    round_trip_seconds: float, opens_at: list[int]
) -> None:
    """At most four lanes are open, and one stays open."""
    count = LaneCount(lambda: round_trip_seconds)
    opened = []
    for waiting in range(1025):
        before = count.open
        count.grow(waiting, now=0.0)
        opened += [waiting] * (count.open - before)
    assert opened == opens_at
    assert count.open == 4
    for _ in range(5):
        count.shrink()
    assert count.open == 1


def test_the_ledger_looks_at_the_distance_of_the_server_once_a_second() -> None:
    """A primary that moves far away counts soon, and a request costs no look."""
    distances = iter([0.0, 0.004])
    count = LaneCount(lambda: next(distances))
    for _ in range(100):
        count.grow(200, now=10.0)
    assert count.open == 1
    count.grow(200, now=11.5)
    assert count.open == 2


async def test_callers_that_call_again_at_once_share_a_batch_with_those_who_wait(
    commits: Commits,
) -> None:
    """Else two groups of callers would alternate in batches that are half as large."""
    lanes = lanes_on(commits)

    async def call_twice(number: int) -> None:
        await lanes.submit(request(number))
        await lanes.submit(request(100 + number))

    first = [asyncio.ensure_future(call_twice(number)) for number in range(3)]
    await commits.begun.wait()
    second = submit(lanes, request(50), request(51))
    await settle()
    commits.gate.set()
    await asyncio.gather(*first, *second)
    assert commits.batches == [["0", "1", "2"], ["50", "51", "100", "101", "102"]]


async def test_a_user_stays_in_its_lane_as_long_as_it_has_requests_there(commits: Commits) -> None:
    """Otherwise the process would conflict with itself whenever it opens or closes a lane."""
    lanes = lanes_on(commits)
    user = user_of_lane(1)
    first = submit(lanes, request(0, user))
    await commits.begun.wait()
    others = submit(lanes, *(request(n, f"v-{n}") for n in range(1, 2 * LARGEST_BATCH)))
    await settle()
    assert len(commits.batches) > 1, "another lane is open"
    second = submit(lanes, request(9999, user))
    await settle()
    assert not any("9999" in batch for batch in commits.batches), "the user is in two lanes"
    commits.gate.set()
    await asyncio.gather(*first, *others, *second)
    assert not lanes._staying


async def test_nobody_stays_who_has_gone(commits: Commits) -> None:
    """Cancelled callers, refused requests and failed commits leave no user behind."""
    lanes = lanes_on(commits)
    commits.failure = RuntimeError("a bug")
    commits.refused["3"] = InsufficientCreditsError("user", 2, 1)
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    callers += submit(lanes, request(1), request(2, "other"), request(3))
    await settle()
    callers[2].cancel()
    commits.gate.set()
    await asyncio.gather(*callers, return_exceptions=True)
    await settle()
    assert not lanes._staying


async def test_a_refusal_reaches_its_caller_alone(commits: Commits) -> None:
    """The other requests of the batch get their results."""
    lanes = lanes_on(commits)
    commits.refused["1"] = InsufficientCreditsError("user", 2, 1)
    commits.gate.set()
    first, second, third = submit(lanes, request(0), request(1), request(2))
    assert (await first, await third) == (result(request(0)), result(request(2)))
    with pytest.raises(InsufficientCreditsError):
        await second


async def test_a_full_queue_refuses_at_once_and_serves_what_it_accepted(commits: Commits) -> None:
    """The caller gets a LedgerBusyError, and every accepted request is served."""
    lanes = lanes_on(commits)
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    room = LONGEST_QUEUE
    callers += submit(lanes, *(request(n) for n in range(1, room + 1)))
    await settle()
    with pytest.raises(LedgerBusyError, match=r"20,000 operations are waiting.*on_busy='wait'"):
        await lanes.submit(request(room + 1))
    commits.gate.set()
    assert len(await asyncio.gather(*callers)) == room + 1


async def test_in_turns_the_queue_is_as_long_as_without(commits: Commits) -> None:
    """All users then share one lane, which has the room of all."""
    lanes = lanes_on(commits)
    lanes._turns.met_conflict(2, asyncio.get_running_loop().time())
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    callers += submit(lanes, *(request(n, f"u-{n % 7}") for n in range(1, LONGEST_QUEUE + 1)))
    with pytest.raises(LedgerBusyError):
        await lanes.submit(request(LONGEST_QUEUE + 1))
    commits.gate.set()
    assert len(await asyncio.gather(*callers)) == LONGEST_QUEUE + 1


# Callers that wait for room


def submit_patiently(lanes: Lanes, *requests: Request[Any]) -> list[asyncio.Task[GrantResult]]:
    """Start a caller for each request, which waits for room."""
    return [asyncio.ensure_future(lanes.submit_when_there_is_room(r)) for r in requests]


async def test_more_callers_than_the_queue_holds_wait_for_room_and_are_served_in_order(
    commits: Commits,
) -> None:
    """None is refused, and no more requests are under way than there is room for."""
    lanes = lanes_on(commits)
    callers = submit_patiently(lanes, *(request(n) for n in range(LONGEST_QUEUE + 5000)))
    await settle()
    assert sum(map(len, lanes._shared)) + len(commits.batches[0]) == ROOM
    commits.gate.set()
    results = await asyncio.gather(*callers)
    assert [int(each.transaction_id) for each in results] == list(range(LONGEST_QUEUE + 5000))
    assert [int(number) for batch in commits.batches for number in batch] == list(
        range(LONGEST_QUEUE + 5000)
    )


async def test_the_time_of_a_call_begins_when_it_has_room(commits: Commits) -> None:
    """However long it waited for room, its deadline is as far away as that of a lone call."""
    lanes = lanes_on(commits, timeout_seconds=5.0)
    callers = submit_patiently(lanes, *(request(n) for n in range(ROOM + 1)))
    await settle()
    await asyncio.sleep(0.1)
    commits.gate.set()
    await asyncio.gather(*callers)
    assert commits.batches[-1][-1] == str(ROOM)
    assert commits.batch_deadlines[-1] - commits.batch_deadlines[0] >= 0.1


async def test_a_caller_cancelled_while_it_waits_for_room_asked_for_nothing(
    commits: Commits,
) -> None:
    """Its request is never sent, and its place in line goes to the next."""
    lanes = lanes_on(commits)
    callers = submit_patiently(lanes, *(request(n) for n in range(ROOM + 3)))
    await settle()
    callers[ROOM + 1].cancel()
    await settle()
    assert callers[ROOM + 1].cancelled()
    commits.gate.set()
    await asyncio.gather(*callers[: ROOM + 1], callers[ROOM + 2])
    sent = {number for batch in commits.batches for number in batch}
    assert sent == {str(n) for n in range(ROOM + 3)} - {str(ROOM + 1)}


async def test_closing_finishes_what_had_room_and_refuses_what_waits_for_it(
    commits: Commits,
) -> None:
    """Callers without room learn that the ledger is closed: nothing of theirs was written."""
    lanes = lanes_on(commits)
    callers = submit_patiently(lanes, *(request(n) for n in range(ROOM + 100)))
    await settle()
    closing = asyncio.ensure_future(lanes.close())
    await settle()
    assert not closing.done()
    commits.gate.set()
    await closing
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert outcomes[:ROOM] == [result(request(n)) for n in range(ROOM)]
    assert {repr(each) for each in outcomes[ROOM:]} == {
        repr(LedgerBusyError("the ledger is closed"))
    }
    assert sum(map(len, commits.batches)) == ROOM


async def test_the_request_of_a_caller_cancelled_in_the_queue_is_not_sent(commits: Commits) -> None:
    """Its request is never sent. Those around it are."""
    lanes = lanes_on(commits)
    first, *others = submit(lanes, request(0))
    await commits.begun.wait()
    waiting = submit(lanes, request(1), request(2), request(3))
    await settle()
    waiting[1].cancel()
    commits.gate.set()
    await asyncio.gather(first, waiting[0], waiting[2], *others)
    assert commits.batches == [["0"], ["1", "3"]]
    assert waiting[1].cancelled()


async def test_a_caller_cancelled_in_flight_stops_no_other(commits: Commits) -> None:
    """The commit goes on, and the others of its batch get their results."""
    lanes = lanes_on(commits)
    callers = submit(lanes, request(0), request(1))
    await commits.begun.wait()
    callers[0].cancel()
    await settle()
    callers[0].cancel()
    commits.gate.set()
    assert await callers[1] == result(request(1))
    assert commits.batches == [["0", "1"]]


async def test_at_the_deadline_a_queued_caller_learns_that_nothing_was_written(
    commits: Commits,
) -> None:
    """A caller in flight hears that its outcome is unknown. The lane serves the next callers."""
    lanes = lanes_on(commits, timeout_seconds=0.2)
    [in_flight] = submit(lanes, request(0))
    await commits.begun.wait()
    [waiting] = submit(lanes, request(1))
    with pytest.raises(CommitOutcomeUnknownError):
        await in_flight
    with pytest.raises(StorageError, match="nothing was written") as not_begun:
        await waiting
    assert not isinstance(not_begun.value, CommitOutcomeUnknownError)
    commits.gate.set()
    assert await lanes.submit(request(2)) == result(request(2))
    assert commits.batches == [["0"], ["2"]]


async def test_an_unexpected_error_leaves_no_caller_waiting(commits: Commits) -> None:
    """Its callers hear that the outcome is unknown, and why. The next callers are served."""
    lanes = lanes_on(commits)
    commits.failure = RuntimeError("a bug")
    callers = submit(lanes, request(0), request(1))
    await commits.begun.wait()
    later = submit(lanes, request(2))
    commits.gate.set()
    for caller in callers:
        with pytest.raises(CommitOutcomeUnknownError) as unknown:
            await caller
        assert isinstance(unknown.value.__cause__, RuntimeError)
    assert await later[0] == result(request(2))


async def test_closing_finishes_what_was_accepted(commits: Commits) -> None:
    """Requests in the queue are finished too, and no more are accepted."""
    lanes = lanes_on(commits)
    callers = submit(lanes, request(0))
    await commits.begun.wait()
    callers += submit(lanes, request(1))
    await settle()
    closing = asyncio.ensure_future(lanes.close())
    await settle()
    with pytest.raises(LedgerBusyError):
        await lanes.submit(request(2))
    assert not closing.done()
    commits.gate.set()
    await closing
    assert all(caller.done() for caller in callers)


async def test_a_user_with_a_conflict_travels_alone(
    commits: Commits,
) -> None:
    """Others in the lane don't wait for it. Its later requests follow it."""
    lanes = lanes_on(commits)
    commits.gate.set()
    # While the ledger takes turns, all users share one lane, so these two do.
    lanes._turns.met_conflict(2, asyncio.get_running_loop().time())
    commits.contended.add("contended")
    contended = submit(lanes, request(1, "contended"))
    assert await lanes.submit(request(2, "free")) == result(request(2, "free"))
    await settle()
    contended += submit(lanes, request(3, "contended"))
    assert await lanes.submit(request(4, "free")) == result(request(4, "free"))
    await settle()
    assert not any(caller.done() for caller in contended)
    commits.contended.clear()
    commits.released.set()
    await asyncio.gather(*contended)
    assert commits.patient == [["1"], ["3"]]


async def test_requests_behind_a_long_backlog_wait_for_further_commits_in_order(
    commits: Commits,
) -> None:
    """Three commits write what is due. Closing meanwhile finishes them, and refuses nobody."""
    lanes = lanes_on(commits)
    commits.later = 3
    callers = submit(lanes, request(1), request(2))
    await commits.begun.wait()
    closing = asyncio.ensure_future(lanes.close())
    commits.gate.set()
    await closing
    assert [caller.result() for caller in callers] == [result(request(1)), result(request(2))]
    assert commits.batches + commits.patient == [["1", "2"]] * 4


@on_a_loop_of_its_own
async def test_a_user_that_was_contended_stays_apart_for_a_while(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Application transactions that write it again delay nobody else. Then it is back."""
    lanes = lanes_on(commits)
    commits.gate.set()
    commits.contended.add("contended")
    commits.released.set()
    await lanes.submit(request(1, "contended"))
    for number in (2, 3):
        await asyncio.gather(*submit(lanes, request(number, "contended"), request(9, "free")))
    assert commits.batches == [["1"], ["9"], ["9"]]
    assert commits.patient == [["1"], ["2"], ["3"]]
    commits.contended.clear()
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock() + 60)
    await lanes.submit(request(4, "contended"))
    assert commits.batches[-1] == ["4"]


async def test_a_user_that_was_contended_never_meets_two_lanes(commits: Commits) -> None:
    """While it has a request in a shared lane, its next ones go there too."""
    lanes = lanes_on(commits)
    commits.contended.add("contended")
    commits.released.set()
    first, second = submit(lanes, request(1, "contended")), []
    await commits.begun.wait()
    second += submit(lanes, request(2, "contended"))
    await settle()
    commits.gate.set()
    await settle()
    commits.gate.clear()
    await asyncio.gather(*first, *second)
    # As when a request was still queued there as the user was contended.
    lanes._staying["contended"] = (lanes._shared[0], 1)
    third = submit(lanes, request(3, "contended"))
    await settle()
    assert commits.batches[-1] == ["3"]
    commits.gate.set()
    await asyncio.gather(*third)


@on_a_loop_of_its_own
async def test_the_ledger_forgets_users_that_were_contended_long_ago(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it remembers does not grow with the number of users."""
    lanes = lanes_on(commits)
    commits.gate.set()
    commits.released.set()
    commits.contended |= {f"contended-{number}" for number in range(20)}
    clock = asyncio.get_running_loop().time
    for number in range(20):
        now = clock() + 100 * number
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda now=now: now)
        await lanes.submit(request(number, f"contended-{number}"))
    assert list(lanes._contended._lately) == ["contended-19"]


async def test_a_lane_does_not_inherit_its_callers_context(commits: Commits) -> None:
    """A deadline that one caller set for itself (pymongo.timeout) does not limit the batch."""
    mine = contextvars.ContextVar("mine", default="nobody's")
    seen: list[str] = []

    async def look(
        requests: list[Request[Any]], _deadline: float, _take_more: TakeMore
    ) -> list[Outcome | Contended]:
        seen.append(mine.get())
        return [result(r) for r in requests]

    lanes = Lanes(
        look,
        commits.commit_patiently,
        Turns(),
        ContendedUsers(),
        timeout_seconds=5,
        round_trip_seconds=lambda: 0.0,
    )
    mine.set("a caller's")
    await lanes.submit(request(1))
    assert seen == ["nobody's"]

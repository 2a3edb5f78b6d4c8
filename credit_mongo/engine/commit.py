"""The commit: the only code that starts a database transaction.

    load → decide → write → commit

A failure before the commit was sent means that nothing happened. From the moment it is sent, every
error, timeout and cancellation leaves the outcome unknown, whatever its label says: some commits
are applied and then raise. An unknown outcome is settled by the next try. It looks for the rows of
the commit before; if any is there, or in the archive, so was the whole batch, with the outcomes
decided then. If not, it writes the same rows under the same ids. When the server has taken those
writes, the commit before can no longer happen: were it still open, they would have conflicted with
it, and had it ended since this try's snapshot, likewise.

That needs both tries to write the same rows. They do: a batch is decided as of one moment, and as
long as the commit before is open, nobody else can change what it read and wrote.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from credit_mongo.config import RetryConfig
from credit_mongo.core.batch import DecidedBatch, Outcome, decide_batch
from credit_mongo.core.decision import AnyRequest, R, Request
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded
from credit_mongo.engine.cooldown import Cooldown
from credit_mongo.engine.deadlines import Deadlines, Late
from credit_mongo.engine.failures import as_storage_error, caused_by, is_conflict, may_pass
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.turns import Turns, seconds_to_wait
from credit_mongo.errors import ClockSkewError, CommitOutcomeUnknownError, CreditError, StorageError
from credit_mongo.storage.clocks import CheckedClock
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.redaction import Unlogged
from credit_mongo.storage.unit_of_work import JOURNALED_MAJORITY, Store, Turn, Witness
from credit_mongo.storage.unreachable import not_in_time

__all__ = ["HELD", "Committer", "Held", "More", "TakeMore"]


class More(NamedTuple):
    """Requests that share a commit as well, and the latest deadline of its requests."""

    requests: Sequence[AnyRequest]
    deadline: float


TakeMore: TypeAlias = Callable[[], More]


def _nothing_more() -> More:
    return More((), float("-inf"))


# A key or an id that another process commits between our reads and our writes shows itself as a
# duplicate once. One that stays is a document that is not found by its id (a collation's doing).
_MOST_DUPLICATES: Final = 3
# After a repeated request, those of others are more likely, and a batch is too dear to fail often.
_KEYS_SECONDS: Final = 10.0
# How long a batch that has the turn meets conflicts before it is parted. Commits of ledgers that
# take no turns yet end sooner; an application's transaction can hold a user as long as it likes.
_PATIENCE_SECONDS: Final = 0.2


class Held(Enum):
    """The type of ``HELD``."""

    HELD = "HELD"


HELD: Final = Held.HELD
"""Instead of an outcome: nothing happened, for another transaction holds the user."""


@dataclass(slots=True)
class _Sent:
    """A commit that was sent: its outcomes hold if a row of the witness is found."""

    witness: Witness
    outcomes: list[Outcome]


class _Batch:
    """Requests on their way to one commit, and what is known of the way so far."""

    def __init__(
        self,
        requests: list[AnyRequest],
        take_more: TakeMore,
        now: datetime,
        deadline: float,
        patience: float | None,
    ) -> None:
        self.requests = requests
        self.take_more = take_more
        self.now = now
        self.deadline = deadline
        self.patience = patience
        self.has_turn = False
        self.lost_turn = False
        self.held_since: float | None = None
        self.clock = asyncio.get_running_loop().time
        self.began = self.clock()
        self.is_given_up = False
        self.unknown: _Sent | None = None
        self.tries = 0
        self.failures = 0
        self.conflicts = 0
        self.duplicates = 0

    def add(self, more: More) -> None:
        """Take requests along, which have time until their own deadlines."""
        self.requests += more.requests
        self.deadline = max(self.deadline, more.deadline)

    def seconds_left(self) -> float:
        return self.deadline - self.clock()

    def check_that_it_goes_on(self) -> None:
        """Once the callers have had their answer, nothing is committed or taken from the queue."""
        if self.is_given_up:
            raise _GivenUpError

    def patience_is_over(self) -> bool:
        """Whether a user is held for too long by somebody who takes no turns."""
        now = self.clock()
        self.held_since = self.held_since or now
        return self.patience is not None and now - self.held_since >= self.patience

    def not_done(self, error: BaseException, client: AsyncMongoClient[Any]) -> CreditError:
        """What to tell the callers when there will be no further try."""
        if self.unknown is not None:
            return caused_by(error, CommitOutcomeUnknownError())
        if isinstance(error, asyncio.TimeoutError):
            late = StorageError(f"{not_in_time(client)}; nothing was written")
            return caused_by(error, late)
        return as_storage_error(error)


class Committer:
    """Commits batches: each request gets its own outcome."""

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        store: Store,
        policy: Policy,
        *,
        retry: RetryConfig,
        turns: Turns,
        latest_write: LatestWrite,
        deadlines: Deadlines,
        reaper: SessionReaper,
        clock: CheckedClock,
    ) -> None:
        self._client = client
        self._store = store
        self._policy = policy
        self._retry = retry
        self._turns = turns
        self._latest_write = latest_write
        self._repeats = Cooldown(shortest_seconds=_KEYS_SECONDS, longest_seconds=_KEYS_SECONDS)
        self._clock = clock
        self._deadlines = deadlines
        self._reaper = reaper

    async def commit(
        self, requests: list[AnyRequest], deadline: float, take_more: TakeMore
    ) -> list[Outcome | Held]:
        """Outcomes in the order of the requests, by ``deadline`` (of the loop's clock).

        Requests that were queued while this batch waited for its turn join it: they are added to
        ``requests``, and the deadline becomes that of the latest.

        A failure of the database is an outcome too. What cannot be written is found by parting the
        batch until it is alone: a request that the server refuses fails, and those of a user whom
        another transaction holds come back as ``HELD``, for ``commit_patiently``.
        """
        return await self._commit(requests, deadline, take_more, _PATIENCE_SECONDS)

    async def commit_patiently(
        self, requests: list[AnyRequest], deadline: float, take_more: TakeMore = _nothing_more
    ) -> list[Outcome | Held]:
        """The same for requests of one user, waiting for whoever holds it until the deadline."""
        return await self._commit(requests, deadline, take_more, None)

    async def _commit(
        self,
        requests: list[AnyRequest],
        deadline: float,
        take_more: TakeMore,
        patience: float | None,
    ) -> list[Outcome | Held]:
        failed: CreditError
        try:
            now = self._clock()
        except CreditError as error:  # the application's clock tells no time: nothing was sent
            return [_copy(error) for _ in requests]
        batch = _Batch(requests, take_more, now, deadline, patience)
        try:
            with Unlogged():
                return list(await self._commit_together(batch))
        except _HeldError:
            users = list(dict.fromkeys(request.user_id for request in requests))
            if len(users) == 1:
                return [HELD] * len(requests)
            first = set(users[: len(users) // 2])
            parts = [request.user_id in first for request in requests]
            patience = 0.0
        except _RefusedError as refused:
            parts = [number < len(requests) // 2 for number in range(len(requests))]
            failed = as_storage_error(refused.error)
        except CreditError as error:
            parts = []
            failed = error
        if len(parts) > 1:
            return await self._commit_parts(requests, parts, batch.deadline, patience)
        # One for each: an error that is raised takes up the traceback of its raising.
        return [_copy(failed) for _ in requests]

    async def _commit_parts(
        self,
        requests: Sequence[AnyRequest],
        is_first: Sequence[bool],
        deadline: float,
        patience: float | None,
    ) -> list[Outcome | Held]:
        outcomes: dict[int, Outcome | Held] = {}
        for part in (True, False):
            numbers = [n for n, first in enumerate(is_first) if first is part]
            committed = await self._commit(
                [requests[n] for n in numbers], deadline, _nothing_more, patience
            )
            outcomes.update(zip(numbers, committed, strict=True))
        return [outcomes[n] for n in range(len(requests))]

    async def commit_in(self, request: Request[R], session: AsyncClientSession) -> R | CreditError:
        """The same in a transaction of the application's, which commits or aborts it.

        Never repeated here. A refusal is audited outside the transaction, which it leaves as it
        was. If this raises, there may be a half of the operation in the transaction.
        """
        try:
            now, read_at = self._clock(), asyncio.get_running_loop().time()
            loaded = await self._store.load([request], now, session, with_keys=True)
            await self._clock.check(now, session, read_at=read_at)
            decided = decide_batch(self._policy, loaded, [request], now)
            outcome: R | CreditError = decided.outcomes[0]
            if isinstance(outcome, CreditError):
                for refusal in decided.refusals:
                    await self._store.write_refusal(refusal)
            else:
                await self._store.write(decided, loaded, session)
        except CreditError:
            raise
        except Exception as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause
        return outcome

    async def close(self, seconds: float) -> None:
        """See to it that no transaction stays open on the server."""
        await self._reaper.close(seconds)

    async def _commit_together(self, batch: _Batch) -> list[Outcome]:
        session = self._client.start_session()
        left: list[Late] = []
        has_ended = False
        try:
            while True:
                try:
                    outcomes = await self._deadlines.keep_while(
                        self._try(batch, session), batch.seconds_left, left
                    )
                except Exception as error:
                    seconds = self._seconds_to_next_try(batch, error)
                    session = await self._reaper.next_session(session, batch.seconds_left())
                    await asyncio.sleep(seconds)
                else:
                    has_ended = True
                    self._latest_write.was(session)
                    return outcomes
        finally:
            if has_ended:
                await session.end_session()
            else:
                batch.is_given_up = True
                self._reaper.end(session, left)

    async def _try(self, batch: _Batch, session: AsyncClientSession) -> list[Outcome]:
        batch.tries += 1
        batch.has_turn = False
        turn, turn_began = Turn(0, 0), 0.0
        in_turns = await self._wait_for_turn(batch)
        await session.start_transaction(
            read_concern=ReadConcern("snapshot"),
            write_concern=JOURNALED_MAJORITY,
            read_preference=ReadPreference.PRIMARY,
        )
        if in_turns:
            batch.lost_turn = True
            turn, turn_began = await self._store.take_turn(session), batch.clock()
            batch.check_that_it_goes_on()
            batch.lost_turn = False
            batch.has_turn = True
            if batch.unknown is None:
                batch.add(batch.take_more())
        sent = batch.unknown
        if sent is not None and await self._store.contains(sent.witness, session):
            # What this snapshot shows is durable once a majority has acknowledged the commit.
            await session.commit_transaction()
            return sent.outcomes
        loaded, decided = await self._decide(batch, session)
        batch.check_that_it_goes_on()
        witness = await self._store.write(decided, loaded, session)
        batch.check_that_it_goes_on()
        if witness is not None:
            batch.unknown = _Sent(witness, decided.outcomes)
        await session.commit_transaction()
        if in_turns:
            self._turns.had_turn(turn, turn_began, batch.clock())
        return decided.outcomes

    async def _wait_for_turn(self, batch: _Batch) -> bool:
        """Whether the turn is to be taken; a batch that has just lost it waits until it is free."""
        turns = self._turns
        if turns.are_needed(batch.clock()) and (pause := turns.seconds_to_pause(batch.clock())):
            await asyncio.sleep(pause)
        while batch.lost_turn and turns.are_needed(batch.clock()):
            taken = await self._store.wait_for_turn()
            batch.check_that_it_goes_on()
            if taken is None:
                turns.seen_free()
                break
            turns.seen_held(taken, batch.clock())
        batch.lost_turn = False
        batch.check_that_it_goes_on()
        return turns.are_needed(batch.clock())

    async def _decide(
        self, batch: _Batch, session: AsyncClientSession
    ) -> tuple[Loaded, DecidedBatch]:
        # Requests are mostly new ones. Keys are looked up only if an insertion has failed, now or
        # lately, or if a request would be refused: it may have been granted before.
        lately = len(batch.requests) > 1 and self._repeats.is_on(batch.clock())
        with_keys = batch.tries > 1 or lately
        loaded = await self._store.load(batch.requests, batch.now, session, with_keys=with_keys)
        await self._clock.check(batch.now, session, read_at=batch.began)
        decided = decide_batch(self._policy, loaded, batch.requests, batch.now)
        if decided.refusals and not with_keys:
            refused = [refusal.request for refusal in decided.refusals]
            loaded = await self._store.load_keys(loaded, refused, batch.now, session)
            if loaded.remembered:
                decided = decide_batch(self._policy, loaded, batch.requests, batch.now)
        return loaded, decided

    def _seconds_to_next_try(self, batch: _Batch, error: Exception) -> float:
        """How long to wait after a failure; raises if there is to be no next try."""
        if isinstance(error, asyncio.TimeoutError | ClockSkewError):
            raise batch.not_done(error, self._client)
        if isinstance(error, DuplicateKeyError) and batch.duplicates < _MOST_DUPLICATES:
            batch.duplicates += 1
            self._repeats.begin(batch.clock())
            return 0.0
        if is_conflict(error):
            seconds = self._seconds_to_wait_for_others(batch)
        elif batch.unknown is None and not may_pass(error):
            raise _RefusedError(error)
        else:
            batch.failures += 1
            gives_up = not self._retry.enabled or batch.failures >= self._retry.max_attempts
            if gives_up and batch.unknown is None:
                raise batch.not_done(error, self._client)
            seconds = self._retry.delay_seconds(batch.failures)
        if seconds >= batch.seconds_left():
            raise batch.not_done(error, self._client)
        return seconds

    def _seconds_to_wait_for_others(self, batch: _Batch) -> float:
        if batch.lost_turn:
            return 0.0  # the next try waits for it
        batch.conflicts += 1
        if not batch.has_turn and not self._turns.are_stuck(batch.clock()):
            self._turns.met_conflict(batch.conflicts, batch.clock())
        elif batch.patience_is_over() and batch.unknown is None:
            raise _HeldError
        return seconds_to_wait(batch.conflicts)


class _RefusedError(Exception):
    """Another try would fail the same way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _GivenUpError(Exception):
    """The deadline has passed; nobody waits for this try."""


class _HeldError(Exception):
    """Another transaction holds a user of the batch."""


_AnyError = TypeVar("_AnyError", bound=CreditError)


def _copy(error: _AnyError) -> _AnyError:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied

"""The commit: how a batch of requests becomes one transaction.

    load → decide → write → commit

A failure before the commit was sent means that nothing happened. From the moment it is sent, every
error, timeout and cancellation leaves the outcome unknown, whatever its label says: some commits
are applied and then raise. The next attempt settles an unknown outcome. It looks for the rows of
the commit before. If any of them is there, or in the archive, the whole batch was committed, with
the outcomes decided then. If none is, the attempt writes the same rows under the same ids. Once the
server has taken these writes, the commit before can no longer happen: if it were still open, or had
ended since this attempt's snapshot, the writes would have conflicted with it.

That needs both attempts to write the same rows. They do: a batch is decided as of one moment, and
as long as the commit before is open, nobody else can change what it read and wrote.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure

from credit_mongo.config import RetryConfig
from credit_mongo.core.advance import as_of
from credit_mongo.core.batch import DecidedBatch, Outcome, decide_batch
from credit_mongo.core.decision import AnyRequest, R, Request
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded
from credit_mongo.core.values import Account
from credit_mongo.engine.attempt import Attempt, Stage
from credit_mongo.engine.cooldown import Cooldown
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error, caused_by, is_conflict
from credit_mongo.engine.observer import AttemptRetried, OutcomeUnknown, Tell, error_name
from credit_mongo.engine.retries import RefusedError, Retries, UserContendedError, reason_of
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.tickets import Ticket
from credit_mongo.engine.transactions import Transactions, begin
from credit_mongo.engine.turns import TurnTaker
from credit_mongo.errors import ClockSkewError, CommitOutcomeUnknownError, CreditError, StorageError
from credit_mongo.storage.clocks import CheckedClock
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.unit_of_work import Store, Witness
from credit_mongo.storage.unreachable import not_in_time

__all__ = ["CONTENDED", "Committer", "Contended", "Foreseen", "More", "TakeMore"]


class More(NamedTuple):
    """Requests that share a commit as well, and the latest deadline of its requests."""

    requests: Sequence[AnyRequest]
    deadline: float


TakeMore: TypeAlias = Callable[[], More]


def _nothing_more() -> More:
    return More((), float("-inf"))


# One repeated request suggests a wave of retries, and a batch is too expensive to fail often.
_KEYS_SECONDS: Final = 10.0
# How long a batch that has the turn meets conflicts before it is parted. Commits of ledgers that
# take no turns yet end sooner; an application's transaction can keep a user as long as it likes.
_PATIENCE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Foreseen(Generic[R]):
    """What a request would come to, and the account before and after it.

    ``before`` is None if there is no account yet.
    """

    outcome: R | CreditError
    before: Account | None
    after: Account | None


class Contended(Enum):
    """The type of ``CONTENDED``."""

    CONTENDED = "CONTENDED"


CONTENDED: Final = Contended.CONTENDED
"""Instead of an outcome: nothing happened, because another transaction has written the user."""


@dataclass(slots=True)
class _Sent:
    """A commit that was sent: its outcomes hold if a row of the witness is found."""

    witness: Witness
    outcomes: list[Outcome]


@dataclass(slots=True)
class _Batch:
    """Requests on their way to one commit."""

    requests: list[AnyRequest]
    take_more: TakeMore
    now: datetime
    deadline: float
    retries: Retries
    clock: Callable[[], float]
    began: float
    ticket: Ticket
    sent: _Sent | None = None
    has_met_duplicate: bool = False

    def add(self, more: More) -> None:
        """Take requests along, which have time until their own deadlines."""
        self.requests += more.requests
        self.deadline = max(self.deadline, more.deadline)

    def seconds_left(self) -> float:
        return self.deadline - self.clock()


class Committer:
    """Commits batches: each request gets its own outcome."""

    def __init__(
        self,
        client: AsyncMongoClient[Any],
        store: Store,
        policy: Policy,
        *,
        retry: RetryConfig,
        turn_taker: TurnTaker,
        latest_write: LatestWrite,
        deadlines: Deadlines,
        reaper: SessionReaper,
        clock: CheckedClock,
        tell: Tell | None = None,
        keeps_users_together: bool = False,
    ) -> None:
        """``keeps_users_together``: no batch is parted between two requests of a user."""
        self._client = client
        self._store = store
        self._policy = policy
        self._retry = retry
        self._tell = tell
        self._keeps_users_together = keeps_users_together
        self._turn_taker = turn_taker
        self._turns = turn_taker.turns
        self._latest_write = latest_write
        self._repeats = Cooldown(shortest_seconds=_KEYS_SECONDS, longest_seconds=_KEYS_SECONDS)
        self._clock = clock
        self._transactions = Transactions(client, deadlines, reaper)
        self._reaper = reaper

    async def commit(
        self, requests: list[AnyRequest], deadline: float, take_more: TakeMore
    ) -> list[Outcome | Contended]:
        """Outcomes in the order of the requests, by ``deadline`` (of the loop's clock).

        Requests that were queued while this batch waited for its turn join it: they are added to
        ``requests``, and the deadline becomes that of the latest.

        A failure of the database is an outcome too. What cannot be written is found by parting the
        batch until it is alone: a request that the server refuses fails, and those of a user whom
        another transaction has written come back as ``CONTENDED``, for ``commit_patiently``.
        """
        return await self._commit(requests, deadline, take_more, _PATIENCE_SECONDS, Ticket())

    async def commit_patiently(
        self, requests: list[AnyRequest], deadline: float, take_more: TakeMore = _nothing_more
    ) -> list[Outcome | Contended]:
        """The same for requests of one user. Waits for the other transaction until the deadline."""
        return await self._commit(requests, deadline, take_more, None, Ticket())

    async def _commit(
        self,
        requests: list[AnyRequest],
        deadline: float,
        take_more: TakeMore,
        patience: float | None,
        ticket: Ticket,
    ) -> list[Outcome | Contended]:
        failed: CreditError
        clock = asyncio.get_running_loop().time
        try:
            now, began = self._clock(), clock()
        except CreditError as error:  # the application's clock tells no time: nothing was sent
            return [_copy(error) for _ in requests]
        retries = Retries(self._retry, self._turns, patience)
        batch = _Batch(requests, take_more, now, deadline, retries, clock, began, ticket)
        try:
            return list(await self._commit_together(batch))
        except UserContendedError:
            parts = _halves_by_user(requests)
            if not parts:
                return [CONTENDED] * len(requests)
            patience = 0.0
        except RefusedError as refused:
            parts = _halves_by_user(requests)
            if not parts and not self._keeps_users_together:
                parts = [number < len(requests) // 2 for number in range(len(requests))]
            failed = as_storage_error(refused.error)
        except CreditError as error:
            parts = []
            failed = error
        if len(parts) > 1:
            return await self._commit_parts(requests, parts, batch.deadline, patience, ticket)
        # One for each: an error that is raised takes up the traceback of its raising.
        return [_copy(failed) for _ in requests]

    async def _commit_parts(
        self,
        requests: Sequence[AnyRequest],
        is_first: Sequence[bool],
        deadline: float,
        patience: float | None,
        ticket: Ticket,
    ) -> list[Outcome | Contended]:
        outcomes: dict[int, Outcome | Contended] = {}
        for part in (True, False):
            numbers = [n for n, first in enumerate(is_first) if first is part]
            committed = await self._commit(
                [requests[n] for n in numbers], deadline, _nothing_more, patience, ticket
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
            decided = decide_batch(self._policy, loaded, [request], now, most_due_rows=None)
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

    async def foresee(self, request: Request[R], deadline: float) -> Foreseen[R]:
        """What the request would come to now, by ``deadline``. Writes nothing, and audits nothing.

        It reads in a transaction of its own, which is aborted and is in nobody's way.
        """
        clock = asyncio.get_running_loop().time
        retries = Retries(self._retry, self._turns, None)
        now, began = self._clock(), clock()
        batch = _Batch([request], _nothing_more, now, deadline, retries, clock, began, Ticket())
        try:
            return await self._transactions.run(
                lambda _, session: self._foresee(batch, request, session),
                seconds_left=batch.seconds_left,
                after_failure=lambda attempt, error: self._seconds_after(batch, attempt, error),
            )
        except RefusedError as refused:
            raise as_storage_error(refused.error)  # noqa: B904 - with its cause

    async def _foresee(
        self, batch: _Batch, request: Request[R], session: AsyncClientSession
    ) -> Foreseen[R]:
        now, began = batch.now, batch.began
        await begin(session)
        loaded = await self._store.load([request], now, session, with_keys=True)
        await self._clock.check(now, session, read_at=began)
        await session.abort_transaction()
        decided = decide_batch(self._policy, loaded, [request], now, most_due_rows=None)
        account = loaded.accounts.get(request.user_id)
        if account is not None:
            account = as_of(account, self._policy.time_for(account, now))
        after = decided.state.accounts.get(request.user_id)
        return Foreseen(decided.outcomes[0], account, after)

    async def close(self, seconds: float) -> None:
        """See to it that no transaction stays open on the server."""
        await self._reaper.close(seconds)

    async def _commit_together(self, batch: _Batch) -> list[Outcome]:
        return await self._transactions.run(
            lambda attempt, session: self._attempt(batch, attempt, session),
            seconds_left=batch.seconds_left,
            after_failure=lambda attempt, error: self._seconds_after(batch, attempt, error),
        )

    async def _attempt(
        self, batch: _Batch, attempt: Attempt, session: AsyncClientSession
    ) -> list[Outcome]:
        try:
            return await self._try(batch, attempt, session)
        except OperationFailure as error:
            # The server has aborted the transaction. Others need not wait while this batch does.
            if is_conflict(error) and attempt.has_turn and batch.retries.leaves_turn(batch.clock()):
                await self._turn_taker.pass_on(batch.ticket)
            raise

    async def _try(
        self, batch: _Batch, attempt: Attempt, session: AsyncClientSession
    ) -> list[Outcome]:
        began, turn_began = batch.clock(), 0.0
        takes_turn = await self._turn_taker.wait(attempt, batch.ticket)
        attempt.check_that_it_goes_on()
        await begin(session)
        if takes_turn:
            await self._turn_taker.take(attempt, batch.ticket, session, since=began)
            turn_began = batch.clock()
        attempt.enter(Stage.WRITING)
        sent = batch.sent
        if takes_turn and sent is None:
            batch.add(batch.take_more())
        if sent is not None and await self._store.contains(sent.witness, session):
            # What this snapshot shows is durable once a majority has acknowledged the commit.
            attempt.enter(Stage.COMMITTING)
            await self._end(session)
            return sent.outcomes
        loaded, decided = await self._decide(batch, session)
        had_to_wait = takes_turn and batch.ticket.had_to_wait
        self._turns.has_read(loaded.accounts, batch.clock(), had_to_wait=had_to_wait)
        attempt.check_that_it_goes_on()
        witness = await self._store.write(decided, loaded, session)
        attempt.enter(Stage.COMMITTING)
        if witness is not None:
            batch.sent = _Sent(witness, decided.outcomes)
        await self._end(session)
        self._turns.has_written(decided.state.accounts)
        if takes_turn:
            now = batch.clock()
            self._turns.had_turn(batch.ticket, now - turn_began, now)
        return decided.outcomes

    async def _end(self, session: AsyncClientSession) -> None:
        await session.commit_transaction()
        self._latest_write.was(session)

    async def _decide(
        self, batch: _Batch, session: AsyncClientSession
    ) -> tuple[Loaded, DecidedBatch]:
        # Most requests are new. Keys are looked up only if an insertion has failed, now or lately,
        # if a commit was sent, or if a request would be refused: an earlier call with its key may
        # have succeeded. After a conflict they are not: it is lost time in which users can change.
        lately = len(batch.requests) > 1 and self._repeats.is_on(batch.clock())
        with_keys = batch.has_met_duplicate or batch.sent is not None or lately
        loaded = await self._store.load(
            batch.requests, batch.now, session, with_keys=with_keys, in_part=True
        )
        await self._clock.check(batch.now, session, read_at=batch.began)
        loaded, decided = await self._decide_loaded(batch, loaded, session)
        if decided.refusals and not with_keys:
            refused = [refusal.request for refusal in decided.refusals]
            loaded = await self._store.load_keys(loaded, refused, batch.now, session)
            if loaded.remembered:
                loaded, decided = await self._decide_loaded(batch, loaded, session)
        return loaded, decided

    async def _decide_loaded(
        self, batch: _Batch, loaded: Loaded, session: AsyncClientSession
    ) -> tuple[Loaded, DecidedBatch]:
        """Decide, and if the first lots of some users are too few, once more with all of theirs."""
        decided = decide_batch(self._policy, loaded, batch.requests, batch.now)
        while decided.unread:  # once, or for each user at most
            loaded = await self._store.load_lots(loaded, decided.unread, session)
            decided = decide_batch(self._policy, loaded, batch.requests, batch.now)
        return loaded, decided

    def _seconds_after(self, batch: _Batch, attempt: Attempt, error: Exception) -> float:
        """How long to wait after a failure; raises if there is to be no other attempt."""
        if self._tell is not None and batch.sent is not None and attempt.stage is Stage.COMMITTING:
            self._tell(OutcomeUnknown(error_name(error), len(batch.requests)))
        if isinstance(error, asyncio.TimeoutError | ClockSkewError):
            raise self._not_done(batch, error)
        now = batch.clock()
        if isinstance(error, DuplicateKeyError):
            self._repeats.begin(now)
            batch.has_met_duplicate = True
        is_unknown = batch.sent is not None
        seconds = batch.retries.seconds_after(attempt, error, now, is_unknown=is_unknown)
        if seconds is None or seconds >= batch.seconds_left():
            raise self._not_done(batch, error)
        if self._tell is not None:
            reason = reason_of(attempt, error)
            requests = len(batch.requests)
            self._tell(AttemptRetried(reason, error_name(error), attempt.number, requests, seconds))
        return seconds

    def _not_done(self, batch: _Batch, error: BaseException) -> CreditError:
        """What to tell the callers when there will be no other attempt."""
        if batch.sent is not None:
            return caused_by(error, CommitOutcomeUnknownError())
        if isinstance(error, asyncio.TimeoutError):
            late = StorageError(f"{not_in_time(self._client)}; nothing was written")
            return caused_by(error, late)
        return as_storage_error(error)


def _halves_by_user(requests: Sequence[AnyRequest]) -> list[bool]:
    """Say of each request whether it is of the first half of the users. Empty for one user."""
    users = list(dict.fromkeys(request.user_id for request in requests))
    first = set(users[: len(users) // 2])
    return [request.user_id in first for request in requests] if first else []


_AnyError = TypeVar("_AnyError", bound=CreditError)


def _copy(error: _AnyError) -> _AnyError:
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied

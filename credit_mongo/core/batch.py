"""Decide a batch of requests, each on the state that the requests before it left.

The outcomes are the same as if each request had its own transaction, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

from credit_mongo.core.advance import EXPIRE, MAX_DUE_ROWS, advance
from credit_mongo.core.decision import Decision, Posting, Request
from credit_mongo.core.extras import LotsUnreadError
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded, Remembered, State
from credit_mongo.core.values import Account
from credit_mongo.errors import CreditError, IdempotencyConflictError

__all__ = [
    "LATER",
    "DecidedBatch",
    "KeyRecord",
    "Later",
    "Note",
    "Outcome",
    "Refusal",
    "decide_batch",
]

Outcome: TypeAlias = Any
"""What one caller gets: a result, or a CreditError to raise."""


class Refusal(NamedTuple):
    """A refused request. The caller gets the error; the audit log gets its message."""

    request: Request[Any]
    error: CreditError
    at: datetime


class Later(Enum):
    """The type of ``LATER``."""

    LATER = "LATER"


LATER: Final = Later.LATER
"""Instead of an outcome: the account must first be advanced by further commits."""


class Note(NamedTuple):
    """An accepted request that moved no credits, for the audit log."""

    request: Request[Any]
    details: Mapping[str, Any]
    at: datetime


class KeyRecord(NamedTuple):
    """What the ledger will remember under a request's idempotency key."""

    request: Request[Any]
    remembered: Remembered
    at: datetime


@dataclass(slots=True)
class DecidedBatch:
    """A decided batch: the outcomes in the order of the requests, and everything to write."""

    state: State
    outcomes: list[Outcome] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    keys: list[KeyRecord] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    """Users on whose accounts more is due than this batch writes."""
    unread: set[str] = field(default_factory=set)
    """Users with lots that were not read, and decide. The batch must be decided again with them."""


def decide_batch(
    policy: Policy,
    loaded: Loaded,
    requests: Sequence[Request[Any]],
    now: datetime,
    *,
    most_due_rows: int | None = MAX_DUE_ROWS,
) -> DecidedBatch:
    """Decide all requests at one moment, in their order.

    If ``unread`` of the result is not empty, nothing of it may be written.

    If more than ``most_due_rows`` rows are due on an account, the outcome of its requests is
    ``LATER``. With None, all are posted at once.
    """
    batch = DecidedBatch(State(loaded))
    for request in requests:
        batch.outcomes.append(_decide(batch, request, policy, now, most_due_rows))
    return batch


def _decide(
    batch: DecidedBatch,
    request: Request[Any],
    policy: Policy,
    now: datetime,
    most_due_rows: int | None,
) -> Outcome:
    state = batch.state
    account = state.accounts.get(request.user_id)
    if request.key is not None and (known := state.remembered.get(request.key)) is not None:
        if known.result is not None and known.fingerprint == request.fingerprint:
            # A copy, because callers may change the metadata of their results.
            return replace(deepcopy(known.result), replayed=True)
        at = now if account is None else policy.time_for(account, now)
        return _refuse(batch, request, IdempotencyConflictError(request.key), at)
    try:
        if account is None:
            now = state.moment_to_open(request.user_id, now, policy.max_lead)
        else:
            now = policy.time_for(account, now)
            if account.extras is not None and not _advance(
                batch, account, request, now, most_due_rows
            ):
                return LATER
        decision = OPERATIONS[request.operation].decide(request, state, policy, now)
    except CreditError as error:
        return _refuse(batch, request, error, now)
    except LotsUnreadError:
        batch.unread.add(request.user_id)
        return LATER
    return _accept(batch, request, decision, now)


def _advance(
    batch: DecidedBatch,
    account: Account,
    request: Request[Any],
    now: datetime,
    most_rows: int | None,
) -> bool:
    """Post what is due on the account. Returns whether all of it is posted."""
    if account.user_id in batch.unfinished:
        return False
    advanced = advance(account, now, request.transaction_id, most_rows=most_rows)
    if advanced.account is account:
        return True
    for posting in advanced.postings:
        _apply(batch, posting)
    batch.state.accounts[account.user_id] = advanced.account
    for change in advanced.changes:
        change.apply(batch.state)
    if not advanced.is_complete:
        batch.unfinished.add(account.user_id)
    return advanced.is_complete


def _accept(
    batch: DecidedBatch, request: Request[Any], decision: Decision[Any], now: datetime
) -> Outcome:
    for posting in decision.postings:
        _apply(batch, posting)
    for change in decision.changes:
        change.apply(batch.state)
    outcome = decision.outcome
    if isinstance(outcome, CreditError):
        return _refuse(batch, request, outcome, now)
    if decision.noted is not None:
        batch.notes.append(Note(request, decision.noted, now))
    if request.key is not None:
        remembered = Remembered(request.fingerprint, outcome)
        batch.state.remembered[request.key] = remembered
        batch.keys.append(KeyRecord(request, remembered, now))
    return outcome


def _apply(batch: DecidedBatch, posting: Posting) -> None:
    batch.state.accounts[posting.account.user_id] = posting.account
    batch.postings.append(posting)
    if posting.operation == EXPIRE:
        for leg in posting.legs or ():
            if leg.lot_id is not None:
                expired = batch.state.expired
                expired[leg.lot_id] = expired.get(leg.lot_id, 0) - leg.amount


def _refuse(
    batch: DecidedBatch, request: Request[Any], error: CreditError, now: datetime
) -> CreditError:
    batch.refusals.append(Refusal(request, error, now))
    return error

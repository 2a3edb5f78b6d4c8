"""Decide a batch of requests, each on the state that the requests before it left.

The outcomes are the same as if each request had its own transaction, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from credit_mongo.core.advance import Advance, advance, nothing_due
from credit_mongo.core.decision import Decision, Posting, Request
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded, Remembered, State
from credit_mongo.errors import CreditError, IdempotencyConflictError

__all__ = ["DecidedBatch", "KeyRecord", "Outcome", "Refusal", "decide_batch"]

Outcome: TypeAlias = Any
"""What one caller gets: a result, or a CreditError to raise."""


class Refusal(NamedTuple):
    """A refused request. The caller gets the error; the audit log gets its message."""

    request: Request[Any]
    error: CreditError
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


def decide_batch(
    policy: Policy,
    loaded: Loaded,
    requests: Sequence[Request[Any]],
    now: datetime,
    *,
    due_on: Advance = nothing_due,
) -> DecidedBatch:
    """Decide all requests at one moment, in their order."""
    batch = DecidedBatch(State(loaded))
    for request in requests:
        batch.outcomes.append(_decide(batch, request, policy, now, due_on))
    return batch


def _decide(
    batch: DecidedBatch, request: Request[Any], policy: Policy, now: datetime, due_on: Advance
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
            for posting in advance(due_on, request, account, now):
                _apply(batch, posting)
        decision = OPERATIONS[request.operation].decide(request, state, policy, now)
    except CreditError as error:
        return _refuse(batch, request, error, now)
    return _accept(batch, request, decision, now)


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
    if request.key is not None:
        remembered = Remembered(request.fingerprint, outcome)
        batch.state.remembered[request.key] = remembered
        batch.keys.append(KeyRecord(request, remembered, now))
    return outcome


def _apply(batch: DecidedBatch, posting: Posting) -> None:
    batch.state.accounts[posting.account.user_id] = posting.account
    batch.postings.append(posting)


def _refuse(
    batch: DecidedBatch, request: Request[Any], error: CreditError, now: datetime
) -> CreditError:
    batch.refusals.append(Refusal(request, error, now))
    return error

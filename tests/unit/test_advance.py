"""Advance: what time has decided is posted before the user's next request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from bson import ObjectId

from credit_mongo import CreditConfig
from credit_mongo.core.advance import MAX_DUE_ROWS, derived_id
from credit_mongo.core.batch import LATER, DecidedBatch, decide_batch
from credit_mongo.core.extras import ActiveHold, Extras, Lot, Pin
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.operations.grant import GrantRequest
from credit_mongo.core.state import Loaded
from credit_mongo.core.values import Account
from credit_mongo.errors import InsufficientCreditsError, UserNotFoundError

START = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
POLICY = CreditConfig(costs={"post": {"default": 10}}).policy
LOTS = tuple(Lot(f"{number:024x}", 10, START + HOUR * number, 50, None) for number in range(1, 4))
ANN = Account("ann", 50, 7, None, None, START, START, Extras(LOTS))
BOB = Account("bob", 50, 7, None, None, START, START)


def charge(user_id: str, amount: int) -> ChargeRequest:
    return ChargeRequest(
        user_id=user_id,
        transaction_id=str(ObjectId()),
        action="post",
        amount=amount,
        variables=None,
    )


def decide(requests: Sequence[ChargeRequest | GrantRequest], now: datetime) -> DecidedBatch:
    loaded = Loaded({"ann": ANN, "bob": BOB}, {}, {}, {}, frozenset())
    return decide_batch(POLICY, loaded, requests, now)


def test_what_is_due_is_posted_first_and_dated_when_it_was_due() -> None:
    """The rows follow each other without a gap, dated when due, and say when they were written."""
    now = START + HOUR * 2.5
    batch = decide([charge("ann", 5)], now)
    rows = [
        (p.operation, p.account.seq, p.balance_before, p.amount, p.account.updated_at)
        for p in batch.postings
    ]
    assert rows == [
        ("expire", 8, 50, -10, START + HOUR),
        ("expire", 9, 40, -10, START + HOUR * 2),
        ("charge", 10, 30, -5, now),
    ]
    assert [p.written_at for p in batch.postings] == [now, now, None]
    assert batch.outcomes[0].balance_before == 30


def test_it_is_posted_once_for_all_requests_of_a_batch() -> None:
    """The second request finds the account as the first one left it."""
    batch = decide([charge("ann", 1), charge("ann", 1)], START + HOUR)
    assert [p.operation for p in batch.postings] == ["expire", "charge", "charge"]


def test_a_refused_request_still_posts_what_is_due() -> None:
    """What is due is posted whatever becomes of the request."""
    batch = decide([charge("ann", 45)], START + HOUR)
    assert isinstance(batch.outcomes[0], InsufficientCreditsError)
    assert batch.outcomes[0].available == 40
    assert [p.operation for p in batch.postings] == ["expire"]
    assert [refusal.error for refusal in batch.refusals] == batch.outcomes


def test_nothing_is_posted_for_users_without_anything_due_or_without_an_account() -> None:
    """A user with nothing due gets no rows, and neither does a user without an account."""
    batch = decide([charge("bob", 5), charge("eve", 5)], START + HOUR)
    assert [p.operation for p in batch.postings] == ["charge"]
    assert isinstance(batch.outcomes[1], UserNotFoundError)


def test_ids_of_due_rows_derive_from_the_request_and_differ_between_requests() -> None:
    """Two processes that post one expiry use different ids, so a row proves its own commit."""
    first, second = charge("ann", 5), charge("ann", 5)
    batches = [decide([request], START + HOUR * 3) for request in (first, second)]
    ids = [[p.transaction_id for p in batch.postings] for batch in batches]
    assert ids[0][:3] == [derived_id(first.transaction_id, ordinal) for ordinal in range(8, 11)]
    assert len({*ids[0], *ids[1]}) == 8
    assert all(ObjectId.is_valid(each) for each in ids[0])
    assert ObjectId(ids[0][0]).generation_time == ObjectId(first.transaction_id).generation_time


@pytest.mark.parametrize("ordinal", [0, 1, 127])
def test_a_derived_id_is_the_same_in_every_attempt(ordinal: int) -> None:
    """A retry after an unknown outcome writes the same rows."""
    request_id = str(ObjectId())
    assert derived_id(request_id, ordinal) == derived_id(request_id, ordinal)


def test_more_than_a_commit_writes_is_posted_by_further_commits() -> None:
    """The requests wait; nothing of them happens before all that is due is posted."""
    holds = tuple(
        ActiveHold(f"{n:024x}", "job", (Pin(None, 1),), 0, 0, 1, START + HOUR, True, "available")
        for n in range(200)
    )
    account: Account | None = Account("ann", 300, 7, None, None, START, START, Extras((), holds))
    waiting, rows = [charge("ann", 1), charge("ann", 2)], []
    for _ in range(2):
        assert account is not None
        loaded = Loaded({"ann": account}, {}, {}, {}, frozenset())
        batch = decide_batch(POLICY, loaded, waiting, START + HOUR * 2)
        rows.append(len(batch.postings))
        account = batch.state.accounts["ann"]
        if rows == [MAX_DUE_ROWS]:
            assert batch.outcomes == [LATER, LATER]
    assert rows == [MAX_DUE_ROWS, 200 - MAX_DUE_ROWS + 2]
    assert (account and account.credits) == 97


def test_a_last_change_dated_wrongly_dates_no_row_of_a_lot_s_end() -> None:
    """It is dated years ahead, and is not believed: each row has its own date."""
    ann = ANN._replace(updated_at=START + HOUR * 100_000)
    policy = replace(POLICY, max_lead=HOUR)
    now = START + HOUR * 1.5
    loaded = Loaded({"ann": ann}, {}, {}, {}, frozenset())
    batch = decide_batch(policy, loaded, [charge("ann", 5)], now)
    dates = [(row.operation, row.account.updated_at) for row in batch.postings]
    assert dates == [("expire", START + HOUR), ("charge", now)]

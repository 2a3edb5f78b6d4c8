"""What the requests of a batch mean for each other, and any sequence of them. No database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_mongo import KEEP
from credit_mongo.core.batch import Outcome, Refusal, decide_batch
from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.grant import GrantResult
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.results import User
from credit_mongo.core.state import Loaded, Remembered
from credit_mongo.core.values import (
    LARGEST_AMOUNT,
    LARGEST_BALANCE,
    Account,
    RefundableCharge,
)
from credit_mongo.errors import (
    AccountDataError,
    CreditError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidRequestError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
    UserExistsError,
    UserNotFoundError,
)
from tests.unit.decisions.accounts import (
    A_DAY,
    COSTS,
    FUTURE,
    NOW,
    POLICY,
    TIERS,
    USER,
    account,
    charge,
    create,
    downgrade,
    facts,
    grant,
    new_id,
    refund,
    renew,
    upgrade,
)

_R = TypeVar("_R", bound=Outcome)
_T = TypeVar("_T")


@dataclass
class Shelf:
    """What a database would hold, with the loading and writing that the engine does."""

    policy: Policy = POLICY
    accounts: dict[str, Account] = field(default_factory=dict)
    unreadable: dict[str, AccountDataError] = field(default_factory=dict)
    postings: list[Posting] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    remembered: dict[str, Remembered] = field(default_factory=dict)

    def commit(self, requests: Sequence[Request[Any]], now: datetime = NOW) -> list[Outcome]:
        """Decide a batch on what is there, and keep what comes of it."""
        decided = decide_batch(self.policy, self.load(requests), requests, now)
        self.accounts.update(decided.state.accounts)
        self.postings += decided.postings
        self.refusals += decided.refusals
        self.remembered.update(decided.state.remembered)
        return decided.outcomes

    def load(self, requests: Sequence[Request[Any]]) -> Loaded:
        """Only what the requests name, as the engine does."""
        user_ids = {request.user_id for request in requests}
        keys = {request.key for request in requests if request.key is not None}
        charge_ids = {
            request.charge_id for request in requests if isinstance(request, RefundRequest)
        }
        refunded = dict.fromkeys(charge_ids, 0)
        for posting in self.postings:
            if posting.refund_of in refunded:
                refunded[posting.refund_of] += posting.amount
        charges = {
            p.transaction_id: RefundableCharge(
                p.transaction_id,
                p.account.user_id,
                -p.amount,
                refunded[p.transaction_id],
            )
            for p in self.postings
            if p.operation == ChargeRequest.operation and p.transaction_id in charge_ids
        }
        return Loaded(
            {user_id: self.accounts[user_id] for user_id in user_ids & self.accounts.keys()},
            self.unreadable,
            charges,
            {key: self.remembered[key] for key in keys & self.remembered.keys()},
            frozenset(),
        )


def shelf(*accounts: Account) -> Shelf:
    """A shelf with these accounts."""
    return Shelf(accounts={found.user_id: found for found in accounts})


def as_(kind: type[_R], outcome: Outcome) -> _R:
    """An outcome that is known to be of a kind."""
    assert type(outcome) is kind, outcome
    return outcome


def test_each_request_of_a_batch_meets_what_those_before_it_left() -> None:
    """A second charge finds what the first left, a third too little, and a grant helps a fourth."""
    held = shelf(account(25))
    outcomes = held.commit([charge(), charge(), charge(), grant(5), charge()])
    first, second, third, fourth, fifth = outcomes
    assert (as_(ChargeResult, first).balance_before, as_(ChargeResult, first).balance_after) == (
        25,
        15,
    )
    assert (as_(ChargeResult, second).balance_before, as_(ChargeResult, second).balance_after) == (
        15,
        5,
    )
    assert facts(as_(InsufficientCreditsError, third)) == {
        "user_id": USER,
        "required": 10,
        "available": 5,
    }
    assert as_(GrantResult, fourth).balance_after == 10
    assert as_(ChargeResult, fifth).balance_after == 0
    assert [posting.account.seq for posting in held.postings] == [8, 9, 10, 11]
    assert [refusal.error for refusal in held.refusals] == [third]
    assert held.accounts[USER].credits == 0


def test_a_refusal_disturbs_nobody_else_in_the_batch() -> None:
    """Two users share a batch; the one without credits is refused alone."""
    held = shelf(account(0), account(50, user_id="user-2"))
    refused_one, charged = held.commit([charge(), charge(user_id="user-2")])
    assert type(refused_one) is InsufficientCreditsError
    assert as_(ChargeResult, charged).user_id == "user-2"
    assert held.accounts[USER] == account(0)


def test_a_user_is_created_and_charged_in_one_batch() -> None:
    """A creation is seen by what comes after it, and not by what came before."""
    held = shelf()
    outcomes = held.commit([charge(), create(30), charge(), create(30)])
    assert type(outcomes[0]) is UserNotFoundError
    assert as_(User, outcomes[1]).credits == 30
    assert as_(ChargeResult, outcomes[2]).balance_after == 20
    assert type(outcomes[3]) is UserExistsError
    assert [(p.account.seq, p.amount) for p in held.postings] == [(1, 30), (2, -10)]


def test_a_key_used_twice_in_a_batch_has_one_effect_and_one_result() -> None:
    """The second is told what the first did: the same ids, and that it is a replay."""
    held = shelf(account(100))
    first, second = held.commit([charge(key="k", metadata={"a": 1}), charge(key="k")])
    assert first == second
    assert as_(ChargeResult, first).replayed is False
    assert as_(ChargeResult, second).replayed is True
    assert as_(ChargeResult, second).metadata == {"a": 1}
    assert len(held.postings) == 1
    assert held.accounts[USER].credits == 90


def test_a_key_of_an_earlier_batch_gives_its_result_again() -> None:
    """A replay needs neither the credits nor the user of then."""
    held = shelf(account(10))
    [first] = held.commit([charge(key="k")])
    del held.accounts[USER]
    [again] = held.commit([charge(key="k")])
    assert again == first
    assert as_(ChargeResult, again).replayed is True
    assert len(held.postings) == 1


KEYED: list[tuple[str, Request[Any]]] = [
    ("another action", charge("report", key="k")),
    ("an amount", charge(key="k", amount=10)),
    ("variables", charge(key="k", variables={"a": 1})),
    ("another user", charge(key="k", user_id="user-2")),
    ("another operation", grant(10, key="k")),
    ("a creation", create(10, key="k", user_id="user-3")),
]


@pytest.mark.parametrize("request_", [case[1] for case in KEYED], ids=[case[0] for case in KEYED])
@pytest.mark.parametrize("together", [True, False])
def test_a_key_with_another_request_is_refused(request_: Request[Any], together: bool) -> None:
    """In the same batch or a later one, a key belongs to its first request, and stays with it."""
    held = shelf(account(100, tier="premium"), account(100, user_id="user-2"))
    if together:
        first, second = held.commit([charge(key="k"), request_])
    else:
        [first] = held.commit([charge(key="k")])
        [second] = held.commit([request_])
    assert as_(IdempotencyConflictError, second).key == "k"
    assert len(held.postings) == 1
    assert [refusal.request for refusal in held.refusals] == [request_]
    assert held.commit([charge(key="k")]) == [first]


@pytest.mark.parametrize("together", [True, False])
def test_a_refused_operation_leaves_its_key_free(together: bool) -> None:
    """Only successes are remembered: with credits, the same key goes through, for any request."""
    held = shelf(account(0))
    requests: list[Request[Any]] = [charge(key="k"), grant(100), grant(1, key="k")]
    if together:
        outcomes = held.commit(requests)
    else:
        outcomes = [held.commit([request])[0] for request in requests]
    assert type(outcomes[0]) is InsufficientCreditsError
    assert as_(GrantResult, outcomes[2]).replayed is False
    assert list(held.remembered) == ["k"]


def test_a_refusal_for_bad_input_leaves_its_key_free() -> None:
    """A key is not spent on a request that only the account could show to be wrong."""
    held = shelf(account(LARGEST_BALANCE))
    [outcome] = held.commit([grant(1, key="k")])
    assert type(outcome) is InvalidRequestError
    assert held.remembered == {}


@pytest.mark.parametrize("together", [True, False])
def test_two_refunds_share_the_cap_of_their_charge(together: bool) -> None:
    """What the first took of a charge, the second cannot, in one batch as in two."""
    held = shelf(account(100))
    [charged] = held.commit([charge()])
    charge_id = as_(ChargeResult, charged).transaction_id
    requests = [refund(6, of=charge_id), refund(5, of=charge_id), refund(4, of=charge_id)]
    if together:
        outcomes = held.commit(requests)
    else:
        outcomes = [held.commit([request])[0] for request in requests]
    assert as_(RefundResult, outcomes[0]).amount == 6
    assert facts(as_(RefundExceedsChargeError, outcomes[1])) == {
        "transaction_id": charge_id,
        "refundable": 4,
        "requested": 5,
    }
    assert as_(RefundResult, outcomes[2]).balance_after == 100
    assert [p.refund_of for p in held.postings[1:]] == [charge_id, charge_id]


def test_free_refunds_leave_the_cap_of_a_charge_alone() -> None:
    """Only a refund that names the charge is counted against it."""
    held = shelf(account(100))
    [charged] = held.commit([charge()])
    charge_id = as_(ChargeResult, charged).transaction_id
    free, linked = held.commit([refund(10), refund(10, of=charge_id)])
    assert as_(RefundResult, free).balance_after == 100
    assert as_(RefundResult, linked).balance_after == 110


@pytest.mark.parametrize("kind", [grant(5), refund(5)], ids=["grant", "refund"])
def test_only_a_charge_can_be_refunded(kind: Request[Any]) -> None:
    """The id of a grant or of a refund is no charge's."""
    held = shelf(account(100))
    held.commit([kind])
    [outcome] = held.commit([refund(1, of=kind.transaction_id)])
    assert type(outcome) is TransactionNotFoundError


def test_an_unreadable_account_is_refused_and_no_other() -> None:
    """Those who ask for a broken document are told, each in an error of its own."""
    held = shelf(account(100, user_id="user-2"))
    held.unreadable[USER] = AccountDataError(USER, "credits", "is below zero")
    first, second, other = held.commit([charge(), grant(1), charge(user_id="user-2")])
    assert facts(as_(AccountDataError, first)) == facts(as_(AccountDataError, second))
    assert first is not second
    assert as_(ChargeResult, other).balance_after == 90


def test_results_have_the_facts_of_their_posting() -> None:
    """Each operation's result says what it did, in the words of the design."""
    held = shelf()
    opened, granted, upgraded, charged, renewed, downgraded = held.commit(
        [
            create(30),
            grant(5),
            upgrade("premium", expires_at=FUTURE),
            charge(metadata={"a": 1}),
            renew(None),
            downgrade("free"),
        ]
    )
    ids = [posting.transaction_id for posting in held.postings]
    assert opened == User(
        user_id=USER,
        credits=30,
        membership_tier=None,
        membership_expires_at=None,
        seq=1,
        created_at=NOW,
        updated_at=NOW,
    )
    assert granted == GrantResult(
        transaction_id=ids[1],
        user_id=USER,
        action="bonus",
        amount=5,
        balance_before=30,
        balance_after=35,
        created_at=NOW,
        metadata=None,
    )
    assert upgraded == TierChangeResult(
        transaction_id=ids[2],
        user_id=USER,
        old_tier=None,
        new_tier="premium",
        old_credits=35,
        new_credits=2000,
        credits_delta=1965,
        membership_expires_at=FUTURE,
        created_at=NOW,
    )
    assert charged == ChargeResult(
        transaction_id=ids[3],
        user_id=USER,
        action="post",
        cost=8,
        balance_before=2000,
        balance_after=1992,
        created_at=NOW,
        metadata={"a": 1},
    )
    assert renewed == TierChangeResult(
        transaction_id=ids[4],
        user_id=USER,
        old_tier="premium",
        new_tier="premium",
        old_credits=1992,
        new_credits=2000,
        credits_delta=8,
        membership_expires_at=None,
        created_at=NOW,
    )
    assert as_(TierChangeResult, downgraded).credits_delta == -1900


@pytest.mark.parametrize("kind", [User, ChargeResult, RefundResult, GrantResult, TierChangeResult])
def test_results_are_frozen_and_slotted(kind: type[Any]) -> None:
    """What a caller is told cannot be changed, nor given attributes of its own."""
    held = shelf(account(100, tier="free"))
    outcomes = held.commit(
        [charge(), refund(1), grant(1), upgrade("premium"), create(user_id="user-2")]
    )
    [result] = [outcome for outcome in outcomes if type(outcome) is kind]
    assert not hasattr(result, "__dict__")
    for name in ("user_id", "replayed", "novel"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(result, name, "x")


# --- Any sequence ---------------------------------------------------------------------------------

USERS = ["ann", "bob"]
# What is to be met often stands here often.
KINDS = [
    *("create", "charge", "charge", "charge", "charge-amount", "grant", "refund"),
    *("refund-charge", "refund-charge", "refund-charge", "upgrade", "downgrade", "renew"),
    *("again", "again"),
]


class Step(NamedTuple):
    """What Hypothesis draws; ``request_of`` makes it a request, given what happened before."""

    kind: str
    user_id: str
    amount: int
    choice: int
    key: str | None
    ends_batch: bool
    hours: int


STEPS = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    user_id=st.sampled_from(USERS),
    amount=st.integers(1, 60) | st.just(LARGEST_AMOUNT),
    choice=st.integers(0, 59),
    key=st.sampled_from([None, None, None, "k1", "k2", "k3"]),
    ends_batch=st.booleans(),
    # The clock goes back, too.
    hours=st.integers(-12, 24),
)


def chosen(step: Step, options: Sequence[_T]) -> _T:
    """One of the options, by what was drawn."""
    return options[step.choice % len(options)]


def request_of(  # noqa: PLR0911
    step: Step, held: Shelf, earlier: Sequence[Request[Any]], now: datetime
) -> Request[Any]:
    """The request of a step: refunds name charges that are there, repetitions what was asked."""
    common: dict[str, Any] = {
        "user_id": step.user_id,
        "transaction_id": new_id(),
        "key": step.key,
    }
    expires_at = chosen(step, [None, now + A_DAY, now - A_DAY, now])
    charges = [p for p in held.postings if p.operation == ChargeRequest.operation]
    match step.kind:
        case "again" if earlier:
            return replace(chosen(step, earlier), transaction_id=new_id())
        case "create":
            tier = chosen(step, [None, *TIERS, "gold"])
            return CreateUserRequest(
                **common,
                credits=step.amount,
                membership_tier=tier,
                membership_expires_at=expires_at,
            )
        case "charge":
            variables = chosen(step, [None, {"token": 900, "words": 70, "total": 7, "parts": 3}])
            return charge(
                chosen(step, [*COSTS, "post", "free", "dance"]),
                variables=variables,
                key=step.key,
                user_id=step.user_id,
            )
        case "charge-amount":
            return charge("dance", amount=step.amount, key=step.key, user_id=step.user_id)
        case "refund-charge" if charges:
            of = chosen(step, charges[-3:])
            user_id = chosen(step, [of.account.user_id] * 4 + USERS)
            return refund(step.amount % 7 + 1, of=of.transaction_id, key=step.key, user_id=user_id)
        case "refund":
            return refund(step.amount, key=step.key, user_id=step.user_id)
        case "upgrade":
            keep_or_set = chosen(step, [KEEP, expires_at])
            return UpgradeTierRequest(
                **common,
                target_tier=chosen(step, list(TIERS)),
                membership_expires_at=keep_or_set,
            )
        case "downgrade":
            return DowngradeTierRequest(
                **common,
                target_tier=chosen(step, list(TIERS)[:4]),
                clear_expiration=chosen(step, [True, False]),
            )
        case "renew":
            return RenewTierRequest(
                **common,
                membership_expires_at=expires_at,
                refill=chosen(step, [True, False]),
                allow_earlier=True,
            )
        case _:
            return grant(step.amount, key=step.key, user_id=step.user_id)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.lists(STEPS, min_size=20, max_size=60))
def test_any_sequence_of_requests_keeps_the_promises(opening: int, steps: list[Step]) -> None:
    """Whatever is asked in whatever batches, balances explain themselves and stay within bounds."""
    held, now = Shelf(), NOW
    held.commit([create(opening, user_id=USERS[0])])
    earlier: list[Request[Any]] = []
    batch: list[Request[Any]] = []
    for step in steps:
        batch.append(request_of(step, held, earlier, now))
        if step.ends_batch:
            commit_and_count(held, batch, now)
            earlier += batch
            batch = []
            now += timedelta(hours=step.hours)
    commit_and_count(held, batch, now)
    for user_id in USERS:
        check_promises_for(held, user_id)
    check_refunds(held)
    keyed = [p.key for p in held.postings if p.key is not None]
    assert sorted(keyed) == sorted(held.remembered)


def commit_and_count(held: Shelf, requests: Sequence[Request[Any]], now: datetime) -> None:
    """Every request has one outcome, and leaves one record unless it is a replay."""
    before = len(held.postings) + len(held.refusals)
    outcomes = held.commit(requests, now)
    replays = sum(not isinstance(found, CreditError) and found.replayed for found in outcomes)
    assert len(outcomes) == len(requests)
    assert len(held.postings) + len(held.refusals) - before == len(requests) - replays


def check_promises_for(held: Shelf, user_id: str) -> None:
    """One user's postings are a chain without a gap, from nothing to the balance."""
    postings = [p for p in held.postings if p.account.user_id == user_id]
    assert bool(postings) is (user_id in held.accounts)
    if not postings:
        return
    assert postings[0].balance_before == 0
    assert [p.account.seq for p in postings] == list(range(1, len(postings) + 1))
    for posting in postings:
        assert 0 <= posting.account.credits <= LARGEST_BALANCE
        assert posting.balance_before + posting.amount == posting.account.credits
    for earlier, later in pairwise(postings):
        assert later.balance_before == earlier.account.credits
        assert later.account.updated_at >= earlier.account.updated_at
    assert held.accounts[user_id] == postings[-1].account
    assert held.accounts[user_id].credits == sum(p.amount for p in postings)


def check_refunds(held: Shelf) -> None:
    """No charge was refunded beyond what it took, nor to another user."""
    postings = {p.transaction_id: p for p in held.postings}
    refunds = [p for p in held.postings if p.refund_of is not None]
    for charge_id in {p.refund_of for p in refunds}:
        assert charge_id is not None
        of_this = [p for p in refunds if p.refund_of == charge_id]
        assert sum(p.amount for p in of_this) <= -postings[charge_id].amount
        assert {p.account.user_id for p in of_this} == {postings[charge_id].account.user_id}

"""Attempts: how far one can come, and what follows when it fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure

from credit_mongo import RetryConfig
from credit_mongo.engine.attempt import AbandonedError, Attempt, Stage
from credit_mongo.engine.retries import RefusedError, Retries, UserContendedError
from credit_mongo.engine.turns import Turns

CONFLICT = OperationFailure("x", 112, {"errorLabels": ["TransientTransactionError"]})
LOST = AutoReconnect("connection closed")
REFUSED = OperationFailure("x", 121)
DUPLICATE = DuplicateKeyError("x", 11000)


def attempt_at(*stages: Stage) -> Attempt:
    """An attempt that has come so far."""
    attempt = Attempt()
    for stage in stages:
        attempt.enter(stage)
    return attempt


# How far


@pytest.mark.parametrize("stage", [Stage.TAKING_TURN, Stage.WRITING, Stage.COMMITTING])
def test_an_abandoned_attempt_goes_no_further(stage: Stage) -> None:
    """Late work finds out before its next step, whatever that is."""
    attempt = Attempt()
    attempt.abandon()
    with pytest.raises(AbandonedError):
        attempt.enter(stage)
    with pytest.raises(AbandonedError):
        attempt.check_that_it_goes_on()


def test_an_attempt_has_the_turn_once_it_is_past_taking_it() -> None:
    """Not while it takes the turn, and not without one."""
    assert not attempt_at(Stage.TAKING_TURN).has_turn
    assert not attempt_at(Stage.WRITING, Stage.COMMITTING).has_turn
    assert attempt_at(Stage.TAKING_TURN, Stage.WRITING).has_turn
    assert attempt_at(Stage.TAKING_TURN, Stage.WRITING, Stage.COMMITTING).has_turn


def test_the_turn_is_lost_until_an_attempt_has_waited_for_it() -> None:
    """A failure while waiting leaves it lost; so does another that comes first."""
    lost = attempt_at(Stage.TAKING_TURN).next()
    assert (lost.number, lost.lost_turn, lost.has_turn) == (2, True, False)
    assert lost.next().lost_turn
    lost.enter(Stage.WRITING)
    assert not lost.next().lost_turn
    assert not attempt_at(Stage.TAKING_TURN, Stage.WRITING).next().lost_turn


# What follows


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays are as long as they can be."""
    monkeypatch.setattr(RetryConfig, "delay_seconds", RetryConfig.longest_delay_seconds)


def retries_of(turns: Turns | None = None, patience: float | None = 0.2) -> Retries:
    """Those of a batch that may fail three times."""
    return Retries(RetryConfig(max_attempts=3), turns or Turns(), patience)


def after(
    retries: Retries,
    error: Exception,
    attempt: Attempt | None = None,
    *,
    now: float = 100.0,
    is_unknown: bool = False,
) -> float | None:
    """What follows when a writing attempt fails."""
    attempt = attempt or attempt_at(Stage.WRITING)
    return retries.seconds_after(attempt, error, now, is_unknown=is_unknown)


@pytest.mark.usefixtures("longest")
def test_a_failure_is_followed_by_as_many_attempts_as_the_settings_allow() -> None:
    """And by longer and longer waits."""
    retries = retries_of()
    assert [after(retries, LOST) for _ in range(3)] == [0.02, 0.04, None]


@pytest.mark.usefixtures("longest")
def test_an_unknown_outcome_is_looked_for_until_the_deadline() -> None:
    """However many attempts fail, and whatever the server refuses."""
    retries = retries_of(patience=0)
    delays = [after(retries, error, is_unknown=True) for error in [LOST, REFUSED] * 10]
    assert None not in delays
    in_turn = attempt_at(Stage.TAKING_TURN, Stage.WRITING)
    assert after(retries, CONFLICT, in_turn, is_unknown=True) is not None


def test_what_the_server_refuses_is_not_tried_again() -> None:
    """Another attempt would be refused, too."""
    with pytest.raises(RefusedError) as refused:
        after(retries_of(), REFUSED)
    assert refused.value.error is REFUSED


def test_a_duplicate_is_tried_again_at_once_and_not_for_ever() -> None:
    """The next attempt looks the keys up; a document that it does not find stays one."""
    retries = retries_of()
    assert [after(retries, DUPLICATE) for _ in range(3)] == [0, 0, 0]
    with pytest.raises(RefusedError):
        after(retries, DUPLICATE)


def test_conflicts_are_no_failures_and_lead_to_turns() -> None:
    """They are retried far more often than failures, after short waits."""
    turns = Turns()
    retries = retries_of(turns)
    assert not turns.are_needed(100)
    delays = [after(retries, CONFLICT) for _ in range(50)]
    assert all(delay is not None and 0 < delay <= 0.04 for delay in delays)
    assert turns.are_needed(100)


def test_a_conflict_over_the_turn_is_none_over_a_user() -> None:
    """The next attempt waits on the server instead, and nobody's patience runs."""
    turns = Turns()
    retries = retries_of(turns, patience=0)
    taking = attempt_at(Stage.TAKING_TURN)
    assert [after(retries, CONFLICT, taking, now=100 + n) for n in range(5)] == [0] * 5
    assert not turns.are_needed(105)


@pytest.mark.parametrize(
    ("patience", "is_contended"),
    [(0.2, lambda seconds: seconds >= 0.2), (None, lambda _seconds: False)],
)
def test_a_user_that_is_contended_in_spite_of_the_turn_is_waited_for_with_patience(
    patience: float | None, is_contended: Callable[[float], bool]
) -> None:
    """Whoever has it takes no turns: an application's transaction, say."""
    for seconds in (0.0, 0.1, 0.3, 9.0):
        retries = retries_of(patience=patience)
        in_turn = attempt_at(Stage.TAKING_TURN, Stage.WRITING)
        after(retries, CONFLICT, in_turn)
        if is_contended(seconds):
            with pytest.raises(UserContendedError):
                after(retries, CONFLICT, in_turn, now=100 + seconds)
        else:
            assert after(retries, CONFLICT, in_turn, now=100 + seconds) is not None

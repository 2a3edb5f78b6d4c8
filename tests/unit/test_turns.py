"""Turns: when a ledger takes them, and in which order batches go."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from credit_mongo.core.values import Account
from credit_mongo.engine.tickets import Ticket
from credit_mongo.engine.turns import Turns

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def accounts(**seqs: int) -> dict[str, Account]:
    """Accounts by user, after so many transactions each."""
    return {user: Account(user, 0, seq, None, None, NOW, NOW) for user, seq in seqs.items()}


def drawn(number: int, *, served: int, now: float = 100.0) -> Ticket:
    """Return a ticket that was drawn when the numbers up to ``served`` had been served."""
    ticket = Ticket()
    ticket.draw(number, served, now)
    return ticket


# When


def test_turns_begin_with_the_second_conflict_in_a_row_and_come_back_for_longer() -> None:
    """One conflict is chance. A ledger that meets more right after turns takes turns longer."""
    turns, now, lengths = Turns(), 100.0, []
    turns.met_conflict(1, now)
    assert not turns.are_needed(now)
    for in_a_row, pause in ((2, 0.0), *[(1, 0.0)] * 7, (2, 1000.0)):
        now += pause
        turns.met_conflict(in_a_row, now)
        began = now
        while turns.are_needed(now):
            turns.met_conflict(2, now)  # Taking turns already: this changes nothing.
            now += 0.5
        lengths.append(now - began)
    assert lengths[:8] == sorted(lengths[:8])
    assert lengths[0] < lengths[7] == 60.0
    assert lengths[8] == lengths[0]


def test_one_conflict_is_enough_where_users_are_seen_to_be_shared() -> None:
    """A ledger that mostly wins learns so that it makes others lose."""
    turns = Turns()
    turns.has_written(accounts(ann=7, ben=3))
    turns.met_conflict(1, 100.0)
    turns.has_read(accounts(ann=7, cid=1), 100.1)
    assert not turns.are_needed(100.1)
    turns.has_read(accounts(ann=8), 100.2)
    assert turns.are_needed(100.2)


def test_users_that_are_shared_without_conflicts_need_no_turns() -> None:
    """Two processes with few callers hardly ever meet."""
    turns = Turns()
    turns.met_conflict(1, 100.0)
    turns.has_written(accounts(ann=7))
    turns.has_read(accounts(ann=8), 1000.0)
    assert not turns.are_needed(1000.0)


@pytest.mark.parametrize(
    ("seq", "had_to_wait", "last"), [(8, True, True), (8, False, False), (7, True, False)]
)
def test_turns_last_while_a_queue_for_the_same_users_shows_that_they_are_needed(
    seq: int, had_to_wait: bool, last: bool
) -> None:
    """They end where nobody else is served, or where others write other users."""
    turns = Turns()
    turns.met_conflict(2, 100.0)
    for now in range(101, 200):
        turns.has_written(accounts(ann=7))
        turns.has_read(accounts(ann=seq), now, had_to_wait=had_to_wait)
    # The conflict at the beginning is long over.
    assert turns.are_needed(199.5) is last


def test_turns_are_given_up_for_a_while_when_one_holder_keeps_the_turn() -> None:
    """This does not happen while the turn changes hands. At the next try, one look is enough."""
    turns = Turns(timeout_seconds=5)
    turns.met_conflict(2, 100.0)
    turns.seen_kept(0.4, 100.4)
    assert turns.are_needed(100.4)
    turns.seen_kept(0.6, 101.0)
    assert turns.are_stuck(101.0)
    assert not turns.are_needed(101.0)

    turns.met_conflict(2, 110.0)
    assert turns.are_needed(110.0)
    turns.seen_kept(0.0, 110.1)
    assert not turns.are_needed(110.1)

    turns.had_turn(drawn(1, served=0), 0.1, 130.0)
    turns.met_conflict(2, 130.0)
    turns.seen_kept(0.0, 130.1)
    assert turns.are_needed(130.1)


# In which order


def test_a_batch_goes_when_all_numbers_before_its_own_are_served() -> None:
    """Until then it looks from time to time, more often as its turn comes nearer."""
    ticket = drawn(4, served=0)
    pauses = [ticket.seconds_to_look(100.01, 0.02)]
    for served in (1, 2):
        ticket.see(served, 100.01)
        pauses.append(ticket.seconds_to_look(100.01, 0.02))
    assert pauses == sorted(pauses, reverse=True)
    assert all(0.001 < pause < 0.05 for pause in pauses)
    ticket.see(3, 100.01)
    assert ticket.seconds_to_look(100.01, 0.02) == 0


def test_a_batch_goes_at_once_if_nobody_waits() -> None:
    """The ledger that was served last is alone, and asks nobody."""
    ticket = drawn(8, served=7)
    assert ticket.seconds_to_look(100.0, 0.02) == 0
    assert not ticket.had_to_wait
    assert drawn(9, served=7).had_to_wait


def test_numbers_that_nobody_comes_for_are_passed_over_one_after_the_other() -> None:
    """The longer turns take, the later. Many at once cost no more than a moment."""

    def moment(ticket: Ticket, seconds_a_turn: float) -> float:
        """Seconds without movement after which the batch goes, though it is not next."""
        tenths = range(1, 100)
        return next(
            n / 20 for n in tenths if not ticket.seconds_to_look(100 + n / 20, seconds_a_turn)
        )

    first, second, last = (drawn(n, served=1) for n in (3, 4, 500))
    assert 0 < moment(first, 0.01) < moment(second, 0.01) < moment(last, 0.01) <= 1
    assert moment(first, 0.01) < moment(first, 0.2)
    # Whenever somebody is served, it begins anew.
    second.see(2, 100.2)
    assert second.seconds_to_look(100.3, 0.01) > 0


def test_a_batch_that_loses_its_turn_out_of_order_tries_again_less_and_less_often() -> None:
    """Somebody keeps the turn. Once it is served, the next goes at once."""
    ticket = drawn(2, served=1)
    pauses = []
    for now in (100.001, 100.05, 100.5):
        ticket.lose(now)
        pauses.append(ticket.seconds_to_look(now, 0.02))
    assert 0 < pauses[0] < pauses[1] < pauses[2] < 0.05
    ticket.see(2, 100.6)
    assert ticket.seconds_to_look(100.6, 0.02) == 0

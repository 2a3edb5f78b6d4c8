"""Lots, debts, holds and ends: what is true after any sequence of operations, at any moment."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Final, TypeVar

import pytest
from bson import decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_mongo import CreditConfig, MembershipConfig
from credit_mongo.core.advance import advance
from credit_mongo.core.batch import decide_batch
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.extras import NO_EXTRAS, Extras, Lot, order_of_use
from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import HoldChanges
from credit_mongo.core.values import Account
from credit_mongo.errors import CreditError, InsufficientCreditsError
from credit_mongo.storage.codecs import CODEC_OPTIONS
from credit_mongo.storage.extras import changed_extras, extras_from
from credit_mongo.storage.holds import hold_from, hold_rows
from tests.unit.decisions.story import Story, at, in_part

_R = TypeVar("_R")
_T = TypeVar("_T")
NO_ROW: Final = "0" * 24
EXAMPLES: Final = 50
STEPS: Final = 60
OPERATIONS: Final = (
    *("look", "charge_all", "set_overdraft", "change_tier", "free"),
    *("charge", "refund", "revoke", "extend", "settle") * 3,
    *("grant", "place") * 4,
)


class AnyStory(Story):
    """A story of drawn operations, checked after each."""

    def __init__(self, seed: int) -> None:
        # Uniform, so that long sequences with many holds and lots come up in a few examples.
        self._random = random.Random(seed)
        base = self.one_of([0, 50, 100])
        super().__init__(base, policy=self._any_policy(), tier="free")
        self.now = 0.0
        self._opening = base
        self._last_moment = at(-1)
        self._replayed: dict[str, int] = {}
        self._rows_seen = 0
        self._limit_was_lowered = False
        self._stored: tuple[Extras | None, dict[str, Any]] = (None, {})
        self._stored_holds: dict[str, HoldRecord] = {}

    def one_of(self, values: Sequence[_T]) -> _T:
        return self._random.choice(values)

    def amount(self, least: int = 0) -> int:
        return self._random.randint(least, 30)

    def maybe_amount(self) -> int | None:
        return self.one_of([None, self.amount()])

    def _any_policy(self) -> Policy:
        on_change: Any = self.one_of(["cap", "raise", "add", "keep"])
        membership = MembershipConfig(
            tiers={"free": 0, "pro": 1}, credits_caps={"free": 0, "pro": 15}, on_change=on_change
        )
        return CreditConfig(
            costs={"post": {"default": 10}},
            membership=membership,
            lots={"refund_grace_seconds": self.one_of([0, 5])},
        ).policy

    def do(self, request: Request[_R], now: float) -> _R:
        self._last_moment = at(now)
        if len(self.extras.lots) > 1:
            self._check_in_part(request, self.one_of(range(1, len(self.extras.lots))))
        return super().do(request, now)

    def _check_in_part(self, request: Request[Any], first: int) -> None:
        """Whoever reads only the first lots decides and stores the same, or asks for the rest."""
        account, now, loaded = self.account, self._last_moment, self.loaded()
        account_in_part = in_part(account, first)
        part = replace(loaded, accounts={"ann": account_in_part})
        batch = decide_batch(self.policy, part, [request], now)
        if batch.unread:
            assert batch.unread == {"ann"}
            return
        whole = decide_batch(self.policy, loaded, [request], now)
        assert [*map(repr, batch.outcomes)] == [*map(repr, whole.outcomes)]
        after, after_whole = batch.state.accounts["ann"], whole.state.accounts["ann"]
        rest = self.extras.lots[first:]
        assert [with_lots(row, rest) for row in batch.postings] == whole.postings
        if after_whole != account:
            assert after.extras is not None
            assert after_whole.extras is not None
            changes = changed_extras("extras", self.extras, after_whole.extras)
            assert changed_extras("extras", account_in_part.extras, after.extras) == changes

    def as_read(self) -> Account:
        return advance(self.account, at(self.now), NO_ROW).account

    def step(self) -> None:
        """Some time passes, and something happens."""
        self.now += self.one_of([0, 0, 0, 0, 0.5, 1, 3])
        with contextlib.suppress(CreditError):
            getattr(self, f"_{self.one_of(OPERATIONS)}")()
        self._check_lots(self.extras)
        self._check_pins(self.extras)
        self._check_holds(self.extras)
        self._check_history(self.extras)
        self._check_storage()

    @property
    def extras(self) -> Extras:
        return self.account.extras or NO_EXTRAS

    # What happens

    def _look(self) -> None:
        """What is read as of now is what the next write finds."""
        read = self.as_read()
        self.overdraft((read.extras or NO_EXTRAS).overdraft, self.now)
        found = (self.credits, self.available, self.account.extras)
        assert found == (read.credits, read.available, read.extras)

    def _charge(self) -> None:
        self.charge(self.amount(), self.now)

    def _charge_all(self) -> None:
        """All that is available can be spent, and not one unit more."""
        there = self.as_read().available
        with pytest.raises(InsufficientCreditsError):
            self.charge(max(there, 0) + 1, self.now)
        if there > 0:
            self.charge(there, self.now)
            assert self.available == 0

    def _grant(self) -> None:
        end = self.one_of([None, self.now + 2, self.now // 10 * 10 + 10])
        priority, source = self.one_of([50, 50, 10, 60]), self.one_of([None, None, "a"])
        self.grant(self.amount(1), self.now, end=end, priority=priority, source=source)

    def _refund(self) -> None:
        if charges := [row for row in self.rows if row.operation in {"charge", "capture"}]:
            charge = self.one_of(charges)
            result = self.refund(charge.transaction_id, self.amount(1), self.now)
            gained = result.amount - result.expired_amount
            assert result.balance_before + gained == result.balance_after == self.credits

    def _revoke(self) -> None:
        if grants := [row for row in self.rows if row.operation == "grant"]:
            grant = self.one_of(grants)
            amount = self.maybe_amount()
            result = self.revoke(grant.transaction_id, self.now, amount)
            assert result.amount + result.uncollected <= grant.amount

    def _set_overdraft(self) -> None:
        limit = self.one_of([0, 10, 30])
        self._limit_was_lowered |= limit < self.extras.overdraft
        self.overdraft(limit, self.now)

    def _change_tier(self) -> None:
        self.upgrade("pro", self.now)

    def _place(self) -> None:
        ttl, overage = self.one_of([2, 8, 30]), self.one_of(["available", "debt", "reject"])
        on_timeout = self.one_of(["settle", "release"])
        self.hold(self.amount(), self.now, ttl=ttl, overage=overage, on_timeout=on_timeout)

    def _any_hold(self) -> HoldRecord | None:
        active = [hold for hold in self.holds.values() if hold.status == "active"]
        is_any = self.one_of([True, False, False])
        holds = active if active and not is_any else [*self.holds.values()]
        return self.one_of(holds) if holds else None

    def _extend(self) -> None:
        if (hold := self._any_hold()) is not None:
            ttl, amount, used = self.one_of([None, 1, 10]), self.maybe_amount(), self.maybe_amount()
            self.extend(hold.hold_id, self.now, ttl=ttl, amount=amount, used=used)

    def _settle(self) -> None:
        """What is held can always be taken, and a repeated capture takes nothing more."""
        if (hold := self._any_hold()) is None:
            return
        total, final = self.amount(), self.one_of([True, False])
        holds = (self.as_read().extras or NO_EXTRAS).holds
        before = next((each for each in holds if each.hold_id == hold.hold_id), None)
        result = self.capture(hold.hold_id, total, self.now, final=final)
        assert result.captured == self.holds[hold.hold_id].captured
        taken = result.cost + result.expired_amount
        assert result.balance_before - taken == result.balance_after == self.credits
        if before is not None and total <= before.claimed + before.held:
            assert (result.cost, result.uncollected) == (total - before.claimed, 0)
        again = self.capture(hold.hold_id, total, self.now, final=final)
        assert (again.cost, again.captured) == (0, result.captured)

    def _free(self) -> None:
        if (hold := self._any_hold()) is not None:
            self.release(hold.hold_id, self.now)

    # What is true after it

    def _check_lots(self, extras: Extras) -> None:
        """Lots are in the order of use, none is empty, and no two are alike."""
        lots = extras.lots
        assert all(lot.amount > 0 for lot in lots)
        assert list(lots) == sorted(lots, key=order_of_use)
        assert len({lot.lot_id for lot in lots}) == len({lot[2:] for lot in lots}) == len(lots)
        assert self.account.extras is not None or self.credits >= 0

    def _check_pins(self, extras: Extras) -> None:
        """What is held is there, and no hold has more pins than there are places to pin."""
        breakdown = Breakdown(self.account)
        pins = [pin for hold in extras.holds for pin in hold.pins]
        assert all(pin.amount > 0 for pin in pins)
        assert all(len(hold.pins) <= 2 * len(extras.lots) + 1 for hold in extras.holds)
        assert {pin.lot_id for pin in pins} <= {None, *(lot.lot_id for lot in extras.lots)}
        assert all(breakdown.pinned(lot.lot_id) <= lot.amount for lot in extras.lots)
        if not self._limit_was_lowered:
            assert breakdown.base - breakdown.pinned(None) >= -extras.overdraft
            assert self.available >= 0

    def _check_holds(self, extras: Extras) -> None:
        """Account, holds and rows agree, and no hold is active that has ended."""
        active = {hold.hold_id: hold for hold in extras.holds}
        assert {name for name, hold in self.holds.items() if hold.status == "active"} == {*active}
        for name, hold in self.holds.items():
            assert hold.captured == -sum(row.amount for row in self.rows if row.hold_id == name)
            if (known := active.get(name)) is not None:
                assert known.expires_at == hold.expires_at > self._last_moment
                told = (hold.captured, hold.uncollected, hold.used)
                assert (known.captured, known.uncollected, known.used) == told

    def _check_history(self, extras: Extras) -> None:
        """The rows lead to the credits, and their legs to the lots. No refunds exceed a charge."""
        for row in self.rows[self._rows_seen :]:
            for leg in row.legs or ():
                if leg.lot_id is not None:
                    self._replayed.setdefault(leg.lot_id, 0)
                    self._replayed[leg.lot_id] += leg.amount
        self._rows_seen = len(self.rows)
        left = {name: amount for name, amount in self._replayed.items() if amount}
        assert left == {lot.lot_id: lot.amount for lot in extras.lots}
        assert self._opening + sum(row.amount for row in self.rows) == self.credits
        assert len({row.transaction_id for row in self.rows}) == len(self.rows)
        for charge in self.rows:
            refunds = (row for row in self.rows if row.refund_of == charge.transaction_id)
            assert sum(row.amount for row in refunds) <= max(-charge.amount, 0)

    def _check_storage(self) -> None:
        """What is stored change by change is read back as it was decided."""
        before, stored = self._stored
        after = self.account.extras
        if after is not None:
            used_up, fields = changed_extras("extras", before, after)
            if used_up:
                del stored["extras"]["lots"][:used_up]
            for path, value in fields.items():
                _set(stored, path.split("."), value)
            assert extras_from(_sent_and_read(stored)["extras"]) == after
        self._stored = (after, stored)
        for name, hold in self.holds.items():
            if self._stored_holds.get(name) is not hold:
                self._stored_holds[name] = hold
                [row] = hold_rows(HoldChanges(placed={name: hold}))
                assert hold_from(_sent_and_read(row)) == hold


def with_lots(row: Posting, rest: tuple[Lot, ...]) -> Posting:
    """The row with an account that has these lots, too, where it was decided without."""
    extras = row.account.extras
    assert extras is not None
    whole = extras._replace(lots=extras.lots + rest, unread=None)
    return row._replace(account=row.account._replace(extras=whole))


def _set(document: Any, path: list[str], value: Any) -> None:
    for part in path[:-1]:
        document = document[int(part)] if isinstance(document, list) else document[part]
    document[path[-1]] = value


def _sent_and_read(document: dict[str, Any]) -> dict[str, Any]:
    return decode(encode(document), codec_options=CODEC_OPTIONS)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_no_sequence_of_operations_gives_or_takes_a_unit(seed: int) -> None:
    """Every row, lot, pin, hold and stored document agrees with the others after each step."""
    story = AnyStory(seed)
    for _ in range(STEPS):
        story.step()


class _DrawnError(Exception):
    """Instead of an outcome: the request was only drawn."""


def drawn(story: AnyStory, count: int) -> list[Request[Any]]:
    """Draw requests that could come next, and do none of them."""
    requests: list[Request[Any]] = []

    def keep(request: Request[Any], _: float) -> Any:
        requests.append(request)
        raise _DrawnError

    other = copy(story)
    other.do = keep  # type: ignore[assignment,method-assign]
    for _ in range(count):
        name = story.one_of([each for each in OPERATIONS if each not in {"look", "charge_all"}])
        with contextlib.suppress(_DrawnError):
            getattr(other, f"_{name}")()
    return requests


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_requests_that_share_a_batch_do_what_they_do_one_by_one(seed: int) -> None:
    """The outcomes, rows and holds are the same, also when ends are due before them."""
    story = AnyStory(seed)
    for _ in range(STEPS // 2):
        story.step()
    story.now += story.one_of([0, 1, 5])
    requests = drawn(story, 6)
    batch = decide_batch(story.policy, story.loaded(), requests, at(story.now))
    begun, outcomes = len(story.rows), []
    for request in requests:
        try:
            outcomes.append(story.do(request, story.now))
        except CreditError as error:
            outcomes.append(error)
    assert [*map(repr, batch.outcomes)] == [*map(repr, outcomes)]
    assert batch.postings == story.rows[begun:]
    assert batch.state.accounts["ann"] == story.account
    changes = batch.state.hold_changes or HoldChanges()
    for name, hold in changes.placed.items():
        assert hold == story.holds[name]
    for name, fields in changes.changed.items():
        assert replace(story.holds[name], **fields) == story.holds[name]

"""One account over time, decided in memory: what a sequence of requests comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from credit_mongo import CreditConfig
from credit_mongo.core.advance import advance
from credit_mongo.core.batch import decide_batch
from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.extras import Extras, Lot, UnreadLots
from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest, CaptureResult
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.extend_hold import ExtendHoldRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.hold_results import Hold
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.release_hold import ReleaseHoldRequest
from credit_mongo.core.operations.revoke import RevokeRequest, RevokeResult
from credit_mongo.core.operations.set_overdraft import OverdraftResult, SetOverdraftRequest
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded
from credit_mongo.core.values import (
    KEEP,
    Account,
    RefundableCharge,
    RevocableGrant,
)
from credit_mongo.errors import CreditError
from tests.unit.decisions.accounts import new_id

_R = TypeVar("_R")
START = datetime(2026, 3, 1, tzinfo=timezone.utc)
POLICY = CreditConfig(costs={"post": {"default": 10}, "tokens": {"default": "{token} / 10"}}).policy


def at(seconds: float) -> datetime:
    """A moment of the story."""
    return START + timedelta(seconds=seconds)


def seconds(moment: datetime | None) -> float | None:
    """The moment as the story counts."""
    return None if moment is None else (moment - START).total_seconds()


def in_part(account: Account, first: int) -> Account:
    """The account as it is read with its first lots alone."""
    extras = account.extras
    assert extras is not None
    ends = [lot.expires_at for lot in extras.lots if lot.expires_at is not None]
    unread = UnreadLots(min(ends, default=None))
    return account._replace(extras=extras._replace(lots=extras.lots[:first], unread=unread))


class Story:
    """An account, its rows and its holds, as the ledger would keep them."""

    def __init__(
        self,
        base: int = 0,
        *lots: Lot,
        overdraft: int = 0,
        policy: Policy = POLICY,
        tier: str | None = None,
    ) -> None:
        extras = Extras(tuple(lots), (), overdraft) if lots or overdraft else None
        total = base + sum(lot.amount for lot in lots)
        self.account = Account("ann", total, 1, tier, None, START, START, extras)
        self.policy = policy
        self.rows: list[Posting] = []
        self.holds: dict[str, HoldRecord] = {}
        self.notes: list[Mapping[str, Any]] = []

    # What is there

    def lots(self, now: float | None = None) -> dict[str, int]:
        """The units in each lot by its source or id, after the last operation or at a moment."""
        account = self.account if now is None else advance(self.account, at(now), "0" * 24).account
        extras = account.extras or Extras()
        return {lot.source or lot.lot_id: lot.amount for lot in extras.lots}

    @property
    def credits(self) -> int:
        return self.account.credits

    @property
    def base(self) -> int:
        return self.account.credits - sum(self.lots().values())

    @property
    def available(self) -> int:
        return self.account.available

    def expiries(self) -> list[tuple[int, float | None]]:
        """The amounts and dates of all rows of ends of lots."""
        rows = [row for row in self.rows if row.operation == "expire"]
        return [(row.amount, seconds(row.account.updated_at)) for row in rows]

    # What happens

    def do(self, request: Request[_R], now: float) -> _R:
        """The outcome of a request; raises its refusal. Its rows and changes are kept anyway."""
        batch = decide_batch(self.policy, self.loaded(), [request], at(now))
        state = batch.state
        self._check_rows(batch.postings)
        self.rows += batch.postings
        self.account = state.accounts["ann"]
        self.notes += [note.details for note in batch.notes]
        if state.hold_changes is not None:
            self.holds |= state.hold_changes.placed
            for hold_id, changes in state.hold_changes.changed.items():
                self.holds[hold_id] = replace(self.holds[hold_id], **changes)
        [outcome] = batch.outcomes
        if isinstance(outcome, CreditError):
            raise outcome
        result: _R = outcome
        return result

    def loaded(self) -> Loaded:
        """What the ledger would load for the next requests."""
        charges, grants = {}, {}
        for row in self.rows:
            name = row.transaction_id
            if row.operation in {"charge", "capture"}:
                refunds = (each.amount for each in self.rows if each.refund_of == name)
                legs = row.legs or ()
                charges[name] = RefundableCharge(name, "ann", -row.amount, sum(refunds), legs)
            if row.operation == "grant":
                revoked = sum(
                    (each.facts or {})["uncollected"] - each.amount
                    for each in self.rows
                    if each.revoke_of == name
                )
                lots = [leg.lot for leg in row.legs or () if leg.lot is not None]
                lot = lots[0] if lots else None
                ends = (
                    leg
                    for each in self.rows
                    if each.operation == "expire"
                    for leg in each.legs or ()
                )
                gone = -sum(leg.amount for leg in ends if lot and leg.lot_id == lot.lot_id)
                grants[name] = RevocableGrant(name, "ann", row.amount, revoked, lot, gone)
        return Loaded(
            {"ann": self.account}, {}, charges, {}, frozenset(), grants=grants, holds=self.holds
        )

    def _check_rows(self, postings: list[Posting]) -> None:
        """What must hold of all rows, whatever the rules say."""
        before = self.account
        for row in postings:
            after = row.account
            assert (row.balance_before, after.seq) == (before.credits, before.seq + 1)
            assert after.credits == row.balance_before + row.amount
            assert after.updated_at >= before.updated_at
            if row.legs is not None:
                assert sum(leg.amount for leg in row.legs) == row.amount
            _check_legs(before, row)
            before = after

    # Requests

    def charge(self, amount: int, now: float) -> ChargeResult:
        request = ChargeRequest(**_common(), action="post", amount=amount, variables=None)
        return self.do(request, now)

    def grant(
        self,
        amount: int,
        now: float,
        *,
        end: float | None = None,
        priority: int = 50,
        source: str | None = None,
    ) -> GrantResult:
        request = GrantRequest(
            **_common(),
            action="bonus",
            amount=amount,
            expires_at=None if end is None else at(end),
            priority=priority,
            source=source,
        )
        return self.do(request, now)

    def refund(self, charge_id: str, amount: int, now: float) -> RefundResult:
        request = RefundRequest(**_common(), action="sorry", amount=amount, charge_id=charge_id)
        return self.do(request, now)

    def revoke(self, grant_id: str, now: float, amount: int | None = None) -> RevokeResult:
        request = RevokeRequest(**_common(), action="chargeback", grant_id=grant_id, amount=amount)
        return self.do(request, now)

    def overdraft(self, limit: int, now: float) -> OverdraftResult:
        return self.do(SetOverdraftRequest(**_common(), limit=limit), now)

    def upgrade(self, tier: str, now: float) -> TierChangeResult:
        request = UpgradeTierRequest(**_common(), target_tier=tier, membership_expires_at=KEEP)
        return self.do(request, now)

    def hold(
        self,
        amount: int | None,
        now: float,
        *,
        ttl: float = 1000,
        overage: Any = "available",
        on_timeout: Any = "settle",
        action: str = "post",
        variables: Any = None,
    ) -> Hold:
        request = PlaceHoldRequest(
            **_common(),
            action=action,
            amount=amount,
            variables=variables,
            ttl=timedelta(seconds=ttl),
            overage=overage,
            on_timeout=on_timeout,
        )
        return self.do(request, now)

    def extend(
        self,
        hold_id: str,
        now: float,
        *,
        ttl: float | None = None,
        amount: int | None = None,
        used: int | None = None,
    ) -> Hold:
        request = ExtendHoldRequest(
            **_common(),
            hold_id=hold_id,
            ttl=None if ttl is None else timedelta(seconds=ttl),
            amount=amount,
            used=used,
        )
        return self.do(request, now)

    def capture(
        self,
        hold_id: str,
        amount: int | None,
        now: float,
        *,
        final: bool = True,
        variables: Any = None,
    ) -> CaptureResult:
        request = CaptureHoldRequest(
            **_common(), hold_id=hold_id, amount=amount, variables=variables, is_final=final
        )
        return self.do(request, now)

    def release(self, hold_id: str, now: float) -> Hold:
        return self.do(ReleaseHoldRequest(**_common(), hold_id=hold_id), now)


def _common() -> dict[str, Any]:
    return {"user_id": "ann", "transaction_id": new_id()}


def _check_legs(before: Account, row: Posting) -> None:
    """The legs of a row lead from the lots before it to those after it."""
    found = {lot.lot_id: lot.amount for lot in (before.extras or Extras()).lots}
    for leg in row.legs or ():
        if leg.lot_id is not None:
            found[leg.lot_id] = found.get(leg.lot_id, 0) + leg.amount
            assert found[leg.lot_id] >= 0
    after = {lot.lot_id: lot.amount for lot in (row.account.extras or Extras()).lots}
    assert {name: amount for name, amount in found.items() if amount} == after

"""Grant: give credits, to the base or as a lot with an end, a priority or a source of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds, post
from credit_mongo.core.extras import BASE_PRIORITY, MAX_LOTS, Lot
from credit_mongo.core.policy import Policy, refuse_past
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import State
from credit_mongo.core.values import moment_text, refuse_overflow
from credit_mongo.errors import AccountLimitError

__all__ = ["Grant", "GrantRequest", "GrantResult"]


@dataclass(frozen=True, slots=True)
class GrantResult:
    """What a grant gave (``amount``) and the balance before and after, in smallest units.

    ``lot_id`` is the lot that the credits are in. None means the base.
    """

    transaction_id: str
    user_id: str
    action: str
    amount: int
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    lot_id: str | None = None
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest(Request[GrantResult]):
    """Give ``amount`` units."""

    operation: ClassVar[str] = "grant"

    amount: int
    expires_at: datetime | None = None
    priority: int = BASE_PRIORITY
    source: str | None = None

    @property
    def effect(self) -> tuple[object, ...]:
        # Without a lot: as it was before there were lots, for the keys of that time.
        if not self.is_lot:
            return (self.action, self.amount)
        end = moment_text(self.expires_at)
        return (self.action, self.amount, end, self.priority, self.source)

    @property
    def is_lot(self) -> bool:
        """Whether the credits are kept apart from the base."""
        end, source = self.expires_at, self.source
        return end is not None or source is not None or self.priority != BASE_PRIORITY


class Grant(Operation[GrantRequest, GrantResult]):
    """Give credits, up to the largest balance that the database can store."""

    request_type: ClassVar[type[GrantRequest]] = GrantRequest
    result_type: ClassVar[type[GrantResult]] = GrantResult
    usage: ClassVar[UsageKinds] = UsageKinds(added="granted")

    def decide(
        self,
        request: GrantRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[GrantResult]:
        account = state.account(request.user_id)
        refuse_overflow(account, request.amount)
        changed, legs, lot_id = None, None, None
        if account.extras is not None or request.is_lot:
            refuse_past(request.expires_at, now, "expires_at")
            breakdown = Breakdown(account)
            lot_id = _give(breakdown, request)
            if len(breakdown.lots) > max(MAX_LOTS, len(Breakdown(account).lots)):
                raise AccountLimitError(account.user_id, "lots", MAX_LOTS)
            changed, legs = breakdown.account(), breakdown.legs()
        posting = post(request, account, request.amount, now, {}, changed=changed, legs=legs)
        return Decision(
            (posting,),
            GrantResult(
                request.transaction_id,
                account.user_id,
                request.action,
                request.amount,
                account.credits,
                posting.account.credits,
                now,
                request.metadata,
                lot_id,
            ),
        )


def _give(breakdown: Breakdown, request: GrantRequest) -> str | None:
    """Give the credits. A debt is repaid first. Returns the lot that the rest is in, if any."""
    amount = request.amount
    if not request.is_lot:
        breakdown.give_base(amount)
        return None
    repaid = min(amount, max(-breakdown.base, 0))
    breakdown.give_base(repaid)
    if amount == repaid:
        return None
    lot = Lot(
        request.transaction_id,
        amount - repaid,
        request.expires_at,
        request.priority,
        request.source,
    )
    return breakdown.give(lot).lot_id

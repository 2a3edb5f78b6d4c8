"""Refund: give credits back, freely or for a charge. A charge's refunds never exceed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import (
    NOTHING_MORE,
    Change,
    Decision,
    Needs,
    Operation,
    Request,
    UsageKinds,
    post,
)
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import ChargeRefunded, State
from credit_mongo.core.values import refuse_overflow
from credit_mongo.errors import RefundExceedsChargeError

__all__ = ["Refund", "RefundRequest", "RefundResult"]


@dataclass(frozen=True, slots=True)
class RefundResult:
    """What a refund gave back (``amount``) and the balance before and after, in smallest units."""

    transaction_id: str
    user_id: str
    action: str
    amount: int
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRequest(Request[RefundResult]):
    """Give back ``amount`` units, for the charge ``charge_id`` or freely."""

    operation: ClassVar[str] = "refund"

    amount: int
    charge_id: str | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.action, self.amount, self.charge_id)


class Refund(Operation[RefundRequest, RefundResult]):
    """Give credits back. All refunds of a charge together never exceed it."""

    request_type: ClassVar[type[RefundRequest]] = RefundRequest
    result_type: ClassVar[type[RefundResult]] = RefundResult
    usage: ClassVar[UsageKinds] = UsageKinds(added="refunded")

    def needs(self, request: RefundRequest) -> Needs:
        return NOTHING_MORE if request.charge_id is None else Needs(charges=(request.charge_id,))

    def decide(
        self,
        request: RefundRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[RefundResult]:
        account = state.account(request.user_id)
        changes: tuple[Change, ...] = ()
        if request.charge_id is not None:
            charge = state.charge(request.charge_id, account.user_id)
            if request.amount > charge.refundable:
                raise RefundExceedsChargeError(request.charge_id, charge.refundable, request.amount)
            changes = (ChargeRefunded(charge, request.amount),)
        refuse_overflow(account, request.amount)
        posting = post(request, account, request.amount, now, {}, refund_of=request.charge_id)
        return Decision(
            (posting,),
            RefundResult(
                request.transaction_id,
                account.user_id,
                request.action,
                request.amount,
                account.credits,
                posting.account.credits,
                now,
                request.metadata,
            ),
            changes,
        )

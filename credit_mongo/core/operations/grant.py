"""Grant: give credits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds, post
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import State
from credit_mongo.core.values import refuse_overflow

__all__ = ["Grant", "GrantRequest", "GrantResult"]


@dataclass(frozen=True, slots=True)
class GrantResult:
    """What a grant gave (``amount``) and the balance before and after, in smallest units."""

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
class GrantRequest(Request[GrantResult]):
    """Give ``amount`` units."""

    operation: ClassVar[str] = "grant"

    amount: int

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.action, self.amount)


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
        posting = post(request, account, request.amount, now, {})
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
            ),
        )

"""Set the overdraft: how far a balance may go below zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Operation, Request, post
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import State

__all__ = ["OverdraftResult", "SetOverdraft", "SetOverdraftRequest"]


@dataclass(frozen=True, slots=True)
class OverdraftResult:
    """An overdraft before and after the call, and the balance, in smallest units."""

    transaction_id: str
    user_id: str
    old_limit: int
    new_limit: int
    balance: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOverdraftRequest(Request[OverdraftResult]):
    """Let the balance go ``limit`` units below zero."""

    operation: ClassVar[str] = "set_overdraft"

    action: str = field(default="set_overdraft", init=False)
    limit: int

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.limit,)


class SetOverdraft(Operation[SetOverdraftRequest, OverdraftResult]):
    """Set the overdraft. A limit below a debt stops charges until the debt is repaid."""

    request_type: ClassVar[type[SetOverdraftRequest]] = SetOverdraftRequest
    result_type: ClassVar[type[OverdraftResult]] = OverdraftResult

    def decide(
        self,
        request: SetOverdraftRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[OverdraftResult]:
        account = state.account(request.user_id)
        breakdown = Breakdown(account)
        old, breakdown.overdraft = breakdown.overdraft, request.limit
        details = {"oldOverdraft": old, "newOverdraft": request.limit}
        changed = breakdown.account()
        posting = post(request, account, 0, now, details, facts=details, changed=changed)
        return Decision(
            (posting,),
            OverdraftResult(
                request.transaction_id,
                account.user_id,
                old,
                request.limit,
                account.credits,
                now,
                request.metadata,
            ),
        )

"""Release a hold: give up what it still keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar

from credit_mongo.core.advance import Advancing
from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Needs, Operation, Request
from credit_mongo.core.holds import HoldChanged, active_part, remove_hold
from credit_mongo.core.operations.hold_results import Hold, hold_of
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import AccountChanged, State

__all__ = ["ReleaseHold", "ReleaseHoldRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHoldRequest(Request[Hold]):
    """End the hold without taking anything more."""

    operation: ClassVar[str] = "release_hold"

    action: str = field(default="release_hold", init=False)
    hold_id: str

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.hold_id,)


class ReleaseHold(Operation[ReleaseHoldRequest, Hold]):
    """End a hold without a capture. Releasing it again changes nothing."""

    request_type: ClassVar[type[ReleaseHoldRequest]] = ReleaseHoldRequest
    result_type: ClassVar[type[Hold]] = Hold
    moves_credits: ClassVar[bool] = False

    def needs(self, request: ReleaseHoldRequest) -> Needs:
        return Needs(holds=(request.hold_id,))

    def decide(
        self,
        request: ReleaseHoldRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[Hold]:
        account = state.account(request.user_id)
        record = state.hold(request.hold_id, account.user_id)
        if record.status == "released":
            return Decision((), hold_of(record))
        breakdown = Breakdown(account)
        hold = active_part(breakdown, record)
        remove_hold(breakdown, hold.hold_id)
        after = Advancing(breakdown.account(), request.transaction_id, now)
        after.end_lots(now)
        changes: dict[str, Any] = {"status": "released", "updated_at": now}
        noted = {"holdId": hold.hold_id, "released": hold.held}
        return Decision(
            tuple(after.postings),
            hold_of(replace(record, **changes)),
            (
                AccountChanged(after.account),
                HoldChanged(hold.hold_id, request.transaction_id, changes),
            ),
            noted,
        )

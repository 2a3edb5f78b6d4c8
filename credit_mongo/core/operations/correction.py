"""Correction: add a record that settles the errors found in an account's history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from credit_mongo.core.decision import Decision, Operation, Request, UsageKinds, post
from credit_mongo.core.extras import Leg
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import State
from credit_mongo.core.values import LARGEST_BALANCE
from credit_mongo.errors import InvalidRequestError

__all__ = ["Correct", "CorrectionRequest", "CorrectionResult"]


@dataclass(frozen=True, slots=True)
class CorrectionResult:
    """What a correction added to the history: ``amount``, in smallest units, of either sign.

    The account's balance is unchanged. ``balance_before`` is the sum of the history.
    """

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
class CorrectionRequest(Request[CorrectionResult]):
    """Make the history sum up to the account's balance, which never changes.

    ``credits`` and ``seq`` are the account's values when it was verified. ``total`` is the sum of
    its transactions' amounts, and ``highest_seq`` their highest ``seq``. ``settles`` are the
    findings of the verification.
    """

    operation: ClassVar[str] = "correction"

    action: str = field(default="correction", init=False)
    credits: int
    seq: int
    total: int
    highest_seq: int
    operator: str
    reason: str
    settles: tuple[Mapping[str, Any], ...]
    legs: tuple[Leg, ...] = ()
    """What the transactions lack in each lot, so that they lead to the account's lots."""

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.credits, self.seq, self.total)


class Correct(Operation[CorrectionRequest, CorrectionResult]):
    """Add a record for what is missing from the history, or too much in it."""

    request_type: ClassVar[type[CorrectionRequest]] = CorrectionRequest
    result_type: ClassVar[type[CorrectionResult]] = CorrectionResult
    usage: ClassVar[UsageKinds] = UsageKinds("corrections_added", "corrections_taken")

    def decide(
        self,
        request: CorrectionRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[CorrectionResult]:
        account = state.account(request.user_id)
        if (account.credits, account.seq) != (request.credits, request.seq):
            raise InvalidRequestError(
                "seq", "the account has changed since it was verified: verify it again"
            )
        amount = account.credits - request.total
        if max(abs(amount), abs(request.total), request.highest_seq + 1) > LARGEST_BALANCE:
            raise InvalidRequestError("total", "is too large for a correction")
        details = {
            "correction": {
                "operator": request.operator,
                "reason": request.reason,
                "settles": [dict(finding) for finding in request.settles],
            }
        }
        as_summed_up = account._replace(credits=request.total, seq=request.highest_seq)
        legs: tuple[Leg, ...] | None = None
        if request.legs:
            in_lots = sum(leg.amount for leg in request.legs)
            legs = (*request.legs, Leg(None, amount - in_lots))
        posting = post(request, as_summed_up, amount, now, details, facts=details, legs=legs)
        return Decision(
            (posting,),
            CorrectionResult(
                request.transaction_id,
                account.user_id,
                request.action,
                amount,
                request.total,
                posting.account.credits,
                now,
                request.metadata,
            ),
        )

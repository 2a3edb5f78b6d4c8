"""Revoke: take back a grant, say after a chargeback."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.breakdown import Breakdown
from credit_mongo.core.decision import Decision, Needs, Operation, Request, UsageKinds, post
from credit_mongo.core.extras import Pin
from credit_mongo.core.policy import Policy
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.state import GrantRevoked, State
from credit_mongo.core.values import RevocableGrant
from credit_mongo.errors import RevokeExceedsGrantError

__all__ = ["Revoke", "RevokeRequest", "RevokeResult"]


@dataclass(frozen=True, slots=True)
class RevokeResult:
    """What a revocation took (``amount``) and the balance before and after, in smallest units.

    ``uncollected`` is what it was to take but could not: it was spent, is held, or has expired.
    """

    transaction_id: str
    user_id: str
    action: str
    grant_transaction_id: str
    amount: int
    uncollected: int
    balance_before: int
    balance_after: int
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeRequest(Request[RevokeResult]):
    """Take back ``amount`` units of a grant, or all that was not revoked before."""

    operation: ClassVar[str] = "revoke"

    grant_id: str
    amount: int | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.action, self.grant_id, self.amount)


class Revoke(Operation[RevokeRequest, RevokeResult]):
    """Take back a grant: from the lot it went into, then from the base, then as a debt."""

    request_type: ClassVar[type[RevokeRequest]] = RevokeRequest
    result_type: ClassVar[type[RevokeResult]] = RevokeResult
    usage: ClassVar[UsageKinds] = UsageKinds(taken="revoked")

    def needs(self, request: RevokeRequest) -> Needs:
        return Needs(grants=(request.grant_id,))

    def decide(
        self,
        request: RevokeRequest,
        state: State,
        policy: Policy,  # noqa: ARG002
        now: datetime,
    ) -> Decision[RevokeResult]:
        account = state.account(request.user_id)
        grant = state.grant(request.grant_id, account.user_id)
        wanted = grant.revocable if request.amount is None else request.amount
        if not 0 < wanted <= grant.revocable:
            raise RevokeExceedsGrantError(grant.transaction_id, grant.revocable, wanted)
        breakdown = Breakdown(account)
        expired = grant.expired
        if grant.lot is not None:
            expired += state.expired.get(grant.lot.lot_id, 0)
        # What has expired is gone already. Taking it again would take what others have paid for.
        collectible = max(grant.revocable - expired, 0)
        breakdown.take(_parts(breakdown, grant, min(wanted, collectible)))
        changed = breakdown.account()
        taken = account.credits - changed.credits
        posting = post(
            request,
            account,
            -taken,
            now,
            {"uncollected": wanted - taken},
            facts={"uncollected": wanted - taken},
            changed=changed,
            legs=breakdown.legs(),
            revoke_of=grant.transaction_id,
        )
        return Decision(
            (posting,),
            RevokeResult(
                request.transaction_id,
                account.user_id,
                request.action,
                grant.transaction_id,
                taken,
                wanted - taken,
                account.credits,
                posting.account.credits,
                now,
                request.metadata,
            ),
            (GrantRevoked(grant, wanted),),
        )


def _parts(breakdown: Breakdown, grant: RevocableGrant, wanted: int) -> list[Pin]:
    """Return what can be taken. What holds pin is left out, and so are other lots.

    A lot that was spent is gone, and its refunds may have gone into one that is like it.
    """
    lot = None if grant.lot is None else breakdown.lot_like(grant.lot)
    parts = []
    if lot is not None:
        there = min(wanted, lot.amount - breakdown.pinned(lot.lot_id))
        wanted -= there
        parts.append(Pin(lot.lot_id, there))
    there = breakdown.base - breakdown.pinned(None) + breakdown.overdraft
    parts.append(Pin(None, min(wanted, max(there, 0))))
    return parts

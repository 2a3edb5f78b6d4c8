"""What the operations on holds return, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from credit_mongo.core.formula import Formula
from credit_mongo.core.holds import HoldRecord, HoldStatus
from credit_mongo.core.policy import Policy
from credit_mongo.core.pricing import Priced
from credit_mongo.core.serialization import Metadata
from credit_mongo.core.variables import Variables
from credit_mongo.errors import UndefinedActionError

__all__ = ["Hold", "cost_at_hold_s_price", "hold_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Credits that are kept for work under way. Amounts are in smallest units.

    ``amount`` is the most that the hold itself can pay, ``captured`` what captures took so far,
    ``used`` the total that was last reported. ``price`` is what the action cost when the hold
    began: units, a formula, or None if the action has no price. ``status`` is "active", "captured",
    "released" or "expired".
    """

    hold_id: str
    user_id: str
    action: str
    amount: int
    captured: int
    used: int
    status: HoldStatus
    price: int | str | None
    expires_at: datetime
    created_at: datetime
    metadata: Metadata | None = field(repr=False)
    replayed: bool = field(default=False, compare=False)


def hold_of(record: HoldRecord) -> Hold:
    """Return a hold as callers see it."""
    return Hold(
        hold_id=record.hold_id,
        user_id=record.user_id,
        action=record.action,
        amount=record.amount,
        captured=record.captured,
        used=record.used,
        status=record.status,
        price=record.price,
        expires_at=record.expires_at,
        created_at=record.created_at,
        metadata=None if record.metadata is None else dict(record.metadata),
    )


def cost_at_hold_s_price(
    policy: Policy, action: str, price: int | str | None, variables: Variables
) -> Priced:
    """Return what the variables cost at the price that was in force when the hold began.

    Raises UndefinedActionError if the action had no price then, and the errors of
    ``Tariff.evaluate``.
    """
    if price is None:
        raise UndefinedActionError(action)
    agreed = price if isinstance(price, int) else Formula.parse(price)
    return policy.tariff.evaluate(action, agreed, variables)

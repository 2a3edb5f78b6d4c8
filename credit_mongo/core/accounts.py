"""What a decision reads: a user's account, a charge to refund, a remembered key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from credit_mongo.core.results import Result

__all__ = ["Account", "RefundableCharge", "Remembered"]


@dataclass(frozen=True, slots=True)
class Account:
    """One user's credits and membership, as of its ``seq``-th transaction."""

    user_id: str
    credits: int
    seq: int
    membership_tier: str | None
    membership_expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class RefundableCharge:
    """A charge, with what was taken by it and given back for it so far (smallest units)."""

    transaction_id: str
    user_id: str
    charged: int
    refunded: int

    @property
    def refundable(self) -> int:
        """What it still holds."""
        return self.charged - self.refunded


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an idempotency key did, for as long as it is remembered."""

    fingerprint: str
    result: Result

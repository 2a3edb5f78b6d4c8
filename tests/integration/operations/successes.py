"""What each operation answers and stores: a table of successes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from credit_mongo import (
    KEEP,
    ChargeResult,
    CreditLedger,
    GrantResult,
    RefundResult,
    TierChangeResult,
)
from tests.integration.operations.accounts import LATER, METADATA, MILLISECOND, NOW, SECOND, START
from tests.integration.promises import Row


@dataclass(frozen=True)
class Success:
    """A call on a user with 50 credits, its result, and what it stores."""

    name: str
    call: Callable[[CreditLedger, str, Row], Awaitable[Any]]
    operation: str
    action: str
    amount: int
    details: Row
    changes: Row = field(default_factory=dict)
    tier: str | None = "premium"
    expires_at: datetime | None = None

    def result(self, user: str, transaction_id: str) -> Any:
        """Return the result that the caller must get."""
        changed: Row = {"membershipTier": self.tier, "membershipExpiresAt": self.expires_at}
        changed.update(self.changes)
        if "newTier" in self.details:
            return TierChangeResult(
                transaction_id=transaction_id,
                user_id=user,
                old_tier=self.tier,
                new_tier=changed["membershipTier"],
                old_credits=50,
                new_credits=50 + self.amount,
                credits_delta=self.amount,
                membership_expires_at=changed["membershipExpiresAt"],
                created_at=NOW,
            )
        kind = {"charge": ChargeResult, "refund": RefundResult, "grant": GrantResult}
        return kind[self.operation](
            transaction_id,
            user,
            self.action,
            abs(self.amount),
            50,
            50 + self.amount,
            NOW,
            METADATA,
        )


def tier_details(old: str | None, new: str, expires_at: datetime | None) -> Row:
    """Return the details that the library adds to a tier change."""
    return {"oldTier": old, "newTier": new, "membershipExpiresAt": expires_at}


PAST = START - SECOND
SUCCESSES = [
    Success(
        "a charge at the tier's price",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -8, {"tier": "premium"}),
    ),
    Success(
        "a charge of an expired member at the default price",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -10, {"tier": None}),
        expires_at=NOW,
    ),
    Success(
        "a charge in the last millisecond of a membership",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -8, {"tier": "premium"}),
        expires_at=NOW + MILLISECOND,
    ),
    Success(
        "a charge of an amount, without a price",
        lambda ledger, user, o: ledger.charge(user, "anything else", amount=50, **o),
        *("charge", "anything else", -50, {"tier": "premium"}),
    ),
    Success(
        "a charge by formula, rounded half up",
        lambda ledger, user, o: ledger.charge(user, "tokens", variables={"token": 2500}, **o),
        *("charge", "tokens", -3),
        {"tier": "premium", "formula": "{token} / 1000", "variables": {"token": "2500"}},
    ),
    Success(
        "a charge by formula without variables, at the fixed default",
        lambda ledger, user, o: ledger.charge(user, "translate", **o),
        *("charge", "translate", -3, {"tier": "premium"}),
    ),
    Success(
        "a charge by a formula that is below zero",
        lambda ledger, user, o: ledger.charge(user, "rebate", variables={"n": 49}, **o),
        *("charge", "rebate", 0),
        {"tier": "premium", "formula": "{n} - 50", "variables": {"n": "49"}},
    ),
    Success(
        "a refund",
        lambda ledger, user, o: ledger.refund(user, 7, action="sorry", **o),
        *("refund", "sorry", 7, {}),
    ),
    Success(
        "a grant",
        lambda ledger, user, o: ledger.grant(user, 2**53 - 1, action="gift", **o),
        *("grant", "gift", 2**53 - 1, {}),
    ),
    Success(
        "a first tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "free", **o),
        *("upgrade_tier", "upgrade_tier", 50, tier_details(None, "free", None)),
        {"membershipTier": "free"},
        tier=None,
    ),
    Success(
        "an upgrade with an expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=LATER, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", LATER)),
        {"membershipTier": "enterprise", "membershipExpiresAt": LATER},
    ),
    Success(
        "an upgrade that keeps a future expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=KEEP, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", LATER)),
        {"membershipTier": "enterprise"},
        expires_at=LATER,
    ),
    Success(
        "an upgrade that clears a past expiry",
        lambda ledger, user, o: ledger.upgrade_tier(user, "enterprise", **o),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", None)),
        {"membershipTier": "enterprise", "membershipExpiresAt": None},
        expires_at=PAST,
    ),
    Success(
        "an upgrade without expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=None, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", None)),
        {"membershipTier": "enterprise", "membershipExpiresAt": None},
        expires_at=LATER,
    ),
    Success(
        "a downgrade that keeps the expiry",
        lambda ledger, user, o: ledger.downgrade_tier(user, "free", **o),
        *("downgrade_tier", "downgrade_tier", 50, tier_details("premium", "free", LATER)),
        {"membershipTier": "free"},
        expires_at=LATER,
    ),
    Success(
        "a downgrade that clears the expiry",
        lambda ledger, user, o: ledger.downgrade_tier(user, "free", clear_expiration=True, **o),
        *("downgrade_tier", "downgrade_tier", 50, tier_details("premium", "free", None)),
        {"membershipTier": "free", "membershipExpiresAt": None},
        expires_at=LATER,
    ),
    Success(
        "a renewal that refills",
        lambda ledger, user, o: ledger.renew_tier(user, membership_expires_at=LATER, **o),
        *("renew_tier", "renew_tier", 1950, tier_details("premium", "premium", LATER)),
        {"membershipExpiresAt": LATER},
        expires_at=PAST,
    ),
    Success(
        "a renewal that does not",
        lambda ledger, user, o: ledger.renew_tier(
            user, membership_expires_at=None, refill=False, **o
        ),
        *("renew_tier", "renew_tier", 0, tier_details("premium", "premium", None)),
        {"membershipExpiresAt": None},
        expires_at=LATER,
    ),
]

"""The soak's prices and tiers, once as the library reads them and once as the check does."""

from __future__ import annotations

from typing import Final

from credit_mongo import CreditConfig

__all__ = ["CAPS", "OPENING_CREDITS", "TIERS", "configuration", "has_parts", "price"]

TIERS: Final = ("free", "pro", "team")
CAPS: Final = {"free": 20_000, "pro": 50_000, "team": 90_000}
OPENING_CREDITS: Final = 10_000
_FIXED: Final[dict[str, dict[str | None, int]]] = {
    "post": {None: 10, "pro": 8, "team": 5},
    "image": {"pro": 20, "team": 15},
}


def configuration(timeout_seconds: float) -> CreditConfig:
    """Return the ledger's configuration."""
    return CreditConfig(
        costs={
            "post": {"default": 10, "pro": 8, "team": 5},
            "image": {"pro": 20, "team": 15},
            "tokens": {"default": "{n} * 0.5 + 1", "pro": "{n} * 0.25 + 1"},
        },
        membership={
            "tiers": {tier: level for level, tier in enumerate(TIERS)},
            "credits_caps": CAPS,
        },
        operation_timeout_seconds=timeout_seconds,
    )


def has_parts(user_id: str) -> bool:
    """Return whether a user has lots, holds and debts: every other of the shared ones."""
    kind, _, number = user_id.partition("-")
    return kind in {"hot", "cold"} and int(number) % 2 == 1


def price(action: str, tier: str | None, n: int | None) -> int | None:
    """Return the price in units, rounded half up, or None if the tier has no access."""
    if action == "tokens":
        numerator, denominator = (n or 0) + 4, 4
        if tier != "pro":
            numerator, denominator = (n or 0) + 2, 2
        return (2 * numerator + denominator) // (2 * denominator)
    by_tier = _FIXED[action]
    return by_tier.get(tier, by_tier.get(None))

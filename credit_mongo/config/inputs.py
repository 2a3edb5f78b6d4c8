"""The types in which configurations are written: plain numbers, strings and dicts.

The dicts accept the library's names and the Credit SDK's camelCase names. Give only one of the two.
Building the configuration checks what types cannot express, such as ranges and names that must
exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, TypeAlias, TypedDict

__all__ = [
    "AuditInput",
    "CollectionsInput",
    "CostsInput",
    "CreditsInput",
    "IdempotencyInput",
    "MembershipInput",
    "PriceInput",
    "RetryInput",
    "UserMappingInput",
]

CreditsInput: TypeAlias = int | float | Decimal
"""A number of credits, taken exactly as written: 0.1 is one tenth."""

PriceInput: TypeAlias = CreditsInput | str
"""A number of credits, or a formula that gives one."""

CostsInput: TypeAlias = Mapping[str, Mapping[str, PriceInput]]
"""Prices by action, then by tier or ``default``."""


class _Tiers(TypedDict):
    tiers: Mapping[str, int]


class MembershipInput(_Tiers, total=False):
    """A `MembershipConfig`. ``tiers`` and their caps (in credits) are required."""

    requirements: Mapping[str, str | None]
    credits_caps: Mapping[str, CreditsInput]
    creditsCaps: Mapping[str, CreditsInput]
    on_change: Literal["cap", "raise", "add", "keep"]
    onChange: Literal["cap", "raise", "add", "keep"]


class RetryInput(TypedDict, total=False):
    """A `RetryConfig`. Delays are in milliseconds."""

    enabled: bool
    max_attempts: int
    maxAttempts: int
    initial_delay_ms: float
    initialDelay: float
    initialDelayMs: float
    max_delay_ms: float
    maxDelay: float
    maxDelayMs: float
    backoff_multiplier: float
    backoffMultiplier: float


class IdempotencyInput(TypedDict, total=False):
    """An `IdempotencyConfig`. ``ttl_seconds`` is how long the ledger remembers keys."""

    enabled: bool
    ttl_seconds: int
    ttlSeconds: int
    ttl: int


class AuditInput(TypedDict, total=False):
    """An `AuditConfig`."""

    enabled: bool


class LotsInput(TypedDict, total=False):
    """A `LotsConfig`."""

    refund_grace_seconds: float
    refundGraceSeconds: float


class HoldsInput(TypedDict, total=False):
    """A `HoldsConfig`."""

    late_seconds: float
    lateSeconds: float


class CollectionsInput(TypedDict, total=False):
    """`CollectionNames`. Give only the names that differ from the defaults."""

    users: str
    transactions: str
    audit_logs: str
    auditLogs: str
    idempotency_records: str
    idempotencyRecords: str
    turns: str
    transactions_archive: str
    audit_logs_archive: str
    archive_manifests: str
    archive_borders: str
    erasures: str
    paid_requests: str
    holds: str
    holds_archive: str


class UserMappingInput(TypedDict, total=False):
    """A `UserMapping`: the names of the fields in the application's user documents."""

    id_type: Literal["string", "objectId", "uuid"]
    idType: Literal["string", "objectId", "uuid"]
    credits: str
    seq: str
    membership_tier: str
    membershipTier: str
    membership_expires_at: str
    membershipExpiresAt: str
    created_at: str
    createdAt: str
    updated_at: str
    updatedAt: str
    extras: str

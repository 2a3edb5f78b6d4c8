"""The configuration: prices, tiers, limits, collection names, and the database's address."""

from __future__ import annotations

from credit_mongo.config.configuration import (
    BACKUPS_COLLECTION,
    IMPORTS_COLLECTION,
    LONGEST_CLOCK_SKEW_SECONDS,
    LONGEST_TTL_SECONDS,
    MAX_CLOCK_SKEW_SECONDS,
    MIGRATIONS_COLLECTION,
    SETTINGS_COLLECTION,
    AuditConfig,
    CollectionNames,
    CreditConfig,
    HoldsConfig,
    IdempotencyConfig,
    LotsConfig,
    MembershipConfig,
    RetryConfig,
)
from credit_mongo.config.environment import Settings
from credit_mongo.config.pools import POOL_PROFILES, PoolProfile, PoolSize, check_pool
from credit_mongo.config.user_mapping import UserMapping

__all__ = [
    "BACKUPS_COLLECTION",
    "IMPORTS_COLLECTION",
    "LONGEST_CLOCK_SKEW_SECONDS",
    "LONGEST_TTL_SECONDS",
    "MAX_CLOCK_SKEW_SECONDS",
    "MIGRATIONS_COLLECTION",
    "POOL_PROFILES",
    "SETTINGS_COLLECTION",
    "AuditConfig",
    "CollectionNames",
    "CreditConfig",
    "HoldsConfig",
    "IdempotencyConfig",
    "LotsConfig",
    "MembershipConfig",
    "PoolProfile",
    "PoolSize",
    "RetryConfig",
    "Settings",
    "UserMapping",
    "check_pool",
]

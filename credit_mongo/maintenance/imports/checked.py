"""A deployment's rows, checked and read as what the ledger would write. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson import ObjectId

from credit_mongo.core.values import LARGEST_AMOUNT, check_identifier
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import SourceAudit, SourceTransaction, SourceUser
from credit_mongo.maintenance.imports.values import (
    ValueRefusedError,
    amount_of,
    id_text,
    metadata_of,
    moment_of,
    number_of,
    parsed,
    row_id_of,
    to_units,
)
from credit_mongo.storage.rows import Raw

__all__ = ["Attempt", "ImportedUser", "Movement", "attempt_of", "movement_of", "user_of"]

# The deployment's operations, as its audit log names them, and the ledger's.
_OPERATIONS: Final[Mapping[str, str]] = {
    "charge": "charge",
    "refund": "refund",
    "grant": "grant",
    "upgradeTier": "upgrade_tier",
    "downgradeTier": "downgrade_tier",
}
# The actions of its transactions that say which operation they are.
_ACTIONS: Final = {"tier-upgrade": "upgrade_tier", "tier-downgrade": "downgrade_tier"}
_TIER_CHANGES: Final = frozenset(_ACTIONS.values())
# What the metadata of an audit row have besides the caller's own.
_OF_THE_AUDIT: Final = (
    *("operation", "error", "transactionId", "cost", "amount", "balanceBefore", "balanceAfter"),
    *("targetTier", "clearExpiration"),
)


class ImportedUser(NamedTuple):
    """A user. ``credits`` is in smallest units."""

    user_id: str
    source_id: Any
    credits: int
    tier: str | None
    expires_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None


class Movement(NamedTuple):
    """A transaction. Amounts are in smallest units."""

    row_id: ObjectId
    source_id: str
    created_at: datetime
    operation: str | None
    """None: only the audit log could say."""
    action: str
    amount: int
    before: int
    after: int
    metadata: Raw | None
    details: Mapping[str, Any]


class Attempt(NamedTuple):
    """An audit row.

    Of a success, only the operation and the transaction count, by its id in the deployment.
    """

    row_id: ObjectId | None
    source_id: str
    created_at: datetime | None
    operation: str
    action: str
    has_failed: bool
    transaction_id: str | None
    metadata: Raw | None
    error: str | None


def user_of(row: SourceUser, user_id: str, rules: ImportRules) -> ImportedUser:
    """Check a user. Raises ValueRefusedError."""
    tier = None if row.membership_tier is None else _name("membershipTier", row.membership_tier)
    if tier is not None and rules.tiers is not None and tier not in rules.tiers:
        raise ValueRefusedError("membershipTier", f"{tier!r} is not configured")
    rounded = rules.fractions == "round"
    return ImportedUser(
        user_id,
        row.id,
        amount_of("credits", row.credits, rules.places, rounded=rounded),
        tier,
        _optional_moment("membershipExpiresAt", row.membership_expires_at, rules),
        _optional_moment("createdAt", row.created_at, rules),
        _optional_moment("updatedAt", row.updated_at, rules),
    )


def movement_of(row: SourceTransaction, rules: ImportRules) -> Movement:
    """Check a transaction. Raises ValueRefusedError."""
    source_id = _name("id", id_text("id", row.id))
    action = _name("action", row.action)
    amount, before, after = _numbers(row, rules)
    if abs(amount) > LARGEST_AMOUNT:
        raise ValueRefusedError("amount", f"is {amount}, more than {LARGEST_AMOUNT}")
    operation = _ACTIONS.get(action)
    if operation is None and amount <= 0:
        operation = "charge"
    metadata = metadata_of("metadata", row.metadata)
    details: Mapping[str, Any] = {}
    if operation in _TIER_CHANGES:
        action = str(operation)
        of_change = metadata or {}
        details = {"oldTier": of_change.get("oldTier"), "newTier": of_change.get("newTier")}
    return Movement(
        row_id_of("transaction", row.id),
        source_id,
        moment_of("createdAt", row.created_at, rules.time_zone),
        operation,
        action,
        amount,
        before,
        after,
        metadata,
        details,
    )


def _numbers(row: SourceTransaction, rules: ImportRules) -> tuple[int, int, int]:
    places = rules.places
    if rules.fractions == "refuse":
        return (
            amount_of("amount", row.amount, places),
            amount_of("balanceBefore", row.balance_before, places),
            amount_of("balanceAfter", row.balance_after, places),
        )
    amount = number_of("amount", row.amount)
    before = number_of("balanceBefore", row.balance_before)
    after = number_of("balanceAfter", row.balance_after)
    whole = [
        to_units(name, each, places, rounded=True)
        for name, each in (("amount", amount), ("balanceBefore", before), ("balanceAfter", after))
    ]
    if after - before == amount:
        # Rounded balances follow from each other, so that roundings never add up.
        whole[0] = whole[2] - whole[1]
    return whole[0], whole[1], whole[2]


def attempt_of(row: SourceAudit, rules: ImportRules) -> Attempt:
    """Check an audit row. Raises ValueRefusedError."""
    source_id = _name("id", id_text("id", row.id))
    named = _name("action", row.action)
    operation = _OPERATIONS.get(named, named)
    found = parsed("metadata", row.metadata)
    given: Mapping[str, Any] = found if isinstance(found, dict) else {}
    if row.status == "success":
        # All that counts is in the transaction.
        transaction_id = given.get("transactionId")
        named_id = None if transaction_id is None else str(transaction_id)
        return Attempt(None, source_id, None, operation, operation, False, named_id, None, None)
    _name("status", row.status)
    own = {name: value for name, value in given.items() if name not in _OF_THE_AUDIT}
    action = given.get("operation") if operation not in _TIER_CHANGES else operation
    return Attempt(
        row_id_of("audit", row.id),
        source_id,
        moment_of("createdAt", row.created_at, rules.time_zone),
        operation,
        _name("action", action) if isinstance(action, str) and action else operation,
        True,
        None,
        metadata_of("metadata", own),
        None if row.error_message is None else str(row.error_message),
    )


def _optional_moment(field: str, value: object, rules: ImportRules) -> datetime | None:
    return None if value is None else moment_of(field, value, rules.time_zone)


def _name(field: str, value: object) -> str:
    if value is None:
        raise ValueRefusedError(field, "is NULL")
    try:
        return check_identifier(field, value)
    except InvalidRequestError as error:
        raise ValueRefusedError(field, error.reason) from None

"""Holds as they are stored: one document each, which stays when the hold has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from credit_mongo.core.holds import (
    OVERAGES,
    TIMEOUTS,
    HoldRecord,
    HoldStatus,
    Overage,
    Timeout,
)
from credit_mongo.core.state import HoldChanges
from credit_mongo.errors import AccountDataError
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.fields import StoredFields
from credit_mongo.storage.numbers import to_int64, to_object_id
from credit_mongo.storage.rows import metadata_from

__all__ = ["ACTIVE", "HOLD_STATUSES", "hold_from", "hold_rows", "hold_updates"]

HOLD_STATUSES: Final[tuple[HoldStatus, ...]] = ("active", "captured", "released", "expired")
ACTIVE: Final[Raw] = {"status": "active"}
"""The condition on active holds, which have an index of their own."""
_STORED_NAMES: Final = {
    "amount": "amount",
    "captured": "captured",
    "uncollected": "uncollected",
    "used": "used",
    "status": "status",
    "expires_at": "expiresAt",
    "updated_at": "updatedAt",
}
"""The fields that change."""


def hold_rows(changes: HoldChanges) -> list[Raw]:
    """The documents of new holds."""
    return [
        {
            "_id": to_object_id(hold.hold_id),
            "userId": hold.user_id,
            "action": hold.action,
            "amount": to_int64(hold.amount),
            "captured": to_int64(hold.captured),
            "uncollected": to_int64(hold.uncollected),
            "used": to_int64(hold.used),
            "status": hold.status,
            "expiresAt": hold.expires_at,
            "onTimeout": hold.on_timeout,
            "overage": hold.overage,
            "price": to_int64(hold.price) if isinstance(hold.price, int) else hold.price,
            "tier": hold.tier,
            "createdAt": hold.created_at,
            "updatedAt": hold.updated_at,
            "changedBy": to_object_id(hold.hold_id),
            "metadata": hold.metadata,
        }
        for hold in changes.placed.values()
    ]


def hold_updates(changes: HoldChanges) -> list[Raw]:
    """One update statement for each hold of before: the fields that changed."""
    updates = []
    for hold_id, fields in changes.changed.items():
        changed: Raw = {
            _STORED_NAMES[name]: to_int64(value) if isinstance(value, int) else value
            for name, value in fields.items()
        }
        changed["changedBy"] = to_object_id(changes.changed_by[hold_id])
        updates.append({"q": {"_id": to_object_id(hold_id)}, "u": {"$set": changed}})
    return updates


def hold_from(document: Mapping[str, Any]) -> HoldRecord | AccountDataError:
    """A hold as the ledger wrote it, or what is wrong with its document."""
    user_id = str(document.get("userId"))
    fields = StoredFields(document, user_id)
    try:
        price, metadata = document.get("price"), metadata_from(document)
        return HoldRecord(
            hold_id=fields.row_id,
            user_id=fields.text("userId"),
            action=fields.text("action"),
            amount=fields.whole_number("amount"),
            captured=fields.whole_number("captured"),
            uncollected=fields.optional_count("uncollected"),
            used=fields.optional_count("used"),
            status=cast("HoldStatus", fields.one_of("status", HOLD_STATUSES)),
            expires_at=fields.moment("expiresAt"),
            on_timeout=cast("Timeout", fields.one_of("onTimeout", TIMEOUTS)),
            overage=cast("Overage", fields.one_of("overage", OVERAGES)),
            price=price
            if price is None or isinstance(price, str)
            else fields.optional_count("price"),
            tier=fields.optional_text("tier"),
            created_at=fields.moment("createdAt"),
            updated_at=fields.moment("updatedAt"),
            # Other software's metadata stops no capture.
            metadata=metadata if isinstance(metadata, Mapping) else None,
        )
    except AccountDataError as error:
        return error

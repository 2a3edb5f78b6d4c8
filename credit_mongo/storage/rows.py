"""Rows: postings and results as the plain documents that are stored, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from bson import DBRef, Int64, ObjectId, decode, encode

from credit_mongo.core.batch import KeyRecord, Note, Refusal
from credit_mongo.core.decision import Posting
from credit_mongo.core.extras import BASE_PRIORITY
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.results import AuditLog, Transaction, TransactionLeg
from credit_mongo.core.state import Remembered
from credit_mongo.core.values import RefundableCharge, RevocableGrant
from credit_mongo.errors import AccountDataError, InvalidRequestError
from credit_mongo.storage.codecs import CODEC_OPTIONS, FOR_METADATA, Raw
from credit_mongo.storage.extras import ExtrasError, legs_from, stored_legs
from credit_mongo.storage.fields import StoredFields, described, exact_whole
from credit_mongo.storage.numbers import to_int64, to_moment, to_object_id

__all__ = [
    "CODEC_OPTIONS",
    "Raw",
    "audit_log_from",
    "checked_metadata",
    "copy_metadata",
    "failed_row",
    "idempotency_row",
    "metadata_from",
    "note_row",
    "posting_rows",
    "refundable_from",
    "refusal_row",
    "remembered_from",
    "revocable_from",
    "transaction_from",
    "with_ends",
]

# 16 KiB: three copies of it (transaction, audit log, idempotency record) for each of a batch of
# hundreds must fit a message of 48 MB, and the records of a batch a reply of 16 MB.
LARGEST_METADATA_BYTES: Final = 16 * 1024
# MongoDB refuses documents nested deeper than 180; this leaves room for what metadata is put into.
DEEPEST_METADATA: Final = 100

# Metadata


def copy_metadata(metadata: object) -> Raw | None:
    """The caller's metadata as the database would give it back; never the caller's own object.

    Raises InvalidRequestError unless it is a mapping with string keys that BSON can hold in 16 KiB.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidRequestError("metadata", f"must be a mapping, not {type(metadata).__name__}")
    try:
        encoded = encode(metadata, codec_options=FOR_METADATA)
        decoded = decode(encoded, codec_options=FOR_METADATA)
    except RecursionError:
        raise InvalidRequestError("metadata", "is nested too deeply or contains itself") from None
    except Exception:
        # The codec's own message would quote what it could not encode.
        raise InvalidRequestError("metadata", "cannot be stored as BSON") from None
    if len(encoded) > LARGEST_METADATA_BYTES:
        raise InvalidRequestError(
            "metadata", f"takes {len(encoded)} bytes of at most {LARGEST_METADATA_BYTES}"
        )
    copied: Raw = _plain(decoded, DEEPEST_METADATA)
    return copied


def checked_metadata(metadata: Raw) -> Raw:
    """Metadata that came from JSON, if the ledger can have them. They are not copied.

    BSON gives back what JSON has. Raises InvalidRequestError as `copy_metadata` does.
    """
    try:
        size = len(encode(metadata, codec_options=FOR_METADATA))
    except RecursionError:
        raise InvalidRequestError("metadata", "is nested too deeply") from None
    except Exception:
        raise InvalidRequestError("metadata", "cannot be stored as BSON") from None
    if size > LARGEST_METADATA_BYTES:
        raise InvalidRequestError(
            "metadata", f"takes {size} bytes of at most {LARGEST_METADATA_BYTES}"
        )
    _check_depth(metadata, DEEPEST_METADATA)
    return metadata


def _check_depth(value: Raw | list[Any], depth_left: int) -> None:
    if depth_left == 0:
        raise InvalidRequestError("metadata", "is nested too deeply or contains itself")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            _check_depth(item, depth_left - 1)


def metadata_from(document: Mapping[str, Any]) -> Any:
    """A row's metadata as the caller gave it."""
    return _plain(document.get("metadata"), -1)


def _plain(value: Any, depth_left: int) -> Any:
    """Mappings that look like a DBRef come back as one; here they stay what the caller gave."""
    if depth_left == 0:
        raise InvalidRequestError("metadata", "is nested too deeply or contains itself")
    if isinstance(value, DBRef):
        value = value.as_doc()
    if isinstance(value, Mapping):
        return {name: _plain(item, depth_left - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth_left - 1) for item in value]
    return value


# To the database


def posting_rows(posting: Posting, remembered_for: timedelta) -> tuple[Raw, Raw]:
    """The ledger's record of a posting, and its audit row: they share what they say.

    ``remembered_for`` is the lifetime of keys whose calls don't give another.
    """
    row_id, user_id = ObjectId(posting.transaction_id), posting.account.user_id
    operation, action, metadata = posting.operation, posting.action, posting.metadata
    created_at = to_moment(posting.account.updated_at)
    changes = {
        "amount": to_int64(posting.amount),
        "balanceBefore": to_int64(posting.balance_before),
        "balanceAfter": to_int64(posting.account.credits),
    }
    transaction: Raw = {
        "_id": row_id,
        "userId": user_id,
        "seq": to_int64(posting.account.seq),
        "operation": operation,
        "action": action,
        **changes,
        "metadata": metadata,
        "idempotencyKey": posting.key,
        "createdAt": created_at,
    }
    if posting.key is not None:
        # For verification: the configuration may have another time by then.
        transaction["keyExpiresAt"] = created_at + (posting.key_lifetime or remembered_for)
    if posting.refund_of is not None:
        transaction["refundOf"] = to_object_id(posting.refund_of)
    if posting.facts is not None:
        transaction.update(_with_int64(posting.facts))
    if posting.legs is not None:
        transaction["legs"] = stored_legs(posting.legs)
    if posting.revoke_of is not None:
        transaction["revokeOf"] = to_object_id(posting.revoke_of)
    if posting.hold_id is not None:
        transaction["holdId"] = to_object_id(posting.hold_id)
    if posting.written_at is not None:
        transaction["writtenAt"] = to_moment(posting.written_at)
    audit_log: Raw = {
        "_id": row_id,
        "userId": user_id,
        "operation": operation,
        "action": action,
        "status": "success",
        "details": {**changes, **_with_int64(posting.details)},
        "metadata": metadata,
        "errorMessage": None,
        "createdAt": created_at,
    }
    return transaction, audit_log


def _with_int64(details: Mapping[str, Any]) -> Raw:
    """Store a decision's own numbers as all amounts are: core knows no BSON."""
    return {
        name: to_int64(value) if type(value) is int else value for name, value in details.items()
    }


def refusal_row(refusal: Refusal) -> Raw:
    """The audit row of a refused attempt."""
    request, error = refusal.request, refusal.error
    return failed_row(
        ObjectId(request.transaction_id),
        request.user_id,
        (request.operation, request.action),
        refusal.at,
        details={"code": error.code},
        metadata=request.metadata,
        error=str(error),
    )


def failed_row(
    row_id: ObjectId,
    user_id: str,
    tried: tuple[str, str],
    at: datetime,
    *,
    details: Raw,
    metadata: Mapping[str, Any] | None,
    error: str | None,
) -> Raw:
    """The audit row of a failed attempt. ``tried`` are its operation and action."""
    operation, action = tried
    return {
        "_id": row_id,
        "userId": user_id,
        "operation": operation,
        "action": action,
        "status": "failed",
        "details": details,
        "metadata": metadata,
        "errorMessage": error,
        "createdAt": to_moment(at),
    }


def note_row(note: Note) -> Raw:
    """The audit row of an accepted request that moved no credits."""
    request = note.request
    return {
        "_id": ObjectId(request.transaction_id),
        "userId": request.user_id,
        "operation": request.operation,
        "action": request.action,
        "status": "success",
        "details": _with_int64(note.details),
        "metadata": request.metadata,
        "errorMessage": None,
        "createdAt": note.at,
    }


# asdict() would copy metadata deeply, on the way of every charge with a key.
# Of a user who is opened, the last four follow from the others.
_NOT_REMEMBERED: Final = frozenset({"replayed", "available", "held", "overdraft", "lots"})
_REMEMBERED_FIELDS: Final = {
    name: tuple(
        field.name for field in fields(operation.result_type) if field.name not in _NOT_REMEMBERED
    )
    for name, operation in OPERATIONS.items()
}
_REMEMBERED_VALUES: Final = {name: attrgetter(*of) for name, of in _REMEMBERED_FIELDS.items()}


def idempotency_row(record: KeyRecord, remembered_for: timedelta) -> Raw:
    """What is remembered of a keyed request, ``remembered_for`` unless its call says how long."""
    request, operation = record.request, record.request.operation
    values = _REMEMBERED_VALUES[operation](record.remembered.result)
    created_at = to_moment(record.at)
    return {
        "_id": request.key,
        "operation": operation,
        "userId": request.user_id,
        "fingerprint": record.remembered.fingerprint,
        "result": {
            name: to_int64(value) if type(value) is int else value
            for name, value in zip(_REMEMBERED_FIELDS[operation], values, strict=True)
        },
        "createdAt": created_at,
        "expiresAt": created_at + (request.key_lifetime or remembered_for),
    }


# From the database


def remembered_from(document: Mapping[str, Any]) -> Remembered:
    """What a key did. A record of other software is a key that was used for something else.

    Raises AccountDataError for a record with a fingerprint whose result the ledger did not write.
    """
    if "fingerprint" not in document:
        return Remembered("", None)
    try:
        stored = {
            name: int(value) if isinstance(value, Int64) else value
            for name, value in document["result"].items()
        }
        result = OPERATIONS[document["operation"]].result_type(**stored)
    except (AttributeError, KeyError, TypeError):
        reason = "of an idempotency record is not what the ledger writes: remove that record"
        raise AccountDataError(str(document.get("userId")), "result", reason) from None
    if getattr(result, "metadata", None) is not None:
        result = replace(result, metadata=_plain(result.metadata, -1))
    return Remembered(str(document["fingerprint"]), result)


def refundable_from(
    row: Mapping[str, Any], refunds: Iterable[Mapping[str, Any]]
) -> RefundableCharge | AccountDataError:
    """A charge and what is left of it; or what is wrong with its amount or with a refund's.

    ``refunds`` are the amounts that were given back, each with how often (``count``).
    """
    charge_id, user_id, refunded = str(row["_id"]), str(row.get("userId")), 0
    try:
        charged = -StoredFields(row, user_id).whole_number("amount")
    except AccountDataError as error:
        return error
    for refund in refunds:
        stored = refund["_id"].get("amount")
        amount = exact_whole(stored)
        if amount is None:
            reason = f"was refunded by a row whose amount {described(stored)}: correct that row"
            return AccountDataError(user_id, "amount", reason, row_id=charge_id)
        refunded += amount * refund["count"]
    try:
        legs = legs_from(row.get("legs"))
    except ExtrasError as error:
        return AccountDataError(user_id, "legs", str(error), row_id=charge_id)
    return RefundableCharge(charge_id, user_id, charged, refunded, legs)


def revocable_from(
    row: Mapping[str, Any], revocations: Iterable[Mapping[str, Any]]
) -> RevocableGrant | AccountDataError:
    """A grant and what is left of it; or what is wrong with its amount or with a revocation's."""
    user_id = str(row.get("userId"))
    try:
        granted = StoredFields(row, user_id).whole_number("amount")
        revoked = 0
        for revocation in revocations:
            fields = StoredFields(revocation, user_id)
            revoked += fields.optional_count("uncollected") - fields.whole_number("amount")
        legs = legs_from(row.get("legs"))
    except AccountDataError as error:
        return error
    except ExtrasError as error:
        return AccountDataError(user_id, "legs", str(error), row_id=str(row["_id"]))
    lot = next((leg.lot for leg in legs if leg.lot is not None), None)
    return RevocableGrant(str(row["_id"]), user_id, granted, revoked, lot)


def with_ends(
    grant: RevocableGrant | AccountDataError, ends: Iterable[Mapping[str, Any]]
) -> RevocableGrant | AccountDataError:
    """The grant with what ended in its lot. ``ends`` are rows of ends of lots, its own among them.

    An error if one of these rows is not what the ledger writes.
    """
    if isinstance(grant, AccountDataError) or grant.lot is None:
        return grant
    expired = 0
    for row in ends:
        try:
            legs = legs_from(row.get("legs"))
        except ExtrasError as error:
            return AccountDataError(grant.user_id, "legs", str(error), row_id=str(row["_id"]))
        expired -= sum(leg.amount for leg in legs if leg.lot_id == grant.lot.lot_id)
    return grant._replace(expired=expired)


def transaction_from(document: Mapping[str, Any], user_id: str) -> Transaction:
    """A record of the ledger as callers see it. Raises AccountDataError."""
    fields = StoredFields(document, user_id)
    return Transaction(
        transaction_id=fields.row_id,
        user_id=fields.text("userId"),
        # Rows of the Credit SDK have neither of these two.
        seq=fields.optional_count("seq"),
        operation=fields.optional_text("operation") or "",
        action=fields.text("action"),
        amount=fields.whole_number("amount"),
        balance_before=fields.whole_number("balanceBefore"),
        balance_after=fields.whole_number("balanceAfter"),
        metadata=metadata_from(document),
        idempotency_key=fields.optional_text("idempotencyKey"),
        refund_of=_optional_id(document, "refundOf"),
        created_at=fields.moment("createdAt"),
        legs=_legs(document, fields, user_id),
        revoke_of=_optional_id(document, "revokeOf"),
        hold_id=_optional_id(document, "holdId"),
        uncollected=fields.optional_count("uncollected"),
        written_at=None if document.get("writtenAt") is None else fields.moment("writtenAt"),
    )


def _optional_id(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    return None if value is None else str(value)


def _legs(
    document: Mapping[str, Any], fields: StoredFields, user_id: str
) -> tuple[TransactionLeg, ...]:
    if document.get("legs") is None:
        return ()
    try:
        legs = legs_from(document["legs"])
    except ExtrasError as error:
        raise AccountDataError(user_id, "legs", str(error), row_id=fields.row_id) from None
    return tuple(
        TransactionLeg(None, amount, None, BASE_PRIORITY, None)
        if lot is None
        else TransactionLeg(lot.lot_id, amount, lot.expires_at, lot.priority, lot.source)
        for lot, amount in legs
    )


def audit_log_from(document: Mapping[str, Any], user_id: str) -> AuditLog:
    """An attempt as callers see it. Raises AccountDataError."""
    fields = StoredFields(document, user_id)
    return AuditLog(
        audit_id=fields.checked_id(),
        user_id=fields.text("userId"),
        operation=fields.optional_text("operation") or "",
        action=fields.text("action"),
        status=fields.text("status"),
        details=fields.mapping("details"),
        metadata=metadata_from(document),
        error_message=fields.optional_text("errorMessage"),
        created_at=fields.moment("createdAt"),
    )

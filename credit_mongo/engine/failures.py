"""The driver's errors: which may pass, and what callers see of them."""

from __future__ import annotations

from typing import Final, TypeVar

from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from credit_mongo.errors import CreditError, ReplicaSetRequiredError, StorageError
from credit_mongo.storage.unreachable import no_usable_server

__all__ = ["as_storage_error", "caused_by", "is_conflict", "may_pass"]

_AnyError = TypeVar("_AnyError", bound=CreditError)

_TRANSIENT: Final = "TransientTransactionError"
_RETRYABLE: Final = "RetryableWriteError"
_LABELS: Final = (_TRANSIENT, _RETRYABLE, "UnknownTransactionCommitResult")
# All of a server's answer that quotes nothing.
_KEPT: Final = frozenset({"code", "codeName", "errorLabels"})
_WRITE_CONFLICT: Final = 112
_ILLEGAL_OPERATION: Final = 20
_CONTENDED: Final = (
    "another transaction was writing the same user until this call ended; nothing was written. "
    "Repeat the call, and keep transactions with session= short"
)


def is_conflict(error: BaseException | None) -> bool:
    """Whether another transaction holds what this one wanted to write."""
    return isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT


def may_pass(error: BaseException) -> bool:
    """Whether another try can go better: a lost connection, an election, …"""
    return isinstance(error, PyMongoError) and (
        error.has_error_label(_TRANSIENT)
        or error.has_error_label(_RETRYABLE)
        or isinstance(error, ConnectionFailure)
    )


def as_storage_error(error: BaseException) -> StorageError:
    """An error as one of ours: its cause, and the labels that ``with_transaction`` looks at."""
    return error if isinstance(error, StorageError) else caused_by(error, _as_ours(error))


def caused_by(error: BaseException, ours: _AnyError) -> _AnyError:
    """Our error with the driver's as its cause, without the server's text: it can quote keys."""
    if isinstance(error, OperationFailure):
        details = {name: value for name, value in (error.details or {}).items() if name in _KEPT}
        text = details.get("codeName") or f"code {error.code}"
        error = type(error)(text, error.code, details).with_traceback(error.__traceback__)
    ours.__cause__ = error
    return ours


def _as_ours(error: BaseException) -> StorageError:
    if isinstance(error, BSONError):
        return StorageError(
            "a stored document can't be read: it holds text that is not UTF-8. Nothing was written"
        )
    if not isinstance(error, PyMongoError):
        # Its text may quote anything; it is the cause, for those who look.
        return StorageError(f"the operation failed ({type(error).__name__}); nothing was written")
    if isinstance(error, DuplicateKeyError):
        # In an application's transaction: tried again as a whole, it meets the key as known.
        return StorageError(
            "another process wrote the same key at the same time", error_labels=[_TRANSIENT]
        )
    labels = [label for label in _LABELS if error.has_error_label(label)]
    if isinstance(error, OperationFailure):
        if error.code == _ILLEGAL_OPERATION:
            return ReplicaSetRequiredError()
        # The server's text can quote documents; its code cannot.
        name = (error.details or {}).get("codeName") or type(error).__name__
        refused = f"the server refused the operation: {name} (code {error.code})"
        return StorageError(_CONTENDED if is_conflict(error) else refused, error_labels=labels)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ServerSelectionTimeoutError):
        text = no_usable_server(str(error))
    return StorageError(text, error_labels=labels)

"""The server's error codes, by name, and what several modules conclude from them."""

from __future__ import annotations

from typing import Final

from pymongo.errors import ConnectionFailure, OperationFailure

__all__ = [
    "BAD_HINT",
    "COMMAND_NOT_FOUND",
    "COMMAND_NOT_SUPPORTED_ON_VIEW",
    "MAX_TIME_EXPIRED",
    "NAMESPACE_NOT_FOUND",
    "OPERATION_NOT_SUPPORTED_IN_TRANSACTION",
    "UNAUTHORIZED",
    "is_gone",
]

# BadValue, which names many things. For a query that is right, the hinted index is missing.
BAD_HINT: Final = 2
UNAUTHORIZED: Final = 13
NAMESPACE_NOT_FOUND: Final = 26
MAX_TIME_EXPIRED: Final = 50
COMMAND_NOT_FOUND: Final = 59
COMMAND_NOT_SUPPORTED_ON_VIEW: Final = 166
OPERATION_NOT_SUPPORTED_IN_TRANSACTION: Final = 263

# SnapshotTooOld; and SnapshotUnavailable, because a collection or an index is too new.
_SNAPSHOT_GONE: Final = frozenset({239, 246})
# CursorNotFound, QueryPlanKilled, CursorKilled.
_CURSOR_GONE: Final = frozenset({43, 175, 237})
# ShutdownInProgress, PrimarySteppedDown, NotWritablePrimary, InterruptedAtShutdown,
# InterruptedDueToReplStateChange, NotPrimaryNoSecondaryOk.
_SERVER_GONE: Final = frozenset({91, 189, 10107, 11600, 11602, 13435})
_GONE: Final = _SNAPSHOT_GONE | _CURSOR_GONE | _SERVER_GONE


def is_gone(error: BaseException) -> bool:
    """Return whether a cursor, its snapshot or its server is gone, so that a new one can go on."""
    return isinstance(error, ConnectionFailure) or (
        isinstance(error, OperationFailure) and error.code in _GONE
    )

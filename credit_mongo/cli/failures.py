"""How commands end: the exit codes, and one line that says what went wrong and what to do."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from pymongo.errors import (
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from typer import TyperException

from credit_mongo.errors import CreditError

__all__ = ["DONE", "EXPECTED", "FOUND", "INTERRUPTED", "NOT_DONE", "explain"]

DONE: Final = 0
FOUND: Final = 1
NOT_DONE: Final = 2
INTERRUPTED: Final = 130

EXPECTED: Final[tuple[type[Exception], ...]] = (
    CreditError,
    PyMongoError,
    TyperException,
    OSError,
    asyncio.TimeoutError,
)
"""What is explained in one line. Anything else is a bug, and shows where."""

_UNAUTHORIZED: Final = 13
_AUTHENTICATION_FAILED: Final = 18


def explain(error: BaseException) -> str:
    """What went wrong and what to do, in one line and without what an URI keeps secret."""
    if isinstance(error, TyperException):
        return _explain_usage(error)
    cause = error.__cause__
    if isinstance(error, CreditError) and isinstance(cause, OperationFailure):
        # Its code tells what the server misses.
        error = cause
    if isinstance(error, OperationFailure) and not isinstance(error, CreditError):
        return _explain_refusal(error)
    if isinstance(error, ServerSelectionTimeoutError | NetworkTimeout | asyncio.TimeoutError):
        # What follows is the driver's view of the whole topology.
        found = str(error).partition(" (configured timeouts")[0].partition(", Timeout:")[0]
        return _in_one_line(
            f"no usable server in time{': ' if found else ''}{found}. "
            "Is the URI right, and does each mongod run with --replSet, once initiated? "
            "For development: python -m credit_mongo.local"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Without its number.
        return _in_one_line(f"{error.filename}: {error.strerror}")
    return _in_one_line(str(error) or type(error).__name__)


def _explain_refusal(error: OperationFailure) -> str:
    # The server's text can quote the command; its code cannot.
    name = (error.details or {}).get("codeName", "error")
    reason = f"the server refuses it: {name} (code {error.code})"
    if error.code == _AUTHENTICATION_FAILED:
        return f"{reason}; check user name, password and authSource of the URI"
    if error.code == _UNAUTHORIZED:
        return f"{reason}; the user needs a role for it: credit-mongo roles shows them"
    return reason


def _explain_usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    program = context.command_path if context is not None else "credit-mongo"
    # It quotes what it was given, which may be an URI in the wrong place.
    # Each word is looked at once, from its beginning: one may be as long as a command line.
    message = re.sub(r"(?<!\S)\S*@", "…@", re.sub(r"://.*", "://…", error.format_message()))
    return _in_one_line(f"{message.rstrip('. ')}; see {program} --help")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())

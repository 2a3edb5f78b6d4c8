"""Exit codes, and one line for each error that says what went wrong and what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from pymongo.errors import (
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from typer import TyperException

from credit_mongo.errors import (
    BackupError,
    CreditError,
    InvalidRequestError,
    JobTimeoutError,
    MigrationError,
)
from credit_mongo.storage.server_errors import UNAUTHORIZED
from credit_mongo.storage.unreachable import no_usable_server

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
"""Errors that `explain` turns into one line. Any other is a bug and shows its traceback."""

_AUTHENTICATION_FAILED: Final = 18


# A command's parameter for a field of the library's errors, where the names differ.
_PARAMETERS: Final = {
    "from": "start",
    "to": "end",
    "start_date": "start",
    "end_date": "end",
    "user_id": "user",
    "user_ids": "user",
    "transaction_id": "transaction",
    "grant_transaction_id": "transaction",
    "hold_id": "hold",
    "key_ttl_seconds": "key_ttl",
    "key_file": "encrypt_with",
    "grace_seconds": "grace",
    "places": "top",
    "kinds": "only",
    "format": "kind",
    "credits": "opening_credits",
    "membership_tier": "tier",
    "target_tier": "tier",
    "membership_expires_at": "expires_at",
    "timezone": "time_zone",
}


def explain(error: BaseException, names: Mapping[str, str]) -> str:
    """Say in one line what went wrong and what to do, without any secret of a URI.

    ``names`` maps the command's parameters to their typed form. The line names these, not the
    library's arguments.
    """
    if isinstance(error, TyperException):
        return _explain_usage(error)
    if isinstance(error, InvalidRequestError):
        own = names.get(_PARAMETERS.get(error.field, error.field), error.field)
        typed = names.get(error.field, own)
        return _in_one_line(f"{typed}: {error.reason}")
    cause = error.__cause__
    if (
        isinstance(error, CreditError)
        and not isinstance(error, BackupError | JobTimeoutError | MigrationError)
        and isinstance(cause, OperationFailure)
    ):
        # The server's code says more: a missing privilege, for example.
        error = cause
    if isinstance(error, OperationFailure) and not isinstance(error, CreditError):
        return _explain_refusal(error)
    if isinstance(error, ServerSelectionTimeoutError | NetworkTimeout | asyncio.TimeoutError):
        return _in_one_line(no_usable_server(str(error)))
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Leave out the error number.
        return _in_one_line(f"{error.filename}: {error.strerror}")
    return _in_one_line(str(error) or type(error).__name__)


def _explain_refusal(error: OperationFailure) -> str:
    # Show only the code, because the server's text can quote the command.
    name = (error.details or {}).get("codeName", "error")
    reason = f"the server refused the command: {name} (code {error.code})"
    if error.code == _AUTHENTICATION_FAILED:
        return f"{reason}; check the URI's user name, password and authSource"
    if error.code == UNAUTHORIZED:
        return f"{reason}; give the user a role that allows it: credit-mongo roles shows them"
    return reason


def _explain_usage(error: TyperException) -> str:
    option = getattr(error, "option_name", "")
    if re.match(r"-[\d.]", option):
        return _in_one_line(
            f"{option}… looks like a negative number, but amounts are whole numbers above 0. "
            "To take credits, use charge. Write -- before an id that begins with a dash"
        )
    context = getattr(error, "ctx", None)
    program = context.command_path if context is not None else "credit-mongo"
    # The message quotes the arguments, and one may be a URI in the wrong place. The patterns look
    # at each word once, from its beginning, as it may be as long as a command line.
    message = error.format_message().removeprefix("Invalid value: ")
    message = re.sub(r"(?<!\S)\S*@", "…@", re.sub(r"://.*", "://…", message))
    return _in_one_line(f"{message.rstrip('. ')}; see {program} --help")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())

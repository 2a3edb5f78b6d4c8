"""What went wrong, as a page: a status code, what happened, and what to do."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pymongo.errors import OperationFailure
from starlette.exceptions import HTTPException

from credit_mongo.errors import (
    AccountDataError,
    ClockSkewError,
    ConfigurationError,
    CreditError,
    HoldNotFoundError,
    InvalidRequestError,
    StorageError,
    TransactionNotFoundError,
    UserNotFoundError,
)
from credit_mongo.storage.server_errors import BAD_HINT, MAX_TIME_EXPIRED, UNAUTHORIZED

__all__ = ["NO_SUCH_PAGE", "Failure", "Refused", "failure_of", "lacks_privilege"]

_log: Final = logging.getLogger("credit_mongo.studio")


@dataclass(frozen=True, slots=True)
class Failure:
    """A page that is shown instead of the one that was asked for."""

    status: int
    title: str
    text: str
    remedy: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - it is no error of the program's
    """A request that is answered with a failure and goes no further."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.title)
        self.failure: Failure = failure


NO_SUCH_PAGE: Final = Failure(
    404, "No such page", "There is no page at this address.", "Start at the overview."
)

_NOT_FOUND: Final = {
    UserNotFoundError: ("No such user", "Check the id, or search for its beginning under Users."),
    TransactionNotFoundError: (
        "No such transaction",
        "Check the id. Transactions that were archived to files are not in the database.",
    ),
    HoldNotFoundError: ("No such hold", "Check the id."),
}


def failure_of(error: Exception) -> Failure:
    """Say what happened and what to do. Nothing of it quotes metadata, keys or the server."""
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, HTTPException):
        return _failure_of_http(error)
    if isinstance(error, CreditError):
        return _failure_of_request(error) or _failure_of_ledger(error)
    # Not the error's own text, which can quote anything: where it happened is enough to find it.
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("Studio can't show a page: %s\n%s", type(error).__name__, frames.rstrip())
    return Failure(
        500,
        "Studio can't show this page",
        f"An unexpected error happened ({type(error).__name__}). Nothing was changed by it.",
        "The log of the program that runs Studio says where. Please report it.",
    )


def lacks_privilege(error: CreditError) -> bool:
    """Whether the server has refused it to the database user."""
    cause = error.__cause__
    return isinstance(cause, OperationFailure) and cause.code == UNAUTHORIZED


def _failure_of_http(error: HTTPException) -> Failure:
    if error.status_code == NO_SUCH_PAGE.status:
        return NO_SUCH_PAGE
    return Failure(error.status_code, error.detail, "", headers=error.headers or {})


def _failure_of_request(error: CreditError) -> Failure | None:
    """What is wrong with the address or the form, if it is one of these."""
    for kind, (title, remedy) in _NOT_FOUND.items():
        if isinstance(error, kind):
            return Failure(404, title, _sentence(error), remedy)
    if isinstance(error, InvalidRequestError):
        return Failure(
            400,
            "Studio can't use a value of this address or form",
            f"{error.field}: {error.reason}.",
            "Go back and correct it. A link to a next page is valid only in the list it came from.",
        )
    return None


def _failure_of_ledger(error: CreditError) -> Failure:
    cause = error.__cause__
    code = cause.code if isinstance(cause, OperationFailure) else None
    if code in _BY_CODE:
        return _BY_CODE[code]
    if isinstance(error, AccountDataError):
        return Failure(
            500,
            "A stored document is not what the ledger writes",
            _sentence(error),
            "Run credit-mongo verify: it names everything that is wrong.",
        )
    if isinstance(error, ClockSkewError | ConfigurationError):
        return Failure(500, "The ledger can't be read", _sentence(error))
    if isinstance(error, StorageError):
        return _OUT_OF_REACH
    return Failure(409, "The ledger refused it", _sentence(error))


def _sentence(error: CreditError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


_OUT_OF_REACH: Final = Failure(
    503,
    "The database doesn't answer",
    "No usable server answered in time. Studio has changed nothing.",
    "Check that the replica set runs and has a primary, then reload this page.",
    {"Retry-After": "5"},
)
_BY_CODE: Final[Mapping[int | None, Failure]] = {
    UNAUTHORIZED: Failure(
        403,
        "The database role may not do this",
        "The server refused it, because the database user lacks a privilege. Nothing was changed.",
        "Give it a role that allows it: credit-mongo roles shows them.",
    ),
    MAX_TIME_EXPIRED: Failure(
        503,
        "The database needed too long",
        "The server stopped the query, so that it would not slow down the application.",
        "Ask for less: a shorter period, or a narrower filter.",
    ),
    BAD_HINT: Failure(
        503,
        "An index is missing",
        "This page reads through an index that the database doesn't have.",
        "Run credit-mongo init: it creates what is missing.",
    ),
}

"""The ledger's errors as RFC 9457 problem details.

A body has ``type``, ``title``, ``status``, ``detail``, ``code`` and the error's facts that the
caller may know. It never contains what only an operator should see, such as hosts, formulas and
the driver's messages: those errors get a fixed ``detail``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from credit_mongo.errors import (
    AccountDataError,
    AccountLimitError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    CreditError,
    FormulaEvaluationError,
    HoldClosedError,
    HoldExceededError,
    HoldNotFoundError,
    IdempotencyConflictError,
    IdempotencyKeyError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidTierChangeError,
    JobTimeoutError,
    MembershipRequiredError,
    MissingIdempotencyKeyError,
    MissingVariableError,
    RefundExceedsChargeError,
    RequestCompletedError,
    RequestInProgressError,
    RequestTooLargeError,
    RevokeExceedsGrantError,
    StorageError,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    UserExistsError,
    UserNotFoundError,
)
from credit_mongo.integrations.fastapi.middleware import Credits, credits_of
from credit_mongo.integrations.fastapi.openapi import describe_problems
from credit_mongo.integrations.fastapi.routes import mounted_in

__all__ = ["add_credit_handlers", "share_credit_handlers"]

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:credit-mongo:error:"
_RETRY_AFTER_SECONDS: Final = 1
_LEAST_STATUS, _MOST_STATUS = 400, 599


class _Kind(NamedTuple):
    """How to show an error. ``detail`` replaces its message if given."""

    status: int
    title: str
    facts: tuple[str, ...] = ()
    detail: str | None = None
    may_pass: bool = False


_KINDS: Final[Mapping[type[CreditError], _Kind]] = {
    CreditError: _Kind(500, "Credit error", detail="The credit ledger failed."),
    ConfigurationError: _Kind(
        500, "Wrong configuration", detail="The credit ledger's configuration is wrong."
    ),
    MissingIdempotencyKeyError: _Kind(400, "Idempotency key missing"),
    IdempotencyKeyError: _Kind(400, "Invalid idempotency key"),
    InsufficientCreditsError: _Kind(
        402, "Insufficient credits", ("user_id", "required", "available")
    ),
    MembershipRequiredError: _Kind(403, "Membership required", ("user_id", "required", "current")),
    UserNotFoundError: _Kind(404, "User not found", ("user_id",)),
    TransactionNotFoundError: _Kind(404, "Transaction not found", ("transaction_id",)),
    HoldNotFoundError: _Kind(404, "Hold not found", ("hold_id",)),
    UserExistsError: _Kind(409, "User exists", ("user_id",)),
    InvalidTierChangeError: _Kind(
        409, "Invalid tier change", ("user_id", "current_tier", "target_tier", "reason")
    ),
    RefundExceedsChargeError: _Kind(
        409, "Refund exceeds charge", ("transaction_id", "refundable", "requested")
    ),
    RevokeExceedsGrantError: _Kind(
        409, "Revocation exceeds grant", ("transaction_id", "revocable", "requested")
    ),
    AccountLimitError: _Kind(409, "Account limit reached", ("user_id", "what", "limit")),
    HoldClosedError: _Kind(409, "Hold closed", ("hold_id",)),
    HoldExceededError: _Kind(409, "Hold exceeded", ("hold_id", "held", "requested")),
    RequestInProgressError: _Kind(409, "Request in progress", may_pass=True),
    RequestCompletedError: _Kind(409, "Request completed", ("transaction_id",)),
    RequestTooLargeError: _Kind(413, "Request too large", ("largest",)),
    # The IETF's draft asks for 422 when a key comes back with another request.
    IdempotencyConflictError: _Kind(422, "Idempotency key used for another request"),
    InvalidRequestError: _Kind(422, "Invalid request", ("field", "reason")),
    UndefinedActionError: _Kind(422, "Undefined action", ("action",)),
    UndefinedTierError: _Kind(422, "Undefined tier", ("tier",)),
    MissingVariableError: _Kind(
        422,
        "Missing variable",
        ("missing_variable",),
        "The price needs a variable that is missing.",
    ),
    FormulaEvaluationError: _Kind(
        422, "No price", detail="The price can't be calculated from these variables."
    ),
    StorageError: _Kind(
        503,
        "Credits unavailable",
        detail="The credit ledger can't be reached now. Try again.",
        may_pass=True,
    ),
    CommitOutcomeUnknownError: _Kind(503, "Outcome unknown", may_pass=True),
    JobTimeoutError: _Kind(
        503, "Not completed", detail="The work is not finished yet: send it again.", may_pass=True
    ),
    AccountDataError: _Kind(500, "Unusable account", detail="The account must be repaired first."),
}

# The errors that a charging route may answer before or after its handler runs.
_CHARGE_ERRORS: Final = (
    MissingIdempotencyKeyError,
    IdempotencyKeyError,
    InsufficientCreditsError,
    MembershipRequiredError,
    UserNotFoundError,
    RequestInProgressError,
    RequestCompletedError,
    RequestTooLargeError,
    IdempotencyConflictError,
    InvalidRequestError,
    MissingVariableError,
    FormulaEvaluationError,
    StorageError,
    CommitOutcomeUnknownError,
)


def add_credit_handlers(
    app: FastAPI,
    *,
    statuses: Mapping[type[CreditError], int] | None = None,
    type_prefix: str = TYPE_PREFIX,
) -> None:
    """Answer the ledger's errors as problem details wherever a handler lets them through.

    - ``statuses``: other HTTP statuses (400 to 599) by error class. A status also holds for
      subclasses that have none of their own.
    - ``type_prefix``: the beginning of ``type``, for example the address of a page about errors.
      The error's code follows, in lower case with hyphens.

    An application's own subclass of an error is shown as its nearest ancestor. In the OpenAPI
    document, routes with a `Charge` get these answers, and a required ``Idempotency-Key`` is marked
    as required. Raises ConfigurationError.
    """
    changed = dict(statuses or {})
    for kind, status in changed.items():
        if CreditError not in getattr(kind, "__mro__", ()):
            raise ConfigurationError("statuses", f"{kind!r} is not a CreditError class")
        if type(status) is not int or not _LEAST_STATUS <= status <= _MOST_STATUS:
            raise ConfigurationError(f"statuses.{kind.__name__}", "must be an int from 400 to 599")

    handler = _Handler(changed, type_prefix)
    app.add_exception_handler(CreditError, handler)
    handler.describe(app)


def share_credit_handlers(app: Any) -> None:
    """Give ``app``'s handler to the mounted applications that have none of their own."""
    handler = getattr(app, "exception_handlers", {}).get(CreditError)
    for mounted in mounted_in(app):
        handlers = getattr(mounted, "exception_handlers", None)
        if isinstance(handler, _Handler) and handlers is not None and CreditError not in handlers:
            handlers[CreditError] = handler
            if isinstance(mounted, FastAPI):
                handler.describe(mounted)


class _Handler:
    """Answers errors as problems and describes these answers in OpenAPI documents."""

    def __init__(self, statuses: Mapping[type[CreditError], int], type_prefix: str) -> None:
        self._statuses = statuses
        self._type_prefix = type_prefix

    async def __call__(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, CreditError)  # noqa: S101 - registered for no other
        return _problem(error, self._statuses, self._type_prefix, credits_of(request))

    def describe(self, app: FastAPI) -> None:
        """Add the answers of charging routes to the application's OpenAPI document."""
        texts: dict[int, list[str]] = {}
        for kind in _CHARGE_ERRORS:
            texts.setdefault(_status(kind, self._statuses), []).append(_KINDS[kind].title)
        problems = {status: ", ".join(titles) for status, titles in sorted(texts.items())}
        describe_problems(app, problems, MEDIA_TYPE)


def _problem(
    error: CreditError,
    changed: Mapping[type[CreditError], int],
    type_prefix: str,
    credits_: Credits | None,
) -> JSONResponse:
    shown = _shown(type(error))
    status = _status(type(error), changed)
    body: dict[str, Any] = {name: getattr(error, name) for name in shown.facts}
    body.update(
        type=type_prefix + error.code.lower().replace("_", "-"),
        title=shown.title,
        status=status,
        detail=_detail(error, shown, credits_),
        code=error.code,
    )
    headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if shown.may_pass else None
    return JSONResponse(body, status, headers, MEDIA_TYPE)


def _shown(kind: type[CreditError]) -> _Kind:
    return next(_KINDS[each] for each in kind.__mro__ if each in _KINDS)


def _status(kind: type[CreditError], changed: Mapping[type[CreditError], int]) -> int:
    return next((changed[each] for each in kind.__mro__ if each in changed), _shown(kind).status)


def _detail(error: CreditError, shown: _Kind, credits_: Credits | None) -> str:
    if isinstance(error, InsufficientCreditsError) and credits_ is not None:
        # In credits, for people. The facts beside it stay in smallest units, for programs.
        required = credits_.ledger.format(error.required)
        available = credits_.ledger.format(error.available)
        return f"This costs {required} credits, but user {error.user_id!r} has {available}."
    return str(error) if shown.detail is None else shown.detail

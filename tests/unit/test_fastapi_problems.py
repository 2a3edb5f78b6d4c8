"""The ledger's errors as problem details, and the ``Idempotency-Key`` header."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from credit_mongo import errors
from credit_mongo.errors import (
    AccountDataError,
    AccountLimitError,
    ArchiveCopyError,
    ArchiveLostError,
    ArchiveManifestError,
    ArchiveRunningError,
    BackupError,
    BackupRunningError,
    ClockSkewError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    CreditError,
    FormulaEvaluationError,
    HoldClosedError,
    HoldExceededError,
    HoldNotFoundError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidTierChangeError,
    JobTimeoutError,
    LedgerBusyError,
    LedgerImportError,
    MembershipRequiredError,
    MigrationError,
    MissingVariableError,
    RefundExceedsChargeError,
    ReplicaSetRequiredError,
    RevokeExceedsGrantError,
    StorageError,
    TransactionAbortedError,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    UserExistsError,
    UserNotFoundError,
)
from credit_mongo.integrations.fastapi import (
    IdempotencyKeyError,
    MissingIdempotencyKeyError,
    RequestCompletedError,
    RequestInProgressError,
    RequestTooLargeError,
    add_credit_handlers,
    required_idempotency_key,
)

SECRET = "s3cr3t"  # noqa: S105 - none, but what stands for one
SHOWN: tuple[tuple[CreditError, int, dict[str, Any]], ...] = (
    (MissingIdempotencyKeyError(), 400, {}),
    (IdempotencyKeyError(), 400, {}),
    (
        InsufficientCreditsError("ann", 10, 3),
        402,
        {"user_id": "ann", "required": 10, "available": 3},
    ),
    (
        MembershipRequiredError("ann", "premium", None),
        403,
        {"user_id": "ann", "required": "premium", "current": None},
    ),
    (UserNotFoundError("ann"), 404, {"user_id": "ann"}),
    (TransactionNotFoundError("t1"), 404, {"transaction_id": "t1"}),
    (UserExistsError("ann"), 409, {"user_id": "ann"}),
    (
        InvalidTierChangeError("ann", "a", "b", "it is not higher"),
        409,
        {"user_id": "ann", "current_tier": "a", "target_tier": "b", "reason": "it is not higher"},
    ),
    (
        RefundExceedsChargeError("t1", 1, 2),
        409,
        {"transaction_id": "t1", "refundable": 1, "requested": 2},
    ),
    (
        RevokeExceedsGrantError("t1", 1, 2),
        409,
        {"transaction_id": "t1", "revocable": 1, "requested": 2},
    ),
    (
        AccountLimitError("ann", "lots", 64),
        409,
        {"user_id": "ann", "what": "lots", "limit": 64},
    ),
    (HoldNotFoundError("h1"), 404, {"hold_id": "h1"}),
    (HoldClosedError("h1", "captured"), 409, {"hold_id": "h1"}),
    (HoldExceededError("h1", 1, 2), 409, {"hold_id": "h1", "held": 1, "requested": 2}),
    (RequestInProgressError(), 409, {}),
    (RequestCompletedError("t1"), 409, {"transaction_id": "t1"}),
    (RequestTooLargeError(10), 413, {"largest": 10}),
    (IdempotencyConflictError(SECRET), 422, {}),
    (
        InvalidRequestError("amount", "must be an int"),
        422,
        {"field": "amount", "reason": "must be an int"},
    ),
    (UndefinedActionError("dance"), 422, {"action": "dance"}),
    (UndefinedTierError("gold"), 422, {"tier": "gold"}),
    (MissingVariableError(SECRET, "token", []), 422, {"missing_variable": "token"}),
    (FormulaEvaluationError(SECRET, {"a": SECRET}, SECRET), 422, {}),
    (ConfigurationError("costs", SECRET), 500, {}),
    (CreditError(SECRET), 500, {}),
    (BackupError(SECRET, SECRET), 500, {}),
    (MigrationError(SECRET, SECRET), 500, {}),
    (LedgerImportError(SECRET), 500, {}),
    (AccountDataError("ann", "credits", SECRET), 500, {}),
    (StorageError(f"connect to {SECRET}:27017"), 503, {}),
    (ReplicaSetRequiredError(), 503, {}),
    (LedgerBusyError(SECRET), 503, {}),
    (TransactionAbortedError(), 503, {}),
    (ClockSkewError(2, 1), 503, {}),
    (CommitOutcomeUnknownError(), 503, {}),
    (JobTimeoutError(SECRET), 503, {}),
    (ArchiveRunningError(datetime(2026, 1, 1, tzinfo=timezone.utc)), 503, {}),
    (ArchiveLostError(), 503, {}),
    (ArchiveCopyError(SECRET), 503, {}),
    (ArchiveManifestError(SECRET, SECRET, SECRET), 503, {}),
    (BackupRunningError(datetime(2026, 1, 1, tzinfo=timezone.utc)), 503, {}),
)


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Open a client that calls the application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


# Problems


async def _problem_of(error: CreditError, **options: Any) -> httpx.Response:
    app = FastAPI()
    add_credit_handlers(app, **options)

    @app.get("/")
    async def fail() -> None:
        raise error

    async with client_of(app) as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "facts"), SHOWN, ids=lambda value: type(value).__name__
)
async def test_an_error_is_a_problem(
    error: CreditError, status: int, facts: Mapping[str, Any]
) -> None:
    """It has its status, the standard members and the public attributes, and nothing else."""
    answer = await _problem_of(error)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    standard = {name: body.pop(name) for name in ("type", "title", "status", "detail", "code")}
    assert body == facts
    assert standard["status"] == status
    assert standard["code"] == error.code
    assert standard["type"] == f"urn:credit-mongo:error:{error.code.lower().replace('_', '-')}"
    assert standard["title"]
    assert standard["detail"]
    assert SECRET not in answer.text
    waits = status == 503 or isinstance(error, RequestInProgressError)
    assert ("retry-after" in answer.headers) == waits


def test_every_error_of_the_library_is_shown() -> None:
    """A new error needs a row in the table above."""
    public = {getattr(errors, name) for name in errors.__all__}
    all_errors = {kind for kind in public if not issubclass(kind, Warning)}
    assert all_errors <= {type(error) for error, _, _ in SHOWN}
    assert all(inspect.isclass(error) for error in all_errors)


class _OwnError(InsufficientCreditsError):
    code = "OWN"


async def test_the_map_of_errors_to_statuses_can_be_changed() -> None:
    """The entry of the nearest class counts, for subclasses too. The type can be a URL."""
    own = _OwnError("ann", 2, 1)
    assert (await _problem_of(own)).status_code == 402
    assert (await _problem_of(own, statuses={CreditError: 418})).status_code == 418
    answer = await _problem_of(
        own,
        statuses={CreditError: 418, InsufficientCreditsError: 429},
        type_prefix="https://example.org/errors#",
    )
    assert (answer.status_code, answer.json()["status"]) == (429, 429)
    assert answer.json()["type"] == "https://example.org/errors#own"


@pytest.mark.parametrize(
    "statuses",
    [{StorageError: 200}, {StorageError: "503"}, {StorageError: True}, {ValueError: 500}],
)
def test_a_wrong_map_is_refused(statuses: Any) -> None:
    """A wrong map is refused before any request arrives."""
    with pytest.raises(ConfigurationError, match="statuses"):
        add_credit_handlers(FastAPI(), statuses=statuses)


# The header


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (["8e03978e-40d5"], "8e03978e-40d5"),
        (['"8e03978e-40d5"'], "8e03978e-40d5"),
        (['"with a space and \\" and \\\\"'], 'with a space and " and \\'),
        (["x" * 255], "x" * 255),
        (["x" * 256], None),
        (['"' + "x" * 256 + '"'], None),
        (['""'], None),
        ([""], None),
        (["two words"], None),
        (['"open'], None),
        (['in"side'], None),
        (["h\u00e9"], None),
        (["a", "a"], None),
    ],
)
async def test_the_key_is_checked(values: list[str], key: str | None) -> None:
    """The key is a quoted string as in the draft, or a bare one. Anything else gives a 400."""
    app = FastAPI()
    add_credit_handlers(app)

    @app.get("/")
    async def show(key: Annotated[str, Depends(required_idempotency_key)]) -> str:
        return key

    headers = [(b"Idempotency-Key", value.encode()) for value in values]
    async with client_of(app) as client:
        answer = await client.get("/", headers=headers)
        if key is None:
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_IDEMPOTENCY_KEY")
        else:
            assert (answer.status_code, answer.json()) == (200, key)
        missing = await client.get("/")
    assert (missing.status_code, missing.json()["code"]) == (400, "IDEMPOTENCY_KEY_MISSING")

"""Errors: their codes, their attributes, and what their messages never contain."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

import credit_mongo
from credit_mongo import errors
from credit_mongo.engine.failures import as_storage_error
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
    IdempotencyKeyError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidTierChangeError,
    JobTimeoutError,
    LedgerBusyError,
    LedgerImportError,
    MembershipRequiredError,
    MigrationError,
    MissingIdempotencyKeyError,
    MissingVariableError,
    RefundExceedsChargeError,
    ReplicaSetRequiredError,
    RequestCompletedError,
    RequestInProgressError,
    RequestTooLargeError,
    RevokeExceedsGrantError,
    StorageError,
    TransactionAbortedError,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    UserExistsError,
    UserNotFoundError,
)

TRANSIENT = "TransientTransactionError"
# The words of the driver, which code outside of it reads as well.
LABELS = [TRANSIENT, "UnknownTransactionCommitResult", "RetryableWriteError"]
KEY = "the-key-of-a-request"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

# Each error with its code and its facts. The codes are the Credit SDK's where it has one.
ERRORS: list[tuple[CreditError, str, dict[str, Any]]] = [
    (
        InvalidRequestError("amount", "must be an int"),
        "INVALID_REQUEST",
        {"field": "amount", "reason": "must be an int"},
    ),
    (
        ConfigurationError("costs.post", "has no prices"),
        "CONFIGURATION_ERROR",
        {"field": "costs.post", "reason": "has no prices"},
    ),
    (UndefinedActionError("post"), "UNDEFINED_ACTION", {"action": "post"}),
    (UndefinedTierError("gold"), "UNDEFINED_TIER", {"tier": "gold"}),
    (UserNotFoundError("u"), "USER_NOT_FOUND", {"user_id": "u"}),
    (UserExistsError("u"), "USER_EXISTS", {"user_id": "u"}),
    (
        InsufficientCreditsError("u", 10, 3),
        "INSUFFICIENT_CREDITS",
        {"user_id": "u", "required": 10, "available": 3},
    ),
    (
        MembershipRequiredError("u", "premium", None),
        "MEMBERSHIP_REQUIRED",
        {"user_id": "u", "required": "premium", "current": None},
    ),
    (
        InvalidTierChangeError("u", "premium", "free", "it is not higher"),
        "INVALID_TIER_CHANGE",
        {
            "user_id": "u",
            "current_tier": "premium",
            "target_tier": "free",
            "reason": "it is not higher",
        },
    ),
    (
        MissingVariableError("{a} + {b}", "b", ["a"]),
        "MISSING_VARIABLE",
        {"formula": "{a} + {b}", "missing_variable": "b", "provided_variables": ("a",)},
    ),
    (
        FormulaEvaluationError("1 / {a}", {"a": Decimal("0.0")}, "division by zero"),
        "FORMULA_EVALUATION_ERROR",
        {"formula": "1 / {a}", "variables": {"a": Decimal("0.0")}, "cause": "division by zero"},
    ),
    (IdempotencyConflictError(KEY), "IDEMPOTENCY_KEY_CONFLICT", {"key": KEY}),
    (TransactionNotFoundError("t"), "TRANSACTION_NOT_FOUND", {"transaction_id": "t"}),
    (
        RefundExceedsChargeError("t", 3, 10),
        "REFUND_EXCEEDS_CHARGE",
        {"transaction_id": "t", "refundable": 3, "requested": 10},
    ),
    (
        RevokeExceedsGrantError("t", 3, 10),
        "REVOKE_EXCEEDS_GRANT",
        {"transaction_id": "t", "revocable": 3, "requested": 10},
    ),
    (
        AccountLimitError("u", "lots", 64),
        "ACCOUNT_LIMIT",
        {"user_id": "u", "what": "lots", "limit": 64},
    ),
    (HoldNotFoundError("h"), "HOLD_NOT_FOUND", {"hold_id": "h"}),
    (HoldClosedError("h", "captured"), "HOLD_CLOSED", {"hold_id": "h", "status": "captured"}),
    (
        HoldExceededError("h", 3, 10),
        "HOLD_EXCEEDED",
        {"hold_id": "h", "held": 3, "requested": 10},
    ),
    (StorageError("the database did not answer", error_labels=LABELS[:2]), "STORAGE_ERROR", {}),
    (ReplicaSetRequiredError(), "REPLICA_SET_REQUIRED", {}),
    (LedgerBusyError("the ledger is closed"), "LEDGER_BUSY", {}),
    (CommitOutcomeUnknownError(), "COMMIT_OUTCOME_UNKNOWN", {}),
    (TransactionAbortedError(), "TRANSACTION_ABORTED", {}),
    (
        ClockSkewError(-90.5, 60),
        "CLOCK_SKEW",
        {"skew_seconds": -90.5, "allowed_seconds": 60},
    ),
    (JobTimeoutError("the database did not answer in time"), "JOB_TIMEOUT", {}),
    (ArchiveRunningError(MOMENT), "ARCHIVE_RUNNING", {"alive_until": MOMENT}),
    (ArchiveLostError(), "ARCHIVE_LOST", {}),
    (ArchiveCopyError("transactions_archive"), "ARCHIVE_COPY", {}),
    (
        ArchiveManifestError("m", "files.0.name", "../x"),
        "ARCHIVE_MANIFEST",
        {"manifest_id": "m", "field": "files.0.name"},
    ),
    (
        BackupError("20260101T000000Z-full-01", "was changed"),
        "BACKUP",
        {"backup": "20260101T000000Z-full-01", "reason": "was changed"},
    ),
    (BackupRunningError(MOMENT), "BACKUP_RUNNING", {"alive_until": MOMENT}),
    (
        MigrationError("20260101000000_plans", "was changed"),
        "MIGRATION",
        {"migration": "20260101000000_plans", "reason": "was changed"},
    ),
    (LedgerImportError("there is no table"), "IMPORT", {"reason": "there is no table"}),
    (IdempotencyKeyError(), "INVALID_IDEMPOTENCY_KEY", {}),
    (MissingIdempotencyKeyError(), "IDEMPOTENCY_KEY_MISSING", {}),
    (RequestInProgressError(), "REQUEST_IN_PROGRESS", {}),
    (RequestCompletedError("t"), "REQUEST_COMPLETED", {"transaction_id": "t"}),
    (RequestTooLargeError(10), "REQUEST_TOO_LARGE", {"largest": 10}),
    (
        AccountDataError("u", "credits", "is below zero"),
        "ACCOUNT_DATA",
        {"user_id": "u", "field": "credits", "reason": "is below zero", "row_id": None},
    ),
]
KINDS = [type(error) for error, _, _ in ERRORS]
# Attributes that stand in the message.
TOLD = {"user_id", "field", "action", "tier", "transaction_id", "formula", "reason"}
each_error = pytest.mark.parametrize(
    ("error", "code", "expected"), ERRORS, ids=[kind.__name__ for kind in KINDS]
)


def facts(error: CreditError) -> dict[str, Any]:
    """Return an error's public attributes."""
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}


def labels_of(error: PyMongoError) -> list[str]:
    """Return the labels that the driver looks at."""
    return [label for label in LABELS if error.has_error_label(label)]


# --- Codes and attributes -------------------------------------------------------------------------


@each_error
def test_an_error_has_its_code_and_its_attributes(
    error: CreditError, code: str, expected: dict[str, Any]
) -> None:
    """Programs read codes and attributes: both are stable, and each class has its own code."""
    assert error.code == type(error).code == code
    assert facts(error) == expected
    assert isinstance(error, CreditError)


def test_no_two_errors_share_a_code() -> None:
    """A code identifies its error."""
    codes = [CreditError.code, *(code for _, code, _ in ERRORS)]
    assert len(set(codes)) == len(codes)


def test_every_error_is_here_and_public() -> None:
    """Each error of the module is in the table above, in ``__all__``, and in the package."""
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    warnings = {"PriceRoundsToZeroWarning"}
    assert classes == {kind.__name__ for kind in KINDS} | {"CreditError"} | warnings
    assert set(errors.__all__) == classes
    assert classes <= set(credit_mongo.__all__)
    elsewhere = {
        kind
        for kind in _kinds_under(CreditError)
        if kind.__module__.startswith("credit_mongo.") and kind.__module__ != errors.__name__
    }
    assert {kind.__name__ for kind in elsewhere if not kind.__name__.startswith("_")} == set()
    for name in classes:
        assert getattr(credit_mongo, name) is getattr(errors, name)
        assert getattr(errors, name).__doc__


def _kinds_under(kind: type[CreditError]) -> set[type[CreditError]]:
    """Return all subclasses in the loaded modules."""
    subclasses = set(kind.__subclasses__())
    return subclasses.union(*(_kinds_under(subclass) for subclass in subclasses))


@each_error
def test_an_error_has_a_message(error: CreditError, code: str, expected: dict[str, Any]) -> None:
    """Each message is a sentence for people, and names what it is about."""
    assert len(str(error)) > 10
    for name, value in expected.items():
        if name in TOLD:
            assert str(value) in str(error)


def test_an_error_of_the_whole_configuration_names_no_key() -> None:
    """An empty field leaves no colon behind."""
    error = ConfigurationError("", "must be a JSON object")
    assert (str(error), error.field) == ("must be a JSON object", "")


def test_an_error_owns_its_attributes() -> None:
    """A caller that changes its variables afterwards changes no error."""
    names, variables = ["a"], {"a": 1}
    missing = MissingVariableError("{a} + {b}", "b", names)
    failed = FormulaEvaluationError("1 / {a}", variables, "division by zero")
    names.append("c")
    variables["c"] = 2
    assert missing.provided_variables == ("a",)
    assert failed.variables == {"a": 1}


# --- Messages -------------------------------------------------------------------------------------


def test_a_conflict_does_not_tell_the_key() -> None:
    """Keys can be an application's secrets, so only the attribute has the key."""
    error = IdempotencyConflictError(KEY)
    for text in (str(error), repr(error), f"{error}", str(error.args)):
        assert KEY not in text
    assert error.key == KEY


def test_a_failed_formula_does_not_tell_the_values() -> None:
    """The message has the formula and the reason. Only the attributes have the values."""
    error = FormulaEvaluationError("1 / {a}", {"a": 123456789}, "division by zero")
    missing = MissingVariableError("{a} + {b}", "b", ["token_of_a_customer"])
    for text in (str(error), repr(error), str(missing), repr(missing)):
        assert "123456789" not in text
        assert "token_of_a_customer" not in text


def test_a_text_shows_control_characters_and_does_not_send_them() -> None:
    """Names are quoted, so that none can forge a line in a log."""
    name = "a\nERROR forged\x1b[31m"
    for error in (
        UndefinedActionError(name),
        UndefinedTierError(name),
        UserNotFoundError(name),
        UserExistsError(name),
        InsufficientCreditsError(name, 1, 0),
        MembershipRequiredError(name, name, name),
        InvalidTierChangeError(name, name, name, "no"),
        TransactionNotFoundError(name),
        RefundExceedsChargeError(name, 0, 1),
        RevokeExceedsGrantError(name, 0, 1),
        AccountLimitError(name, "lots", 64),
        HoldNotFoundError(name),
        HoldClosedError(name, "released"),
        HoldExceededError(name, 0, 1),
        AccountDataError(name, "credits", "is below zero"),
        MissingVariableError(name, name, ()),
    ):
        assert "\n" not in str(error)
        assert "\x1b" not in str(error)


# --- Across processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *[
            lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))  # noqa: S301
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ],
    ],
)
@each_error
def test_an_error_crosses_processes_with_its_attributes_but_not_its_cause(
    again: Callable[[CreditError], CreditError],
    error: CreditError,
    code: str,
    expected: dict[str, Any],
) -> None:
    """A copied or pickled error keeps its text, code, attributes and labels."""
    try:
        raise error from AutoReconnect("a driver's error, perhaps with a socket in it")
    except CreditError as raised:
        copied = again(raised)
    assert type(copied) is type(error)
    assert copied is not error
    assert (str(copied), repr(copied), copied.args) == (str(error), repr(error), error.args)
    assert copied.code == code
    assert facts(copied) == expected
    assert copied.__cause__ is None
    assert copied.__traceback__ is None
    if isinstance(error, StorageError):
        assert isinstance(copied, StorageError)
        assert labels_of(copied) == labels_of(error)


# --- Errors of the database -----------------------------------------------------------------------

STORAGE_KINDS = [kind for kind in KINDS if issubclass(kind, StorageError)]


def test_errors_of_the_database_are_of_one_kind() -> None:
    """StorageError covers every failure that wrote nothing, and no refusal.

    An unknown outcome is not one: ``except StorageError: retry`` without a key would charge twice.
    """
    assert set(STORAGE_KINDS) == {
        StorageError,
        ReplicaSetRequiredError,
        LedgerBusyError,
        TransactionAbortedError,
        ClockSkewError,
        AccountDataError,
        ArchiveRunningError,
        ArchiveLostError,
        ArchiveCopyError,
        ArchiveManifestError,
        BackupRunningError,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_only_errors_of_the_database_are_the_drivers(kind: type[CreditError]) -> None:
    """An application that retries on PyMongoError never retries a refusal."""
    assert issubclass(kind, PyMongoError) is issubclass(kind, StorageError)


@pytest.mark.parametrize("labels", [[], LABELS[:1], LABELS[1:], LABELS])
def test_a_storage_error_keeps_labels(labels: list[str]) -> None:
    """``with_transaction`` reads the labels to decide whether to retry."""
    assert labels_of(StorageError("no answer", error_labels=labels)) == labels


def test_a_storage_error_has_no_label_of_its_own() -> None:
    """The driver retries only what its own error marked as worth a retry."""
    for error, _, _ in ERRORS:
        if isinstance(error, StorageError) and type(error) is not StorageError:
            assert labels_of(error) == []


@pytest.mark.parametrize(
    ("driver_error", "kind", "labels"),
    [
        (AutoReconnect("connection closed"), StorageError, []),
        (AutoReconnect("connection closed", {"errorLabels": LABELS}), StorageError, LABELS),
        (
            OperationFailure("x", 112, {"codeName": "WriteConflict", "errorLabels": [TRANSIENT]}),
            StorageError,
            [TRANSIENT],
        ),
        (OperationFailure("x", 20, {"codeName": "IllegalOperation"}), ReplicaSetRequiredError, []),
    ],
)
def test_a_driver_error_becomes_a_storage_error_with_its_labels(
    driver_error: PyMongoError, kind: type[StorageError], labels: list[str]
) -> None:
    """No driver error reaches a caller bare, and the labels that a retry needs are kept."""
    error = as_storage_error(driver_error)
    assert type(error) is kind
    assert labels_of(error) == labels


def test_the_servers_words_are_not_repeated() -> None:
    """The server's words can quote documents. Its code and the code's name are enough."""
    error = as_storage_error(
        OperationFailure(
            "E11000 dup key: { email: 'ann@example.com' }",
            121,
            {"codeName": "DocumentValidationFailure", "errInfo": {"email": "ann@example.com"}},
        )
    )
    assert "ann@example.com" not in f"{error} {error!r}"
    assert "DocumentValidationFailure" in str(error)
    assert "121" in str(error)

"""Every error a caller can meet, in one place, under one root.

Each has a stable ``code`` for programs (the Credit SDK's where it has one) and its facts as
attributes. Messages never contain idempotency keys, metadata, variables' values or passwords.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

from pymongo.errors import PyMongoError

__all__ = [
    "AccountDataError",
    "AccountLimitError",
    "ArchiveCopyError",
    "ArchiveLostError",
    "ArchiveManifestError",
    "ArchiveRunningError",
    "BackupError",
    "BackupRunningError",
    "ClockSkewError",
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "CreditError",
    "FormulaEvaluationError",
    "HoldClosedError",
    "HoldExceededError",
    "HoldNotFoundError",
    "IdempotencyConflictError",
    "IdempotencyKeyError",
    "InsufficientCreditsError",
    "InvalidRequestError",
    "InvalidTierChangeError",
    "JobTimeoutError",
    "LedgerBusyError",
    "LedgerImportError",
    "MembershipRequiredError",
    "MigrationError",
    "MissingIdempotencyKeyError",
    "MissingVariableError",
    "PriceRoundsToZeroWarning",
    "RefundExceedsChargeError",
    "ReplicaSetRequiredError",
    "RequestCompletedError",
    "RequestInProgressError",
    "RequestTooLargeError",
    "RevokeExceedsGrantError",
    "StorageError",
    "TransactionAbortedError",
    "TransactionNotFoundError",
    "UndefinedActionError",
    "UndefinedTierError",
    "UserExistsError",
    "UserNotFoundError",
]


_REPEAT_WITH_KEY: Final = (
    "repeat it with the same idempotency key, which settles it. Without a key, look into the "
    "user's history before repeating it"
)


class PriceRoundsToZeroWarning(UserWarning):
    """A price formula gives more than 0 credits that are rounded to 0 units for small values.

    Such uses are free. The message names the price, and the ``decimal_places`` that would do.
    """


class CreditError(Exception):
    """The root of all errors of this library."""

    code: ClassVar[str] = "CREDIT_ERROR"

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors take facts, not messages; without this, errors could not cross processes.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CreditError], args: tuple[Any, ...], facts: dict[str, Any]) -> CreditError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class InvalidRequestError(CreditError):
    """An argument is of the wrong type or out of its limits; nothing was written."""

    code = "INVALID_REQUEST"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ConfigurationError(CreditError):
    """The configuration is wrong; ``field`` is the path of the key, ``""`` if it is the whole."""

    code = "CONFIGURATION_ERROR"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class UndefinedActionError(CreditError):
    """The configuration has no price for the action."""

    code = "UNDEFINED_ACTION"

    def __init__(self, action: str) -> None:
        super().__init__(f"the configuration has no costs for the action {action!r}")
        self.action = action


class UndefinedTierError(CreditError):
    """The configuration has no such tier."""

    code = "UNDEFINED_TIER"

    def __init__(self, tier: str) -> None:
        super().__init__(f"the configuration has no tier {tier!r}")
        self.tier = tier


class UserNotFoundError(CreditError):
    """There is no such user."""

    code = "USER_NOT_FOUND"

    def __init__(self, user_id: str) -> None:
        super().__init__(f"there is no user {user_id!r}")
        self.user_id = user_id


class UserExistsError(CreditError):
    """The user has an account already."""

    code = "USER_EXISTS"

    def __init__(self, user_id: str) -> None:
        super().__init__(f"the user {user_id!r} exists already")
        self.user_id = user_id


class InsufficientCreditsError(CreditError):
    """The user has fewer units available than the cost; nothing was charged.

    ``available`` is the balance without what is held, with the overdraft.
    """

    code = "INSUFFICIENT_CREDITS"

    def __init__(self, user_id: str, required: int, available: int) -> None:
        super().__init__(f"user {user_id!r} has {available} of the {required} units required")
        self.user_id = user_id
        self.required = required
        self.available = available


class MembershipRequiredError(CreditError):
    """The action needs a tier that the user does not have, or no longer has.

    ``current`` is the tier in force: None without one and when it has expired.
    """

    code = "MEMBERSHIP_REQUIRED"

    def __init__(self, user_id: str, required: str | None, current: str | None) -> None:
        super().__init__(
            f"user {user_id!r} needs the tier {required!r} or a higher one and has {current!r}"
        )
        self.user_id = user_id
        self.required = required
        self.current = current


class InvalidTierChangeError(CreditError):
    """The tier change is not one that the called method makes."""

    code = "INVALID_TIER_CHANGE"

    def __init__(
        self, user_id: str, current_tier: str | None, target_tier: str | None, reason: str
    ) -> None:
        super().__init__(
            f"user {user_id!r} cannot go from {current_tier!r} to {target_tier!r}: {reason}"
        )
        self.user_id = user_id
        self.current_tier = current_tier
        self.target_tier = target_tier
        self.reason = reason


class MissingVariableError(CreditError):
    """The price formula names a variable that the call did not give."""

    code = "MISSING_VARIABLE"

    def __init__(
        self, formula: str, missing_variable: str, provided_variables: Iterable[str]
    ) -> None:
        super().__init__(f"the formula {formula!r} needs the variable {missing_variable!r}")
        self.formula = formula
        self.missing_variable = missing_variable
        self.provided_variables: tuple[str, ...] = tuple(provided_variables)


class FormulaEvaluationError(CreditError):
    """The price formula has no usable value for these variables (say, a division by zero)."""

    code = "FORMULA_EVALUATION_ERROR"

    def __init__(self, formula: str, variables: Mapping[str, Any], cause: str) -> None:
        super().__init__(f"the formula {formula!r} has no value: {cause}")
        self.formula = formula
        self.variables: dict[str, Any] = dict(variables)
        self.cause = cause


class IdempotencyConflictError(CreditError):
    """The idempotency key belongs to another request (operation, user or effect differ)."""

    code = "IDEMPOTENCY_KEY_CONFLICT"

    def __init__(self, key: str) -> None:
        super().__init__("the idempotency key was used for another request")
        self.key = key


class TransactionNotFoundError(CreditError):
    """The user has no charge, or no grant, with this transaction id."""

    code = "TRANSACTION_NOT_FOUND"

    def __init__(self, transaction_id: str, kind: str = "charge") -> None:
        super().__init__(f"there is no {kind} {transaction_id!r} of this user")
        self.transaction_id = transaction_id


class RefundExceedsChargeError(CreditError):
    """More would be refunded than the charge still holds (both in smallest units)."""

    code = "REFUND_EXCEEDS_CHARGE"

    def __init__(self, transaction_id: str, refundable: int, requested: int) -> None:
        super().__init__(
            f"of charge {transaction_id!r} {refundable} units are refundable, not {requested}"
        )
        self.transaction_id = transaction_id
        self.refundable = refundable
        self.requested = requested


class RevokeExceedsGrantError(CreditError):
    """More would be revoked than is left of the grant (both in smallest units)."""

    code = "REVOKE_EXCEEDS_GRANT"

    def __init__(self, transaction_id: str, revocable: int, requested: int) -> None:
        super().__init__(
            f"of grant {transaction_id!r} {revocable} units are revocable, not {requested}"
            if revocable
            else f"grant {transaction_id!r} is revoked already, and nothing is left of it"
        )
        self.transaction_id = transaction_id
        self.revocable = revocable
        self.requested = requested


class AccountLimitError(CreditError):
    """The account has as many lots, or active holds (``what``), as an account can have."""

    code = "ACCOUNT_LIMIT"

    def __init__(self, user_id: str, what: str, limit: int) -> None:
        super().__init__(f"user {user_id!r} has {limit} {what}, and cannot have more")
        self.user_id = user_id
        self.what = what
        self.limit = limit


class HoldNotFoundError(CreditError):
    """There is no such hold."""

    code = "HOLD_NOT_FOUND"

    def __init__(self, hold_id: str) -> None:
        super().__init__(f"there is no hold {hold_id!r}")
        self.hold_id = hold_id


class HoldClosedError(CreditError):
    """The hold is over: ``status`` is "captured", "released" or "expired"."""

    code = "HOLD_CLOSED"

    def __init__(self, hold_id: str, status: str) -> None:
        super().__init__(f"the hold {hold_id!r} is over: it is {status}")
        self.hold_id = hold_id
        self.status = status


class HoldExceededError(CreditError):
    """A capture asks for more than the hold has (both in smallest units). The hold stays active."""

    code = "HOLD_EXCEEDED"

    def __init__(self, hold_id: str, held: int, requested: int) -> None:
        super().__init__(f"the hold {hold_id!r} is for {held} units, not {requested}")
        self.hold_id = hold_id
        self.held = held
        self.requested = requested


class CommitOutcomeUnknownError(CreditError):
    """The operation may or may not have happened: the commit was sent, and no answer came.

    With an idempotency key, repeat the call with the same key: it returns the result of the first
    call, or happens now. Without a key, look into the user's history before repeating it: a second
    call would be a second charge. So this is no StorageError and no PyMongoError, and code that
    repeats a call after those does not repeat it after this. ``__cause__`` is the driver's error.
    """

    code = "COMMIT_OUTCOME_UNKNOWN"

    def __init__(self, remedy: str = _REPEAT_WITH_KEY) -> None:
        super().__init__(f"the operation may or may not have happened: {remedy}")


class StorageError(CreditError, PyMongoError):
    """The database could not do it, and nothing was written. ``__cause__`` is the driver's error.

    The call can be repeated, with an idempotency key or without one. (Where something may have been
    written, the error is CommitOutcomeUnknownError, which is no StorageError.)

    ``delete_user``, ``ensure_indexes`` and the archive work in many steps. The step that failed
    wrote nothing; the steps before it stay done, and another call goes on from there.

    It is also a ``PyMongoError`` that keeps the driver's error labels: inside the application's own
    ``with_transaction``, the driver must still see which failures are worth another try.
    """

    code = "STORAGE_ERROR"

    def __init__(self, message: str, *, error_labels: Iterable[str] = ()) -> None:
        super().__init__(message, error_labels)


class ReplicaSetRequiredError(StorageError):
    """The server is a standalone ``mongod``, which has no transactions."""

    code = "REPLICA_SET_REQUIRED"

    def __init__(self) -> None:
        super().__init__(
            "the server is a standalone mongod, and transactions need a replica set. Start it with "
            "--replSet rs0, run rs.initiate() once in mongosh, and connect with ?replicaSet=rs0; "
            "one member is enough. For development: python -m credit_mongo.local"
        )


class LedgerBusyError(StorageError):
    """The queue is full or the ledger is closed; the request was not accepted. Try again later.

    With the configuration's ``on_busy="wait"``, calls wait for room and only a closed ledger
    raises it.
    """

    code = "LEDGER_BUSY"


class TransactionAbortedError(StorageError):
    """A call with ``session=`` ended without an outcome, so that transaction cannot commit.

    The application's commit raises it, and so does any later call in the same transaction. The
    ``__cause__`` is how the earlier call ended.
    """

    code = "TRANSACTION_ABORTED"

    def __init__(self, *, error_labels: Iterable[str] = ()) -> None:
        super().__init__(
            "an earlier call of the ledger in this transaction failed or was cancelled, so the "
            "transaction was aborted and nothing of it was written: repeat all of it in another "
            "transaction",
            error_labels=error_labels,
        )


class ClockSkewError(StorageError):
    """This process's clock, or the server's, is wrong; nothing was written.

    ``skew_seconds`` is how far this process's clock is ahead of the server's, negative if it is
    behind; ``allowed_seconds`` is the configuration's ``max_clock_skew_seconds``.
    """

    code = "CLOCK_SKEW"

    def __init__(self, skew_seconds: float, allowed_seconds: float) -> None:
        direction = "ahead of" if skew_seconds > 0 else "behind"
        super().__init__(
            f"this process's clock is {abs(skew_seconds):.1f} s {direction} the server's, and "
            f"max_clock_skew_seconds allows {allowed_seconds:g} s; nothing was written. Have both "
            "machines set their clocks by NTP"
        )
        self.skew_seconds = skew_seconds
        self.allowed_seconds = allowed_seconds


class AccountDataError(StorageError):
    """A stored document is not what this library writes; it is left as it is.

    ``row_id`` is the ``_id`` of the transaction or audit row, None if it is the user's document.
    """

    code = "ACCOUNT_DATA"

    def __init__(self, user_id: str, field: str, reason: str, *, row_id: str | None = None) -> None:
        row = "" if row_id is None else f" of the row {row_id!r}"
        super().__init__(f"user {user_id!r}: the stored {field}{row} {reason}")
        self.user_id = user_id
        self.field = field
        self.reason = reason
        self.row_id = row_id


class JobTimeoutError(CreditError):
    """A step of ``delete_user``, or of the archive, did not end in time.

    The steps before it are done, and this one may be. Call it again: it goes on from there.
    """

    code = "JOB_TIMEOUT"


class ArchiveRunningError(StorageError):
    """Another archive run is at work, or was until ``alive_until`` (UTC); nothing was written."""

    code = "ARCHIVE_RUNNING"

    def __init__(self, alive_until: datetime) -> None:
        until = alive_until.replace(tzinfo=None).isoformat(timespec="seconds")
        super().__init__(
            f"another archive run is at work. Its lease lasts until {until}Z, and it renews the "
            "lease while it runs. If that run has crashed, start this one again after that time"
        )
        self.alive_until = alive_until


class ArchiveLostError(StorageError):
    """Another archive run took over, because this one did not renew its lease in time."""

    code = "ARCHIVE_LOST"

    def __init__(self) -> None:
        super().__init__(
            "another archive run took over, because this one did not renew its lease in time. The "
            "rows that this run has archived stay archived"
        )


class ArchiveCopyError(StorageError):
    """A copy differs from the rows that were copied. No row of the batch was deleted."""

    code = "ARCHIVE_COPY"

    def __init__(self, place: str) -> None:
        super().__init__(
            f"the rows read back from {place} differ from the rows that were written there. "
            "They were not deleted from the database"
        )


class ArchiveManifestError(StorageError):
    """A manifest holds a value that no archive run has written; no row was moved or deleted.

    ``manifest_id`` is its ``_id``, ``field`` the path of the value.
    """

    code = "ARCHIVE_MANIFEST"

    def __init__(self, manifest_id: object, field: str, value: object) -> None:
        super().__init__(
            f"the archive's manifest {manifest_id} has a wrong {field}: {value!r:.200}. "
            "Restore the value that was changed, then run this again"
        )
        self.manifest_id: str = str(manifest_id)
        self.field = field


class BackupError(CreditError):
    """A backup can't be made, read or restored. ``backup`` is its name, "" if it's not one's.

    ``reason`` also says what to do.
    """

    code = "BACKUP"

    def __init__(self, backup: str, reason: str) -> None:
        super().__init__(f"{backup}: {reason}" if backup else reason)
        self.backup = backup
        self.reason = reason


class BackupRunningError(StorageError):
    """Another backup is being made, or was until ``alive_until`` (UTC); nothing was written."""

    code = "BACKUP_RUNNING"

    def __init__(self, alive_until: datetime) -> None:
        until = alive_until.replace(tzinfo=None).isoformat(timespec="seconds")
        super().__init__(
            f"another backup of this database is being made. Its lease lasts until {until}Z, and "
            "it renews the lease while it runs. If that run has crashed, start this one again "
            "after that time"
        )
        self.alive_until = alive_until


class MigrationError(CreditError):
    """A migration can't be applied or rolled back. ``migration`` is its name, "" if it's not one's.

    ``reason`` also says what was done of it. Migrations before it stay done.
    """

    code = "MIGRATION"

    def __init__(self, migration: str, reason: str) -> None:
        super().__init__(f"{migration}: {reason}" if migration else reason)
        self.migration = migration
        self.reason = reason


class LedgerImportError(CreditError):
    """Another system's data can't be imported. ``reason`` says why, and never shows a password.

    What was imported before stays imported, and the next run goes on from there.
    """

    code = "IMPORT"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IdempotencyKeyError(CreditError):
    """The ``Idempotency-Key`` header is malformed, or was sent twice; nothing was done."""

    code = "INVALID_IDEMPOTENCY_KEY"

    def __init__(self) -> None:
        super().__init__(
            "Idempotency-Key must be sent once: a quoted string, or visible ASCII characters "
            "without quotes, of 1 to 255 characters"
        )


class MissingIdempotencyKeyError(CreditError):
    """A request without the ``Idempotency-Key`` header that it needs; nothing was done."""

    code = "IDEMPOTENCY_KEY_MISSING"

    def __init__(self) -> None:
        super().__init__(
            "this request needs an Idempotency-Key header, with a new key for each new request"
        )


class RequestInProgressError(CreditError):
    """A request with this key is still in progress. Retry it later with the same key."""

    code = "REQUEST_IN_PROGRESS"

    def __init__(self) -> None:
        super().__init__("a request with this idempotency key is in progress: retry it later")


class RequestCompletedError(CreditError):
    """The request was completed before, and paid by ``transaction_id``. It is not done again."""

    code = "REQUEST_COMPLETED"

    def __init__(self, transaction_id: str) -> None:
        super().__init__(
            "the request with this idempotency key was completed before, and paid by the "
            f"transaction {transaction_id!r}"
        )
        self.transaction_id = transaction_id


class RequestTooLargeError(CreditError):
    """The request's body has more than ``largest`` bytes; nothing was charged."""

    code = "REQUEST_TOO_LARGE"

    def __init__(self, largest: int) -> None:
        super().__init__(f"the body of this request may have at most {largest} bytes")
        self.largest = largest

"""The findings of a verification: codes for programs, and sentences for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from credit_mongo.storage.rows import Raw

__all__ = ["Code", "Finding", "Verification"]

Code: TypeAlias = Literal[
    "balance-differs",
    "balance-unusable",
    "last-balance-differs",
    "seq-differs",
    "seq-unusable",
    "history-missing",
    "user-missing",
    "user-unusable",
    "transaction-unusable",
    "transaction-lost",
    "transaction-doubled",
    "amount-changed",
    "chain-broken",
    "below-zero",
    "time-goes-back",
    "dated-in-future",
    "changed-in-future",
    "key-in-future",
    "history-changed",
    "audit-missing",
    "audit-differs",
    "audit-orphaned",
    "key-used-twice",
    "key-missing",
    "key-differs",
    "key-orphaned",
    "refund-exceeds",
    "refund-orphaned",
    "refund-foreign",
    "border-unusable",
    "border-differs",
    "border-passed",
    "border-orphaned",
    "rows-deleted",
    "legs-unusable",
    "legs-differ",
    "extras-unusable",
    "lot-differs",
    "lot-changed",
    "lot-overdrawn",
    "lot-used-late",
    "expiry-missing",
    "expiry-doubled",
    "pins-exceed",
    "hold-missing",
    "hold-orphaned",
    "hold-differs",
    "hold-unusable",
    "hold-overdue",
    "capture-orphaned",
    "captured-differs",
]

_WORDS: Final[dict[Code, str]] = {
    "balance-differs": "the balance is {found}, but the transactions sum up to {expected}",
    "balance-unusable": "the stored balance is below zero or not a whole number",
    "last-balance-differs": "the balance is {found}, but the last transaction ends with {expected}",
    "seq-differs": "the account counts {found} transactions, but the last one has seq {expected}",
    "seq-unusable": "the stored seq of the account is below zero or not a whole number",
    "history-missing": "the account has a balance of {found} but no transactions",
    "user-missing": "{found} transactions belong to a user without an account",
    "user-unusable": "{found} documents have a user id of the wrong type",
    "transaction-unusable": "the transaction has a missing field, or one of the wrong type",
    "transaction-lost": "{expected} transactions are missing, beginning with this seq",
    "transaction-doubled": "another transaction has the same seq",
    "amount-changed": "its amount is {found}, but its balances differ by {expected}",
    "chain-broken": "it begins with a balance of {found}, but the one before ends with {expected}",
    "below-zero": "the transaction ends with a balance of {found}, below the user's limit",
    "time-goes-back": "the transaction is dated before the previous one",
    "dated-in-future": "the transaction is dated in the future (others may be too): a clock was "
    "wrong",
    "changed-in-future": "the account was last changed in the future ({found} ms since 1970)",
    "key-in-future": "idempotency records of this user are dated in the future and live too long",
    "history-changed": (
        "the correction was made for amounts that summed up to {found}, but now it is {expected}"
    ),
    "audit-missing": "the transaction has no audit row",
    "audit-differs": "the transaction's audit row differs from it",
    "audit-orphaned": "an audit row of a success has no transaction of this user",
    "key-used-twice": "an earlier transaction had the same idempotency key, not yet expired",
    "key-missing": "the transaction's idempotency key should still be remembered but is not",
    "key-differs": "the transaction's idempotency record differs from it",
    "key-orphaned": "an idempotency record has no transaction of this user",
    "refund-exceeds": "the charge took {expected}, but {found} were refunded",
    "refund-orphaned": "the transaction refunds a charge that does not exist",
    "refund-foreign": "the transaction refunds a charge of another user",
    "border-unusable": "the border of the user's archive cannot be read",
    "border-differs": "the archive's border says {found}, but the rows before it add up to "
    "{expected}",
    "border-passed": "the transaction is in the archive, but beyond the archive's border",
    "border-orphaned": "the archive has a border for a user without an account",
    "rows-deleted": "the TTL index {index} makes the server delete rows: drop it",
    "legs-unusable": "the legs of the transaction cannot be read",
    "legs-differ": "the legs of the transaction add up to {found}, but its amount is {expected}",
    "extras-unusable": "the stored lots, holds and overdraft of the account cannot be read",
    "lot-differs": "the lot has {found}, but by its transactions it should have {expected}",
    "lot-changed": "the end, priority or source of the lot differs from that in its transactions",
    "lot-overdrawn": "the transaction takes more from a lot than there was",
    "lot-used-late": "the transaction takes credits from a lot after the lot's end",
    "expiry-missing": "the lot has ended, but the account still has {found} of it",
    "expiry-doubled": "the transaction ends credits of a lot that had ended before",
    "pins-exceed": "holds keep {found} of the lot, which has only {expected}",
    "hold-missing": "the account has an active hold without an active document",
    "hold-orphaned": "the document of a hold is active, but the account does not have this hold",
    "hold-differs": (
        "the account keeps {found} for the hold, by whose document it should keep {expected} (or "
        "both differ in another field)"
    ),
    "hold-unusable": "the document of an active hold has a missing field, or one of the wrong type",
    "hold-overdue": "the hold should have ended before the account was last changed",
    "capture-orphaned": "the transaction captures a hold that this user does not have",
    "captured-differs": "the hold says that {found} were captured, but its transactions took "
    "{expected}",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Numbers are amounts in smallest units, or counts."""

    user_id: str
    code: Code
    seq: int | None = None
    """The seq of the wrong transaction, or of the first missing one."""
    transaction_id: str | None = None
    """The transaction, lot or hold that is wrong. A lot has the id of the grant that opened it."""
    expected: int | None = None
    found: int | None = None
    index: str | None = None
    """The index that is wrong, as ``collection.name``."""

    @property
    def detail(self) -> str:
        """A sentence with the numbers, without metadata and idempotency keys."""
        return _WORDS[self.code].format(expected=self.expected, found=self.found, index=self.index)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {**asdict(self), "detail": self.detail}

    def as_record(self) -> Raw:
        """Return the form in which a correction stores what it settles."""
        facts = asdict(self)
        del facts["user_id"]
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified, and the findings."""

    users: int
    """How many accounts were verified."""
    transactions: int
    users_off: int
    """How many users have findings."""
    findings_total: int
    findings: tuple[Finding, ...]
    """The first findings. ``findings_total`` counts all."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {
            "users": self.users,
            "transactions": self.transactions,
            "users_off": self.users_off,
            "findings_total": self.findings_total,
            "findings": [finding.to_dict() for finding in self.findings],
        }

"""What a verification finds, in codes for programs and in words for people."""

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
]

_WORDS: Final[dict[Code, str]] = {
    "balance-differs": "the balance is {found}, but the transactions sum up to {expected}",
    "balance-unusable": "the stored balance is below zero or no whole number",
    "last-balance-differs": "the balance is {found}, but the last transaction ends with {expected}",
    "seq-differs": "the account counts {found} transactions, but the last one has seq {expected}",
    "seq-unusable": "the stored seq of the account is below zero or no whole number",
    "history-missing": "the account has a balance of {found} and no transactions",
    "user-missing": "{found} transactions are of no user",
    "user-unusable": "{found} documents have a user id of another type than users have",
    "transaction-unusable": "it has a field that is missing or of the wrong type",
    "transaction-lost": "{expected} transactions from this seq on are missing",
    "transaction-doubled": "it is a second one with this seq",
    "amount-changed": "its amount is {found}, but its balances differ by {expected}",
    "chain-broken": "it begins with a balance of {found}, but what is before ends with {expected}",
    "below-zero": "it ends with a balance of {found}",
    "time-goes-back": "it lies before the one with the seq before",
    "dated-in-future": "it is dated in the future, and maybe others are: a clock was wrong",
    "changed-in-future": "the account was last changed in the future ({found} ms since 1970)",
    "key-in-future": "idempotency records of this user are dated in the future, and live too long",
    "history-changed": (
        "this correction found amounts that summed up to {found}, but now they are {expected}"
    ),
    "audit-missing": "it has no audit row",
    "audit-differs": "its audit row says something else",
    "audit-orphaned": "an audit row of a success has no transaction of this user",
    "key-used-twice": "its idempotency key had made another transaction and was still remembered",
    "key-missing": "its idempotency key should still be remembered and is not",
    "key-differs": "its idempotency record says something else",
    "key-orphaned": "an idempotency record has no transaction of this user",
    "refund-exceeds": "it is a charge of {expected}, and {found} of it were refunded",
    "refund-orphaned": "it refunds a charge that is not there",
    "refund-foreign": "it refunds a charge of another user",
    "border-unusable": "the border of the user's archive can't be read",
    "border-differs": "the archive's border says {found}, but what is before it sums to {expected}",
    "border-passed": "it is in the archive, but beyond its border",
    "border-orphaned": "the archive has a border for a user who is not there",
    "rows-deleted": "the TTL index {index} has the server delete rows: drop it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Numbers are whole numbers of the smallest unit, or counts."""

    user_id: str
    code: Code
    seq: int | None = None
    """Of the transaction that is wrong (or of the first that is missing), if it has one."""
    transaction_id: str | None = None
    expected: int | None = None
    found: int | None = None
    index: str | None = None
    """The index that is wrong, as ``collection.name``."""

    @property
    def detail(self) -> str:
        """In words, with the numbers; without metadata and idempotency keys."""
        return _WORDS[self.code].format(expected=self.expected, found=self.found, index=self.index)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "detail": self.detail}

    def as_record(self) -> Raw:
        """The form in which a correction keeps what it settles."""
        facts = asdict(self)
        del facts["user_id"]
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what is wrong with it."""

    users: int
    """How many accounts were looked at."""
    transactions: int
    users_off: int
    """How many users have findings."""
    findings_total: int
    findings: tuple[Finding, ...]
    """The first ones; ``findings_total`` counts all."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "users": self.users,
            "transactions": self.transactions,
            "users_off": self.users_off,
            "findings_total": self.findings_total,
            "findings": [finding.to_dict() for finding in self.findings],
        }

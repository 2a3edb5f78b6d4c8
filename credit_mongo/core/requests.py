"""What callers ask for: checked when built, then never changed.

Every limit of an argument stands here. A request that exists is well-formed, so nothing after this
point checks types again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from fractions import Fraction
from typing import Any, ClassVar, Final, TypeVar

from credit_mongo.core.variables import Variables
from credit_mongo.errors import InvalidRequestError

_T = TypeVar("_T")

__all__ = [
    "KEEP",
    "LARGEST_AMOUNT",
    "LARGEST_BALANCE",
    "ChargeRequest",
    "CorrectionRequest",
    "CreateUserRequest",
    "DowngradeTierRequest",
    "GrantRequest",
    "Keep",
    "RefundRequest",
    "RenewTierRequest",
    "Request",
    "UpgradeTierRequest",
    "check_amount",
    "check_flag",
    "check_identifier",
    "check_moment",
    "check_optional",
    "to_milliseconds",
]

# The largest whole number that JSON readers in other languages hold exactly.
LARGEST_AMOUNT: Final = 2**53 - 1
# BSON's int64.
LARGEST_BALANCE: Final = 2**63 - 1
LONGEST_IDENTIFIER: Final = 255
# C0 and C1 control characters, and lone surrogates, which UTF-8 cannot carry.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Keep(Enum):
    """The type of ``KEEP``."""

    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""Leave it as it is (None means: none)."""


def check_identifier(field: str, value: object) -> str:
    """A user id, action, tier or key: 1 to 255 characters, none of them a control character.

    Anything but a string is refused: a dict would reach the database as a query operator.
    """
    if not isinstance(value, str):
        raise InvalidRequestError(field, f"must be a str, not {type(value).__name__}")
    if not 0 < len(value) <= LONGEST_IDENTIFIER:
        raise InvalidRequestError(
            field, f"must have 1 to {LONGEST_IDENTIFIER} characters, not {len(value)}"
        )
    if _FORBIDDEN.search(value):
        raise InvalidRequestError(field, "must not contain control characters or lone surrogates")
    return value if type(value) is str else str.__str__(value)


def check_amount(field: str, value: object, *, least: int = 1) -> int:
    """Credits in smallest units: an int from ``least`` to 2**53 - 1; no bool, float or string."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(field, f"must be an int, not {type(value).__name__}")
    amount = int.__int__(value)  # what it holds, whatever a subclass says
    if not least <= amount <= LARGEST_AMOUNT:
        raise InvalidRequestError(field, f"must be from {least} to {LARGEST_AMOUNT}")
    return amount


def check_flag(field: str, value: object) -> bool:
    """A bool, and nothing that merely looks like one."""
    if not isinstance(value, bool):
        raise InvalidRequestError(field, f"must be a bool, not {type(value).__name__}")
    return value


def check_moment(field: str, value: object) -> datetime:
    """A datetime with a time zone, in UTC and whole milliseconds (what BSON keeps)."""
    if not isinstance(value, datetime):
        raise InvalidRequestError(field, f"must be a datetime, not {type(value).__name__}")
    try:
        if value.utcoffset() is not None:
            return to_milliseconds(value)
    except Exception:
        raise InvalidRequestError(field, "is out of range in UTC") from None
    raise InvalidRequestError(field, "must have a time zone (tzinfo)")


def check_optional(check: Callable[[str, object], _T], field: str, value: object) -> _T | None:
    """None, or what the check makes of the value."""
    return None if value is None else check(field, value)


def to_milliseconds(moment: datetime) -> datetime:
    """The same moment in UTC, cut to what the database keeps."""
    moment = moment.astimezone(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _fingerprint(*effect: object) -> str:
    # repr of strings, numbers and None is unambiguous. 160 bits: collisions are out of reach.
    return hashlib.blake2b(repr(effect).encode(), digest_size=20).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What all operations share.

    ``transaction_id`` is made before the first try, so that a try whose outcome is unknown can be
    looked for. ``metadata`` is the caller's, copied when the call was made.
    """

    operation: ClassVar[str] = ""

    user_id: str
    transaction_id: str
    # Not shown: reprs land in logs.
    key: str | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def action(self) -> str:
        """What the records call it; a tier change or a creation is its own action."""
        return self.operation

    @property
    def fingerprint(self) -> str:
        """The same for requests with the same effect, whatever their metadata."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateUserRequest(Request):
    """Open an account."""

    operation: ClassVar[str] = "create_user"

    credits: int
    membership_tier: str | None
    membership_expires_at: datetime | None

    @property
    def fingerprint(self) -> str:
        return _fingerprint(
            self.operation,
            self.user_id,
            self.credits,
            self.membership_tier,
            _text(self.membership_expires_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActionRequest(Request):
    """An operation whose action the caller names."""

    action_name: str

    @property
    def action(self) -> str:
        return self.action_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest(_ActionRequest):
    """Take what the action costs, or ``amount``."""

    operation: ClassVar[str] = "charge"

    amount: int | None
    variables: Variables | None

    @property
    def fingerprint(self) -> str:
        # All numbers, used by the price or not: a repetition must match its first after the prices
        # have changed as well.
        numbers = None
        if self.variables is not None:
            given = self.variables.items()
            numbers = sorted((name, str(n)) for name, n in given if isinstance(n, Fraction))
        return _fingerprint(
            self.operation,
            self.user_id,
            self.action,
            self.amount,
            numbers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRequest(_ActionRequest):
    """Give back, freely or for a charge."""

    operation: ClassVar[str] = "refund"

    amount: int
    charge_id: str | None

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.operation, self.user_id, self.action, self.amount, self.charge_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest(_ActionRequest):
    """Give."""

    operation: ClassVar[str] = "grant"

    amount: int

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.operation, self.user_id, self.action, self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeTierRequest(Request):
    """Go to a higher tier."""

    operation: ClassVar[str] = "upgrade_tier"

    target_tier: str
    membership_expires_at: datetime | Keep | None

    @property
    def fingerprint(self) -> str:
        return _fingerprint(
            self.operation, self.user_id, self.target_tier, _text(self.membership_expires_at)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DowngradeTierRequest(Request):
    """Go to a lower tier."""

    operation: ClassVar[str] = "downgrade_tier"

    target_tier: str
    clear_expiration: bool

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.operation, self.user_id, self.target_tier, self.clear_expiration)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewTierRequest(Request):
    """Stay in the tier for longer."""

    operation: ClassVar[str] = "renew_tier"

    membership_expires_at: datetime | None
    refill: bool

    @property
    def fingerprint(self) -> str:
        return _fingerprint(
            self.operation, self.user_id, _text(self.membership_expires_at), self.refill
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionRequest(Request):
    """Settle, by a record, what was found to be wrong with an account's history.

    It never changes the balance: the books then sum up to what the account has. ``credits`` and
    ``seq`` are the account's as verified, ``total`` the sum of its transactions' amounts,
    ``highest_seq`` the highest of any. ``settles`` are the findings.
    """

    operation: ClassVar[str] = "correction"

    credits: int
    seq: int
    total: int
    highest_seq: int
    operator: str
    reason: str
    settles: tuple[Mapping[str, Any], ...]

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.operation, self.user_id, self.credits, self.seq, self.total)


def _text(moment: datetime | Keep | None) -> str | None:
    if moment is None:
        return None
    return repr(moment) if isinstance(moment, Keep) else moment.isoformat()

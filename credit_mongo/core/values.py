"""The values that everything else is made of: amounts, identifiers, moments, accounts.

Every limit of an argument stands here. What was checked is well-formed, so nothing after it checks
types again. Accounts and charges are named tuples: as frozen as a frozen dataclass, and made in a
third of the time, half a dozen times a charge.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from enum import Enum
from typing import Final, NamedTuple, TypeVar

from credit_mongo.errors import InvalidRequestError

__all__ = [
    "KEEP",
    "LARGEST_AMOUNT",
    "LARGEST_BALANCE",
    "Account",
    "Keep",
    "RefundableCharge",
    "Unopened",
    "check_amount",
    "check_flag",
    "check_identifier",
    "check_moment",
    "check_optional",
    "moment_text",
    "refuse_overflow",
    "to_milliseconds",
]

_T = TypeVar("_T")

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


def moment_text(moment: datetime | Keep | None) -> str | None:
    """A moment as it stands in fingerprints: the same for the same moment."""
    if moment is None:
        return None
    return repr(moment) if isinstance(moment, Keep) else moment.isoformat()


class Account(NamedTuple):
    """One user's credits and membership, as of its ``seq``-th transaction."""

    user_id: str
    credits: int
    seq: int
    membership_tier: str | None
    membership_expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Unopened(NamedTuple):
    """What a document of the application's has that is no account yet: no credits, no history."""

    membership_tier: str | None
    membership_expires_at: datetime | None
    created_at: datetime | None


class RefundableCharge(NamedTuple):
    """A charge, with what was taken by it and given back for it so far (smallest units)."""

    transaction_id: str
    user_id: str
    charged: int
    refunded: int

    @property
    def refundable(self) -> int:
        """What it still holds."""
        return self.charged - self.refunded


def refuse_overflow(account: Account, amount: int) -> None:
    """Raise InvalidRequestError if adding the amount would exceed what can be stored."""
    if amount > LARGEST_BALANCE - account.credits:
        raise InvalidRequestError("amount", f"the balance would exceed {LARGEST_BALANCE}")

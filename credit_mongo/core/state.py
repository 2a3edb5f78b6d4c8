"""What a batch was loaded with, and what its decisions have made of that so far."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from credit_mongo.core.values import Account, RefundableCharge, Unopened
from credit_mongo.errors import AccountDataError, TransactionNotFoundError, UserNotFoundError

__all__ = ["ChargeRefunded", "Loaded", "Remembered", "State"]

_MILLISECOND: Final = timedelta(milliseconds=1)
# How far a clock may have been ahead whose rows an account that is opened anew has to follow.
_MOST_AHEAD: Final = timedelta(hours=1)
_DATED_AHEAD: Final = (
    "is of an erased account and dated too far ahead: complete the erasure with "
    "delete_user before you open the account anew"
)


class Remembered(NamedTuple):
    """What an idempotency key did, for as long as it is remembered.

    ``result`` is None if other software used the key; then no request has the ``fingerprint``.
    """

    fingerprint: str
    result: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the database holds of a batch's users, charges and keys."""

    accounts: Mapping[str, Account]
    unreadable: Mapping[str, AccountDataError]
    """Users whose document is not what the ledger writes, with what is wrong."""
    charges: Mapping[str, RefundableCharge | AccountDataError]
    """What cannot be read of a charge stands in its place."""
    remembered: Mapping[str, Remembered]
    forgotten_keys: frozenset[str]
    """Keys that are free, though their records are still there."""
    unopened: Mapping[str, Unopened] = field(default_factory=dict)
    """Of the unreadable users, those on whose document an account can be opened."""
    erased_until: Mapping[str, datetime] = field(default_factory=dict)
    """For users whose erasure is under way: the last moment of the account that is erased."""


class State:
    """What a request sees: the state that the requests before it in the batch left."""

    __slots__ = ("_charges", "_erased_until", "_unreadable", "accounts", "remembered", "unopened")

    def __init__(self, loaded: Loaded) -> None:
        self._unreadable = loaded.unreadable
        self._erased_until = loaded.erased_until
        self.accounts: dict[str, Account] = dict(loaded.accounts)
        self._charges: dict[str, RefundableCharge | AccountDataError] = dict(loaded.charges)
        self.remembered: dict[str, Remembered] = dict(loaded.remembered)
        self.unopened: Mapping[str, Unopened] = loaded.unopened

    def moment_to_open(
        self, user_id: str, now: datetime, max_lead: timedelta | None = None
    ) -> datetime:
        """When an account of the user can begin: now, or after one whose erasure is under way.

        No further ahead than what happens to the account next will follow (``Policy.max_lead``).
        Raises AccountDataError if that one is dated too far ahead.
        """
        until = self._erased_until.get(user_id)
        if until is None:
            return now
        if until - now >= min(_MOST_AHEAD, max_lead or _MOST_AHEAD):
            raise AccountDataError(user_id, "history", _DATED_AHEAD)
        return max(now, until + _MILLISECOND)

    def account(self, user_id: str) -> Account:
        """A user's account. Raises UserNotFoundError and AccountDataError."""
        account = self.accounts.get(user_id)
        if account is None:
            self.check_readable(user_id)
            raise UserNotFoundError(user_id)
        return account

    def check_readable(self, user_id: str) -> None:
        """Raise AccountDataError for a user whose document is not what the ledger writes."""
        error = self._unreadable.get(user_id)
        if error is not None:
            # A copy: an error that is raised takes up the traceback of its raising.
            raise copy(error)

    def charge(self, charge_id: str, user_id: str) -> RefundableCharge:
        """A charge of the user's. Raises TransactionNotFoundError and AccountDataError."""
        charge = self._charges.get(charge_id)
        # Somebody else's charge is nobody's business, readable or not.
        if charge is None or charge.user_id != user_id:
            raise TransactionNotFoundError(charge_id)
        if isinstance(charge, AccountDataError):
            raise copy(charge)
        return charge

    def replace_charge(self, charge: RefundableCharge) -> None:
        """Let the requests that follow see the charge like this."""
        self._charges[charge.transaction_id] = charge


class ChargeRefunded(NamedTuple):
    """More of a charge was refunded: ``amount`` units."""

    charge: RefundableCharge
    amount: int

    def apply(self, state: State) -> None:
        """Leave less to refund for the requests that follow."""
        refunded = self.charge.refunded + self.amount
        state.replace_charge(self.charge._replace(refunded=refunded))

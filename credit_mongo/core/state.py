"""The state of a batch: what was loaded, and what the decisions so far have changed."""

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
# An account opened during an erasure starts after the erased rows, if these are at most this far
# in the future.
_MAX_LEAD: Final = timedelta(hours=1)
_DATED_TOO_FAR_AHEAD: Final = (
    "belongs to an account under erasure and is dated too far in the future: complete the erasure "
    "with delete_user before you open the account again"
)


class Remembered(NamedTuple):
    """The request and the result that an idempotency key stands for.

    ``result`` is None if other software used the key. No request matches that ``fingerprint``.
    """

    fingerprint: str
    result: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the database contains about a batch's users, charges and keys."""

    accounts: Mapping[str, Account]
    unreadable: Mapping[str, AccountDataError]
    """The errors of users whose documents the ledger cannot read."""
    charges: Mapping[str, RefundableCharge | AccountDataError]
    """Charges by id. An error stands for a charge that the ledger cannot read."""
    remembered: Mapping[str, Remembered]
    forgotten_keys: frozenset[str]
    """Keys that count as free although their records still exist."""
    unopened: Mapping[str, Unopened] = field(default_factory=dict)
    """The unreadable users whose documents have no account yet, so that one can be opened."""
    erased_until: Mapping[str, datetime] = field(default_factory=dict)
    """For users under erasure: the date of the erased account's last row."""


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
        """Return when an account can begin: now or, during an erasure, after the erased rows.

        Raises AccountDataError if the erased rows are dated too far in the future: by an hour, or
        by ``max_lead`` if that is shorter, because ``Policy.time_for`` ignores later dates.
        """
        until = self._erased_until.get(user_id)
        if until is None:
            return now
        if until - now >= min(_MAX_LEAD, max_lead or _MAX_LEAD):
            raise AccountDataError(user_id, "history", _DATED_TOO_FAR_AHEAD)
        return max(now, until + _MILLISECOND)

    def account(self, user_id: str) -> Account:
        """Return a user's account. Raises UserNotFoundError and AccountDataError."""
        account = self.accounts.get(user_id)
        if account is None:
            self.check_readable(user_id)
            raise UserNotFoundError(user_id)
        return account

    def check_readable(self, user_id: str) -> None:
        """Raise AccountDataError if the ledger cannot read the user's document."""
        error = self._unreadable.get(user_id)
        if error is not None:
            # A copy, because raising an error adds a traceback to it.
            raise copy(error)

    def charge(self, charge_id: str, user_id: str) -> RefundableCharge:
        """Return a charge of the user. Raises TransactionNotFoundError and AccountDataError."""
        charge = self._charges.get(charge_id)
        # Another user's charge counts as not found, whether the ledger can read it or not.
        if charge is None or charge.user_id != user_id:
            raise TransactionNotFoundError(charge_id)
        if isinstance(charge, AccountDataError):
            raise copy(charge)
        return charge

    def replace_charge(self, charge: RefundableCharge) -> None:
        """Replace the charge, for the requests that follow."""
        self._charges[charge.transaction_id] = charge


class ChargeRefunded(NamedTuple):
    """A refund of ``amount`` units of a charge."""

    charge: RefundableCharge
    amount: int

    def apply(self, state: State) -> None:
        """Reduce what the requests that follow can refund."""
        refunded = self.charge.refunded + self.amount
        state.replace_charge(self.charge._replace(refunded=refunded))

"""The state of a batch: what was loaded, and what the decisions so far have changed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.values import Account, RefundableCharge, RevocableGrant, Unopened
from credit_mongo.errors import (
    AccountDataError,
    HoldNotFoundError,
    TransactionNotFoundError,
    UserNotFoundError,
)

__all__ = [
    "AccountChanged",
    "ChargeRefunded",
    "GrantRevoked",
    "HoldChanges",
    "Loaded",
    "Remembered",
    "State",
]

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
    grants: Mapping[str, RevocableGrant | AccountDataError] = field(default_factory=dict)
    """Grants by id. An error stands for a grant that the ledger cannot read."""
    holds: Mapping[str, HoldRecord | AccountDataError] = field(default_factory=dict)
    """Holds by id. An error stands for a hold that the ledger cannot read."""


@dataclass(slots=True)
class HoldChanges:
    """What a batch changes in holds, to write: new holds, and the changed fields of others."""

    placed: dict[str, HoldRecord] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed_by: dict[str, str] = field(default_factory=dict)
    """For each hold: the id of the last request that changed it."""


class State:
    """What a request sees: the state that the requests before it in the batch left."""

    __slots__ = (
        "_charges",
        "_erased_until",
        "_grants",
        "_holds",
        "_unreadable",
        "accounts",
        "expired",
        "hold_changes",
        "remembered",
        "unopened",
    )

    def __init__(self, loaded: Loaded) -> None:
        self._unreadable = loaded.unreadable
        self._erased_until = loaded.erased_until
        self.accounts: dict[str, Account] = dict(loaded.accounts)
        self._charges: dict[str, RefundableCharge | AccountDataError] = dict(loaded.charges)
        self.remembered: dict[str, Remembered] = dict(loaded.remembered)
        self.unopened: Mapping[str, Unopened] = loaded.unopened
        self._grants: dict[str, RevocableGrant | AccountDataError] = dict(loaded.grants)
        self._holds: dict[str, HoldRecord | AccountDataError] = dict(loaded.holds)
        self.hold_changes: HoldChanges | None = None
        self.expired: dict[str, int] = {}
        """The units that ended in lots by rows of this batch, by the lot's id."""

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
        charge = _readable(self._charges.get(charge_id), user_id)
        if charge is None:
            raise TransactionNotFoundError(charge_id)
        return charge

    def replace_charge(self, charge: RefundableCharge) -> None:
        """Replace the charge, for the requests that follow."""
        self._charges[charge.transaction_id] = charge

    def grant(self, grant_id: str, user_id: str) -> RevocableGrant:
        """Return a grant of the user. Raises TransactionNotFoundError and AccountDataError."""
        grant = _readable(self._grants.get(grant_id), user_id)
        if grant is None:
            raise TransactionNotFoundError(grant_id, "grant")
        return grant

    def replace_grant(self, grant: RevocableGrant) -> None:
        """Replace the grant, for the requests that follow."""
        self._grants[grant.transaction_id] = grant

    def hold(self, hold_id: str, user_id: str) -> HoldRecord:
        """Return a hold of the user. Raises HoldNotFoundError and AccountDataError."""
        hold = _readable(self._holds.get(hold_id), user_id)
        if hold is None:
            raise HoldNotFoundError(hold_id)
        return hold

    def place_hold(self, hold: HoldRecord) -> None:
        """Keep a new hold."""
        self._holds[hold.hold_id] = hold
        self._changes_of_holds().placed[hold.hold_id] = hold

    def change_hold(self, hold_id: str, changed_by: str, changes: Mapping[str, Any]) -> None:
        """Change fields of a hold, whether it was loaded or not."""
        hold = self._holds.get(hold_id)
        if isinstance(hold, HoldRecord):
            self._holds[hold_id] = hold = replace(hold, **changes)
        all_changes = self._changes_of_holds()
        all_changes.changed_by[hold_id] = changed_by
        if hold_id in all_changes.placed and isinstance(hold, HoldRecord):
            all_changes.placed[hold_id] = hold
        else:
            all_changes.changed.setdefault(hold_id, {}).update(changes)

    def _changes_of_holds(self) -> HoldChanges:
        if self.hold_changes is None:
            self.hold_changes = HoldChanges()
        return self.hold_changes


class _OfUser(Protocol):
    @property
    def user_id(self) -> str: ...


_Found = TypeVar("_Found", bound=_OfUser)


def _readable(found: _Found | AccountDataError | None, user_id: str) -> _Found | None:
    """Return what was found; None if it is another user's, whether the ledger can read it or not.

    Raises AccountDataError if the ledger can't read it.
    """
    if found is None or found.user_id != user_id:
        return None
    if isinstance(found, AccountDataError):
        raise copy(found)
    return found


class AccountChanged(NamedTuple):
    """An account has changed in something other than its credits."""

    account: Account

    def apply(self, state: State) -> None:
        """Replace the account, for the requests that follow."""
        state.accounts[self.account.user_id] = self.account


class GrantRevoked(NamedTuple):
    """A revocation of ``amount`` units of a grant."""

    grant: RevocableGrant
    amount: int

    def apply(self, state: State) -> None:
        """Reduce what the requests that follow can revoke."""
        revoked = self.grant.revoked + self.amount
        state.replace_grant(self.grant._replace(revoked=revoked))


class ChargeRefunded(NamedTuple):
    """A refund of ``amount`` units of a charge."""

    charge: RefundableCharge
    amount: int

    def apply(self, state: State) -> None:
        """Reduce what the requests that follow can refund."""
        refunded = self.charge.refunded + self.amount
        state.replace_charge(self.charge._replace(refunded=refunded))

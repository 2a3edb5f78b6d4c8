"""The books of one batch: what was loaded for it, and what its decisions have made of that so far.

Requests are decided one after the other, each on the state that those before it left, as if they
had come in transactions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from credit_mongo.core.accounts import Account, RefundableCharge, Remembered, Unopened
from credit_mongo.core.requests import (
    ChargeRequest,
    CorrectionRequest,
    CreateUserRequest,
    GrantRequest,
    RefundRequest,
    Request,
)
from credit_mongo.core.results import (
    ChargeResult,
    CorrectionResult,
    GrantResult,
    RefundResult,
    Result,
    TierChangeResult,
    User,
)
from credit_mongo.core.rules import Posting, Refusal, Rules
from credit_mongo.errors import AccountDataError, CreditError, IdempotencyConflictError

__all__ = ["Books", "Loaded", "Outcome", "result_of", "user_of"]

_MILLISECOND: Final = timedelta(milliseconds=1)
# How far a clock may have been ahead whose rows an account that is opened anew has to follow.
_MOST_AHEAD: Final = timedelta(hours=1)
_DATED_AHEAD: Final = (
    "is of an erased account and dated more than an hour ahead: complete the erasure with "
    "delete_user before you open the account anew"
)

Outcome: TypeAlias = Result | CreditError
"""What one caller gets: a result, or the error to raise."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the database holds of a batch's users, charges and keys."""

    accounts: Mapping[str, Account]
    unreadable: Mapping[str, AccountDataError]
    charges: Mapping[str, RefundableCharge | AccountDataError]
    """What can't be read of a charge stands in its place."""
    remembered: Mapping[str, Remembered]
    forgotten_keys: frozenset[str]
    """Keys that are free, though their records are still there."""
    unopened: Mapping[str, Unopened] = field(default_factory=dict)
    """Of those that are unreadable, the ones that an account can be opened on."""
    erased_until: Mapping[str, datetime] = field(default_factory=dict)
    """Of users without an account whose erasure is under way, the last moment of the erased one."""


@dataclass(slots=True)
class Books:
    """The working state of a batch. ``postings`` and ``refusals`` are what is to be written."""

    rules: Rules
    now: datetime
    accounts: dict[str, Account]
    unreadable: Mapping[str, AccountDataError]
    charges: dict[str, RefundableCharge | AccountDataError]
    remembered: dict[str, Remembered]
    unopened: Mapping[str, Unopened] = field(default_factory=dict)
    erased_until: Mapping[str, datetime] = field(default_factory=dict)
    postings: list[Posting] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @classmethod
    def open(cls, rules: Rules, now: datetime, loaded: Loaded) -> Books:
        """Books on what was loaded."""
        return cls(
            rules,
            now,
            dict(loaded.accounts),
            loaded.unreadable,
            dict(loaded.charges),
            dict(loaded.remembered),
            loaded.unopened,
            loaded.erased_until,
        )

    def decide_all(self, requests: Sequence[Request]) -> list[Outcome]:
        """Each request's outcome, in order."""
        return [self._decide(request) for request in requests]

    def _decide(self, request: Request) -> Outcome:
        key = request.key
        if key is not None and (known := self.remembered.get(key)) is not None:
            if known.result is not None and known.fingerprint == request.fingerprint:
                # A copy: each caller may do with its metadata what it likes.
                return replace(deepcopy(known.result), replayed=True)
            account = self.accounts.get(request.user_id)
            # Time never goes back for a user, in its audit log neither.
            now = self.now if account is None else self.rules.time_for(account, self.now)
            return self._refuse(Refusal(request, IdempotencyConflictError(key), now))
        account = self.accounts.get(request.user_id)
        unopened, charge, now = None, None, self.now
        try:
            if account is None:
                unopened, now = self._unopened(request), self._moment_to_open(request.user_id)
            if isinstance(request, RefundRequest) and request.charge_id is not None:
                charge = self._charge(request.charge_id, request.user_id)
        except AccountDataError as error:
            return self._refuse(Refusal(request, error, now))
        decision = self.rules.decide(request, account, now, charge, unopened)
        if isinstance(decision, Refusal):
            return self._refuse(decision)
        return self._post(decision, charge)

    def _unopened(self, request: Request) -> Unopened | None:
        """What an account can be opened on. Raises AccountDataError if one can't be read."""
        unreadable = self.unreadable.get(request.user_id)
        if unreadable is None:
            return None
        found = self.unopened.get(request.user_id)
        if found is None or not isinstance(request, CreateUserRequest):
            raise copy(unreadable)
        return found

    def _moment_to_open(self, user_id: str) -> datetime:
        """Now, or after the last moment of an account whose erasure is under way.

        Raises AccountDataError if that is too far ahead.
        """
        until = self.erased_until.get(user_id)
        if until is None:
            return self.now
        if until - self.now > _MOST_AHEAD:
            raise AccountDataError(user_id, "history", _DATED_AHEAD)
        return max(self.now, until + _MILLISECOND)

    def _charge(self, charge_id: str, user_id: str) -> RefundableCharge | None:
        """What a refund is of, None if it is not there. Raises AccountDataError."""
        charge = self.charges.get(charge_id)
        if isinstance(charge, AccountDataError):
            if charge.user_id == user_id:
                raise copy(charge)
            return None  # somebody else's
        return charge

    def _refuse(self, refusal: Refusal) -> CreditError:
        self.refusals.append(refusal)
        return refusal.error

    def _post(self, posting: Posting, charge: RefundableCharge | None) -> Result:
        request, account = posting.request, posting.account
        self.accounts[account.user_id] = account
        self.postings.append(posting)
        if charge is not None:
            self.charges[charge.transaction_id] = charge._replace(
                refunded=charge.refunded + posting.amount
            )
        result = result_of(posting)
        if request.key is not None:
            self.remembered[request.key] = Remembered(request.fingerprint, result)
        return result


def user_of(account: Account) -> User:
    """An account as callers see it."""
    return User(
        user_id=account.user_id,
        credits=account.credits,
        membership_tier=account.membership_tier,
        membership_expires_at=account.membership_expires_at,
        seq=account.seq,
        created_at=account.created_at,
        updated_at=account.updated_at,
    )


_RESULT_KINDS: Final[Mapping[type[Request], Callable[..., Result]]] = {
    ChargeRequest: ChargeResult,
    RefundRequest: RefundResult,
    GrantRequest: GrantResult,
    CorrectionRequest: CorrectionResult,
}


def result_of(posting: Posting) -> Result:
    """What the caller of a posting's request gets."""
    request, account = posting.request, posting.account
    if isinstance(request, CreateUserRequest):
        return user_of(account)
    kind = _RESULT_KINDS.get(type(request))
    if kind is not None:
        return kind(
            request.transaction_id,
            account.user_id,
            request.action,
            posting.amount if kind is CorrectionResult else abs(posting.amount),
            posting.balance_before,
            account.credits,
            account.updated_at,
            request.metadata,
        )
    return TierChangeResult(
        transaction_id=request.transaction_id,
        user_id=account.user_id,
        old_tier=posting.details["oldTier"],
        new_tier=posting.details["newTier"],
        old_credits=posting.balance_before,
        new_credits=account.credits,
        credits_delta=posting.amount,
        membership_expires_at=account.membership_expires_at,
        created_at=account.updated_at,
    )

"""The rules: account + request + now → a posting, or a refusal.

Pure functions of their arguments. A rule refuses by raising one of our errors, and ``decide`` turns
that into a value: one caller's missing credits never disturb another's charge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from credit_mongo.core.accounts import Account, RefundableCharge, Unopened
from credit_mongo.core.membership import Membership, is_past
from credit_mongo.core.pricing import DEFAULT_TIER, Price, Priced, Tariff, find_price
from credit_mongo.core.requests import (
    LARGEST_BALANCE,
    ChargeRequest,
    CorrectionRequest,
    CreateUserRequest,
    DowngradeTierRequest,
    GrantRequest,
    Keep,
    RefundRequest,
    RenewTierRequest,
    Request,
    UpgradeTierRequest,
)
from credit_mongo.core.results import Quote
from credit_mongo.core.variables import Variables
from credit_mongo.errors import (
    CreditError,
    InsufficientCreditsError,
    InvalidRequestError,
    InvalidTierChangeError,
    MembershipRequiredError,
    RefundExceedsChargeError,
    TransactionNotFoundError,
    UndefinedActionError,
    UserExistsError,
    UserNotFoundError,
)

__all__ = ["Posting", "Refusal", "Rules"]


class Posting(NamedTuple):
    """A transaction to write, and the account after it.

    ``details`` are the library's own facts for the records: what was priced how, which tier changed
    into which.
    """

    request: Request
    before: Account | None
    account: Account
    amount: int
    details: Mapping[str, Any]
    refund_of: str | None = None

    @property
    def balance_before(self) -> int:
        """The balance that the transaction found, in smallest units."""
        return self.before.credits if self.before is not None else 0


class Refusal(NamedTuple):
    """Why there is no posting. Its error goes to the caller, its text to the audit log."""

    request: Request
    error: CreditError
    at: datetime


Decision: TypeAlias = Posting | Refusal


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a configuration."""

    tariff: Tariff
    membership: Membership
    follows: timedelta | None = None
    """How far ahead of the present a user's last change may lie and still be believed; None: as far
    as it likes."""

    def time_for(self, account: Account, now: datetime) -> datetime:
        """When something happens to a user: now, or if that is later, at the last change.

        Time never goes back for a user, though clocks may. So newest first is also highest ``seq``
        first, and what has expired stays expired. A change that lies further ahead than clocks may
        differ is a mistake, and decides nothing.
        """
        last = account.updated_at
        if last <= now or (self.follows is not None and last - now > self.follows):
            return now
        return last

    def decide(
        self,
        request: Request,
        account: Account | None,
        now: datetime,
        charge: RefundableCharge | None = None,
        unopened: Unopened | None = None,
    ) -> Decision:
        """What a request does to an account (None: there is no such user).

        ``charge`` is the charge that a linked refund names, None if it was not found; ``unopened``
        a document that the account is to be opened on.
        """
        if account is not None:
            now = self.time_for(account, now)
        try:
            if isinstance(request, CreateUserRequest):
                return self._create_user(request, account, now, unopened)
            if account is None:
                raise UserNotFoundError(request.user_id)
            return self._post(request, account, now, charge)
        except CreditError as error:
            return Refusal(request, error, now)

    def _post(  # noqa: PLR0911 - one for each kind of request
        self,
        request: Request,
        account: Account,
        now: datetime,
        charge: RefundableCharge | None,
    ) -> Posting:
        if isinstance(request, ChargeRequest):
            return self._charge(request, account, now)
        if isinstance(request, GrantRequest):
            return _add(request, account, now, request.amount)
        if isinstance(request, RefundRequest):
            return self._refund(request, account, now, charge)
        if isinstance(request, UpgradeTierRequest):
            return self._upgrade_tier(request, account, now)
        if isinstance(request, DowngradeTierRequest):
            return self._downgrade_tier(request, account, now)
        if isinstance(request, RenewTierRequest):
            return self._renew_tier(request, account, now)
        if isinstance(request, CorrectionRequest):
            return _correct(request, account, now)
        raise AssertionError(f"no rule for {type(request).__name__}")

    def check_access(self, account: Account, action: str, now: datetime) -> None:
        """Raise UndefinedActionError or MembershipRequiredError unless the user may do it."""
        tier = self.membership.tier_in_force(account, self.time_for(account, now))
        if action not in self.tariff.prices and action not in self.membership.requirements:
            raise UndefinedActionError(action)
        self._check_access(account, action, tier)

    def quote(
        self, account: Account, action: str, variables: Variables | None, now: datetime
    ) -> Quote:
        """What the action would cost the user now. Raises what a charge would, but for credits."""
        tier = self.membership.tier_in_force(account, self.time_for(account, now))
        cost = self._price(account, action, tier, variables).cost
        return Quote(action, tier, cost, account.credits, cost <= account.credits)

    def _check_access(self, account: Account, action: str, tier: str | None) -> Price | None:
        """The price for those who may do the action; None if it has no prices."""
        self.membership.check_requirement(account, action, tier)
        prices = self.tariff.prices.get(action)
        if prices is None:
            return None
        price = find_price(prices, tier)
        if price is None:
            listed = {name: price for name, price in prices.items() if name != DEFAULT_TIER}
            raise MembershipRequiredError(account.user_id, self.membership.lowest(listed), tier)
        return price

    def _price(
        self,
        account: Account,
        action: str,
        tier: str | None,
        variables: Variables | None,
    ) -> Priced:
        if action not in self.tariff.prices:
            raise UndefinedActionError(action)
        price = self._check_access(account, action, tier)
        assert price is not None  # noqa: S101 - the action has prices
        return self.tariff.evaluate(action, price, variables)

    def _create_user(
        self,
        request: CreateUserRequest,
        account: Account | None,
        now: datetime,
        unopened: Unopened | None,
    ) -> Posting:
        if account is not None:
            raise UserExistsError(request.user_id)
        tier, expires_at = request.membership_tier, request.membership_expires_at
        if tier is not None:
            self.membership.level(tier)
        _refuse_past(expires_at, now)
        created_at = now
        if unopened is not None:
            created_at = unopened.created_at or now
            if tier is None:
                # The application's users may have one before they have credits.
                tier = unopened.membership_tier
                expires_at = expires_at or unopened.membership_expires_at
                # Where no tiers are configured, what the application calls so is its own matter.
                if tier is not None and self.membership.levels:
                    self.membership.level(tier)
        opened = Account(
            user_id=request.user_id,
            credits=request.credits,
            seq=1,
            membership_tier=tier,
            membership_expires_at=expires_at,
            created_at=created_at,
            updated_at=now,
        )
        return Posting(request, None, opened, request.credits, {"tier": tier})

    def _charge(self, request: ChargeRequest, account: Account, now: datetime) -> Posting:
        tier = self.membership.tier_in_force(account, now)
        if request.amount is None:
            priced = self._price(account, request.action, tier, request.variables)
        else:
            self._check_access(account, request.action, tier)
            priced = Priced(request.amount)
        if priced.cost > account.credits:
            raise InsufficientCreditsError(account.user_id, priced.cost, account.credits)
        details: dict[str, Any] = {"tier": tier}
        if priced.formula is not None:
            details["formula"] = priced.formula
            used = priced.variables or {}
            details["variables"] = {name: str(value) for name, value in used.items()}
        return _post(request, account, now, -priced.cost, details)

    def _refund(
        self,
        request: RefundRequest,
        account: Account,
        now: datetime,
        charge: RefundableCharge | None,
    ) -> Posting:
        if request.charge_id is not None:
            if charge is None or charge.user_id != account.user_id:
                raise TransactionNotFoundError(request.charge_id)
            if request.amount > charge.refundable:
                raise RefundExceedsChargeError(request.charge_id, charge.refundable, request.amount)
        return _add(request, account, now, request.amount, refund_of=request.charge_id)

    def _upgrade_tier(
        self, request: UpgradeTierRequest, account: Account, now: datetime
    ) -> Posting:
        current, target = account.membership_tier, request.target_tier
        target_level = self.membership.level(target)
        if current is not None and target_level <= self.membership.level(current):
            reason = "it is the current tier" if target == current else "it is not higher"
            raise InvalidTierChangeError(account.user_id, current, target, reason)
        expires_at = request.membership_expires_at
        if isinstance(expires_at, Keep):
            kept = account.membership_expires_at
            expires_at = None if is_past(kept, now) else kept
        else:
            _refuse_past(expires_at, now)
        return self._change_tier(request, account, now, target, expires_at)

    def _downgrade_tier(
        self, request: DowngradeTierRequest, account: Account, now: datetime
    ) -> Posting:
        current, target = account.membership_tier, request.target_tier
        target_level = self.membership.level(target)
        if current is None:
            raise InvalidTierChangeError(account.user_id, None, target, "there is no tier yet")
        if target_level >= self.membership.level(current):
            reason = "it is the current tier" if target == current else "it is not lower"
            raise InvalidTierChangeError(account.user_id, current, target, reason)
        expires_at = None if request.clear_expiration else account.membership_expires_at
        return self._change_tier(request, account, now, target, expires_at)

    def _renew_tier(self, request: RenewTierRequest, account: Account, now: datetime) -> Posting:
        tier = account.membership_tier
        if tier is None:
            raise InvalidTierChangeError(account.user_id, None, None, "there is no tier to renew")
        _refuse_past(request.membership_expires_at, now)
        self.membership.level(tier)
        return self._change_tier(
            request, account, now, tier, request.membership_expires_at, refill=request.refill
        )

    def _change_tier(
        self,
        request: Request,
        account: Account,
        now: datetime,
        tier: str,
        expires_at: datetime | None,
        *,
        refill: bool = True,
    ) -> Posting:
        balance = self.membership.cap(tier) if refill else account.credits
        moved = account._replace(membership_tier=tier, membership_expires_at=expires_at)
        details = {
            "oldTier": account.membership_tier,
            "newTier": tier,
            "membershipExpiresAt": expires_at,
        }
        return _post(request, account, now, balance - account.credits, details, moved=moved)


def _add(
    request: Request, account: Account, now: datetime, amount: int, refund_of: str | None = None
) -> Posting:
    if amount > LARGEST_BALANCE - account.credits:
        raise InvalidRequestError("amount", f"the balance would exceed {LARGEST_BALANCE}")
    return _post(request, account, now, amount, {}, refund_of=refund_of)


def _post(
    request: Request,
    account: Account,
    now: datetime,
    amount: int,
    details: Mapping[str, Any],
    *,
    refund_of: str | None = None,
    moved: Account | None = None,
) -> Posting:
    """The one way to post on an existing account: balance, ``seq`` and time move together."""
    base = moved or account
    after = Account(
        base.user_id,
        account.credits + amount,
        account.seq + 1,
        base.membership_tier,
        base.membership_expires_at,
        base.created_at,
        now,
    )
    return Posting(request, account, after, amount, details, refund_of)


def _correct(request: CorrectionRequest, account: Account, now: datetime) -> Posting:
    if (account.credits, account.seq) != (request.credits, request.seq):
        raise InvalidRequestError(
            "seq", "the account has moved since it was verified: verify again"
        )
    amount = account.credits - request.total
    if max(abs(amount), abs(request.total), request.highest_seq + 1) > LARGEST_BALANCE:
        raise InvalidRequestError("total", "no correction can make up for such amounts")
    details = {
        "correction": {
            "operator": request.operator,
            "reason": request.reason,
            "settles": [dict(finding) for finding in request.settles],
        }
    }
    as_summed_up = account._replace(credits=request.total, seq=request.highest_seq)
    return _post(request, as_summed_up, now, amount, details)


def _refuse_past(expires_at: datetime | None, now: datetime) -> None:
    if is_past(expires_at, now):
        raise InvalidRequestError("membership_expires_at", "is in the past")

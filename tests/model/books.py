"""The model: what every operation does, written plainly without the library's code.

Its state is a few dictionaries and lists. It answers with ``Done`` and ``Refused``, in the terms of
the library's results and errors but without ids, which only the library can make.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, TypeAlias

from tests.model.configurations import Configuration, Price
from tests.model.parts import Held, Parts

Facts: TypeAlias = dict[str, Any]

LARGEST_AMOUNT = 2**53 - 1
LARGEST_VALUE = 10**18
CODES = {
    "HoldClosedError": "HOLD_CLOSED",
    "HoldExceededError": "HOLD_EXCEEDED",
    "HoldNotFoundError": "HOLD_NOT_FOUND",
    "RevokeExceedsGrantError": "REVOKE_EXCEEDS_GRANT",
    "FormulaEvaluationError": "FORMULA_EVALUATION_ERROR",
    "IdempotencyConflictError": "IDEMPOTENCY_KEY_CONFLICT",
    "InsufficientCreditsError": "INSUFFICIENT_CREDITS",
    "InvalidRequestError": "INVALID_REQUEST",
    "InvalidTierChangeError": "INVALID_TIER_CHANGE",
    "MembershipRequiredError": "MEMBERSHIP_REQUIRED",
    "MissingVariableError": "MISSING_VARIABLE",
    "RefundExceedsChargeError": "REFUND_EXCEEDS_CHARGE",
    "TransactionNotFoundError": "TRANSACTION_NOT_FOUND",
    "UndefinedActionError": "UNDEFINED_ACTION",
    "UndefinedTierError": "UNDEFINED_TIER",
    "UserExistsError": "USER_EXISTS",
    "UserNotFoundError": "USER_NOT_FOUND",
}


@dataclass(frozen=True)
class Done:
    """A result: its class's name and its fields, except ids that only the library makes."""

    kind: str
    facts: Facts
    replayed: bool = False


class Refused(Exception):  # noqa: N818 - an answer, which happens to be raised
    """An error: its class's name and its attributes."""

    def __init__(self, kind: str, **facts: Any) -> None:
        super().__init__(kind, facts)
        self.kind = kind
        self.code = CODES[kind]
        self.facts = facts


@dataclass(frozen=True)
class Call:
    """A call of one of the ledger's methods.

    ``subject`` is what the call names instead of its user: the id of a hold or a grant.
    """

    method: str
    user_id: str
    arguments: Facts
    key: str | None = None
    metadata: Facts | None = None
    subject: str | None = None

    @property
    def operation(self) -> str:
        """The operation that the records show."""
        return "capture" if self.method == "capture_hold" else self.method

    @property
    def action(self) -> str:
        """The action that the records show."""
        return str(self.arguments.get("action", self.method))

    @property
    def effect(self) -> tuple[Any, ...]:
        """What the call requests: equal for calls that differ in metadata only.

        Permissions make no difference either: without one, the call does the same or nothing.
        """
        arguments = self.arguments.items()
        requested = {name: plain(value) for name, value in arguments if name != "allow_earlier"}
        # What a method does if its caller does not say.
        for name, value in _DEFAULTS.get(self.method, {}).items():
            requested.setdefault(name, value)
        return self.method, self.user_id, self.subject, requested


_DEFAULTS: dict[str, Facts] = {
    "grant": {"expires_at": None, "priority": 50, "source": None},
    "capture_hold": {"amount": None, "variables": None},
}


@dataclass(eq=False, kw_only=True)
class User(Parts):
    """An account."""

    tier: str | None
    expires_at: datetime | None
    seq: int
    created_at: datetime
    updated_at: datetime


@dataclass
class Remembered:
    """What a key did. The call's number leads to the library's transaction id."""

    effect: tuple[Any, ...]
    done: Done
    expires_at: datetime
    number: int


@dataclass
class Books:
    """All that the ledger should hold. ``transactions`` and ``audits`` are in order of calls."""

    users: dict[str, User] = field(default_factory=dict)
    transactions: list[Facts] = field(default_factory=list)
    audits: list[Facts] = field(default_factory=list)
    keys: dict[str, Remembered] = field(default_factory=dict)
    holds: list[Held] = field(default_factory=list)

    def found(self, user_id: str) -> User:
        """Return a user, or raise the refusal."""
        if user_id not in self.users:
            raise Refused("UserNotFoundError", user_id=user_id)
        return self.users[user_id]

    def hold(self, hold_id: str) -> Held | None:
        """Return a hold, active or over."""
        return next((hold for hold in self.holds if hold.hold_id == hold_id), None)

    def transaction(self, transaction_id: str | None) -> Facts | None:
        """Return a transaction."""
        rows = (row for row in self.transactions if row["transaction_id"] == transaction_id)
        return next(rows, None)

    def owner_of(self, call: Call) -> str | None:
        """Return the user of what the call names, if there is such a hold or transaction."""
        subject = call.subject or ""
        if call.method == "revoke":
            row = self.transaction(subject)
            return None if row is None else str(row["user_id"])
        hold = self.hold(subject)
        return None if hold is None else hold.user_id

    def of_user(self, user_id: str) -> Books:
        """Return a copy of a user and the user's holds alone."""
        holds = [hold for hold in self.holds if hold.user_id == user_id]
        return copy.deepcopy(Books({user_id: self.users[user_id]}, holds=holds))

    def restore(self, before: Books) -> None:
        """Make everything what it was."""
        vars(self).update(vars(before))

    def chain(self, user_id: str) -> list[Facts]:
        """Return a user's transactions, newest first."""
        return [row for row in reversed(self.transactions) if row["user_id"] == user_id]

    def audit_log(self, user_id: str) -> list[Facts]:
        """Return a user's attempts, newest first: by time, then by call."""
        rows = [row for row in self.audits if row["user_id"] == user_id]
        return sorted(rows, key=lambda row: (row["created_at"], row["number"]), reverse=True)


def plain(value: Any) -> Any:
    """Return an argument's value without the way it was written."""
    if isinstance(value, Mapping):
        return {name: exact(number) for name, number in value.items() if number is not None}
    if isinstance(value, datetime):
        return milliseconds(value)
    return value


def milliseconds(moment: datetime) -> datetime:
    """Return the moment in UTC, cut to milliseconds."""
    moment = moment.astimezone(timezone.utc)
    return moment - timedelta(microseconds=moment.microsecond % 1000)


def exact(number: float | Decimal) -> Fraction:
    """Return the number exactly as it is written."""
    return Fraction(str(number))


def to_units(credits_due: Fraction, decimal_places: int) -> int:
    """Return smallest units, rounded half up."""
    units = credits_due * 10**decimal_places
    whole = int(units.numerator // units.denominator)
    return whole + 1 if units - whole >= Fraction(1, 2) else whole


def readable(variables: Mapping[str, Fraction]) -> dict[str, int | Decimal]:
    """Return variables as an error shows them."""
    context = Context(prec=34)
    return {
        name: int(number)
        if number == int(number)
        else context.divide(Decimal(number.numerator), Decimal(number.denominator))
        for name, number in variables.items()
    }


def is_over(expires_at: datetime | None, now: datetime) -> bool:
    """Whether the expiry has passed."""
    return expires_at is not None and now >= expires_at


class Tariff:
    """Access and prices in one configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self.prices = configuration.prices
        self.levels = configuration.levels
        self.requirements = configuration.requirements
        self.decimal_places = configuration.decimal_places
        self.caps = {
            tier: to_units(Fraction(cap), configuration.decimal_places)
            for tier, cap in configuration.caps.items()
        }

    def level(self, tier: str) -> int:
        """Return a tier's level."""
        if tier not in self.levels:
            raise Refused("UndefinedTierError", tier=tier)
        return self.levels[tier]

    def tier_in_force(self, user: User, now: datetime) -> str | None:
        """Return the user's tier, or None if it has expired."""
        if user.tier is None or is_over(user.expires_at, now):
            return None
        if self.levels:
            self.level(user.tier)
        return user.tier

    def check_access(self, user_id: str, action: str, tier: str | None) -> None:
        """Refuse a tier that may not do the action."""
        needed = self.requirements.get(action)
        if needed is not None and (tier is None or self.levels[tier] < self.levels[needed]):
            raise Refused("MembershipRequiredError", user_id=user_id, required=needed, current=tier)
        by_tier = self.prices.get(action)
        if by_tier is not None and tier not in by_tier and "default" not in by_tier:
            listed = sorted(by_tier, key=lambda name: self.levels.get(name, 0))
            raise Refused(
                "MembershipRequiredError", user_id=user_id, required=listed[0], current=tier
            )

    def cost(
        self, user_id: str, action: str, tier: str | None, given: Mapping[str, Any] | None
    ) -> tuple[int, Facts]:
        """Return the cost in units, and how it was computed."""
        if action not in self.prices:
            raise Refused("UndefinedActionError", action=action)
        self.check_access(user_id, action, tier)
        by_tier = self.prices[action]
        price = by_tier[tier if tier is not None and tier in by_tier else "default"]
        if not price.is_fixed and price.variables and given is None:
            fallback = by_tier.get("default")
            if fallback is None or not fallback.is_fixed:
                raise Refused(
                    "MissingVariableError",
                    formula=price.written,
                    missing_variable=price.variables[0],
                    provided_variables=(),
                )
            price = fallback
        return self.cost_at(price, given)

    def cost_at(self, price: Price, given: Mapping[str, Any] | None) -> tuple[int, Facts]:
        """Return the cost at a price, and how it was computed."""
        if price.is_fixed:
            return to_units(price.means({}), self.decimal_places), {}
        used = self._used(price, given or {})
        told = {name: str(number) for name, number in readable(used).items()}
        return self._formula(price, used), {"formula": price.written, "variables": told}

    def price_of(self, action: str, tier: str | None) -> Price | None:
        """Return the price that a hold keeps, if the action has one."""
        by_tier = self.prices.get(action)
        if by_tier is None:
            return None
        return by_tier[tier if tier is not None and tier in by_tier else "default"]

    @staticmethod
    def _used(price: Price, given: Mapping[str, Any]) -> dict[str, Fraction]:
        for name in price.variables:
            if name not in given:
                raise Refused(
                    "MissingVariableError",
                    formula=price.written,
                    missing_variable=name,
                    provided_variables=tuple(sorted(given)),
                )
            if given[name] is None:
                reason = "must be a number, not NoneType"
                raise Refused("InvalidRequestError", field=f"variables.{name}", reason=reason)
        return {name: exact(given[name]) for name in price.variables}

    def _formula(self, price: Price, variables: Mapping[str, Fraction]) -> int:
        wrong = ""
        cost = 0
        try:
            credits_due = price.means(variables)
            cost = to_units(credits_due, self.decimal_places)
        except ZeroDivisionError:
            wrong = "division by zero"
        else:
            if abs(credits_due) > LARGEST_VALUE:
                wrong = "the result is beyond ±10**18"
            elif cost > LARGEST_AMOUNT:
                wrong = f"the cost is more than {LARGEST_AMOUNT} units"
        if wrong:
            raise Refused(
                "FormulaEvaluationError",
                formula=price.written,
                variables=readable(variables),
                cause=wrong,
            )
        return max(cost, 0)

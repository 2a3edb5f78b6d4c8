"""What a preview and a result show, line by line, and how the ledger's refusals read."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from credit_mongo.core.extras import BASE_PRIORITY
from credit_mongo.core.operations.grant import GrantResult
from credit_mongo.core.operations.hold_results import Hold
from credit_mongo.core.operations.refund import RefundResult
from credit_mongo.core.operations.revoke import RevokeResult
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.pricing import in_credits
from credit_mongo.core.results import User
from credit_mongo.errors import (
    AccountLimitError,
    CreditError,
    InvalidRequestError,
    InvalidTierChangeError,
    RefundExceedsChargeError,
    RevokeExceedsGrantError,
    TransactionNotFoundError,
    UndefinedTierError,
)
from credit_mongo.ledger.previews import Previewed
from credit_mongo.maintenance.moments import read_moment
from credit_mongo.studio.actions.orders import Order, Result
from credit_mongo.studio.refusals import in_words

__all__ = ["Fact", "facts_of_preview", "facts_of_result", "problem_of"]

Shown: TypeAlias = Literal["text", "id", "amount", "change", "amounts", "moment"]


class Fact(NamedTuple):
    """One line. ``kind`` says how its value looks; pairs are before and after."""

    label: str
    kind: Shown
    value: Any

    def to_plain(self) -> list[Any]:
        """The line as JSON's values."""
        value = _text(self.value) if self.kind == "moment" else self.value
        return [self.label, self.kind, value]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Fact:
        """The line of `to_plain`."""
        label, kind, value = plain
        return cls(label, kind, _moment(value) if kind == "moment" else value)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else read_moment(text)


def facts_of_preview(order: Order, seen: Previewed[Result]) -> list[Fact]:
    """What the order would do."""
    facts = _moved(seen.result, order)
    before, after = seen.before, seen.after
    if before is not None and after is not None:
        facts += _accounts(before, after)
    return facts


def facts_of_result(order: Order, result: Result) -> list[Fact]:
    """What was done."""
    facts = _moved(result, order)
    if isinstance(result, GrantResult | RefundResult | RevokeResult):
        facts.append(Fact("Balance", "amounts", [result.balance_before, result.balance_after]))
    elif isinstance(result, TierChangeResult):
        facts.append(Fact("Balance", "amounts", [result.old_credits, result.new_credits]))
    return facts


def _accounts(before: User, after: User) -> list[Fact]:
    facts = [Fact("Balance", "amounts", [before.credits, after.credits])]
    if before.available != before.credits or after.available != after.credits:
        facts.append(Fact("Available", "amounts", [before.available, after.available]))
    return facts


def _moved(result: Result, order: Order) -> list[Fact]:
    """What moves, by the kind of result."""
    facts: list[Fact]
    if isinstance(result, GrantResult):
        facts = [Fact("Given", "change", result.amount), Fact("Action", "text", result.action)]
        facts += _of_lot(order)
    elif isinstance(result, RefundResult):
        facts = [Fact("Given back", "change", result.amount), Fact("Action", "text", result.action)]
        if charge := order.arguments.get("transaction_id"):
            facts.append(Fact("For the charge", "id", charge))
        if result.expired_amount:
            facts.append(Fact("Of which ends at once", "amount", result.expired_amount))
    elif isinstance(result, RevokeResult):
        facts = [
            Fact("Taken", "change", -result.amount),
            Fact("Uncollected", "amount", result.uncollected),
            Fact("Of the grant", "id", result.grant_transaction_id),
            Fact("Action", "text", result.action),
        ]
    elif isinstance(result, Hold):
        freed = max(result.amount - result.captured, 0)
        facts = [
            Fact("Freed", "amount", freed),
            Fact("Of the hold", "id", result.hold_id),
            Fact("For", "text", result.action),
        ]
    else:
        tiers = f"{result.old_tier or 'none'} → {result.new_tier}"
        facts = [
            Fact("Tier", "text", tiers),
            Fact("Ends", "moment", result.membership_expires_at),
        ]
    return facts


def _of_lot(order: Order) -> list[Fact]:
    arguments = order.arguments
    facts = [Fact("Ends", "moment", arguments["expires_at"])]
    if arguments["priority"] != BASE_PRIORITY:
        facts.append(Fact("Priority", "text", str(arguments["priority"])))
    if arguments["source"] is not None:
        facts.append(Fact("Source", "text", arguments["source"]))
    return facts


_FIELDS: Final[dict[type[CreditError], str]] = {
    TransactionNotFoundError: "transaction_id",
    RefundExceedsChargeError: "amount",
    RevokeExceedsGrantError: "amount",
    AccountLimitError: "expires_at",
    UndefinedTierError: "target_tier",
    InvalidTierChangeError: "target_tier",
}


def problem_of(error: CreditError, decimal_places: int, names: Collection[str]) -> tuple[str, str]:
    """Which of the form's fields a refusal is about, or "", and what it says, in credits."""
    if isinstance(error, InvalidRequestError):
        if error.field not in names:
            return "", f"{error}."
        return error.field, f"{error.reason[0].upper()}{error.reason[1:]}."

    def shown(units: int) -> str:
        return in_credits(units, decimal_places)

    text = in_words(error.code, str(error), decimal_places)
    text = f"{text[:1].upper()}{text[1:]}."
    if isinstance(error, RefundExceedsChargeError):
        left, wanted = shown(error.refundable), shown(error.requested)
        text = f"{left} credits of this charge can still be refunded, not {wanted}."
    elif isinstance(error, RevokeExceedsGrantError):
        left, wanted = shown(error.revocable), shown(error.requested)
        text = f"{left} credits of this grant can still be revoked, not {wanted}."
        if not error.revocable:
            text = "Nothing is left of this grant: it is revoked already."
    elif isinstance(error, InvalidTierChangeError):
        text = f"{error.reason[0].upper()}{error.reason[1:]}."
    place = _FIELDS.get(type(error), "")
    return place if place in names else "", text

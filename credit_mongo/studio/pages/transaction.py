"""One transaction: what changed, why it cost what it did, and all that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from starlette.responses import Response

from credit_mongo.config import CreditConfig
from credit_mongo.core.formula import Formula
from credit_mongo.core.pricing import find_price, in_credits
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import CreditError
from credit_mongo.storage.records import TransactionRecord
from credit_mongo.studio.rights import may_change
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES", "Reason", "reason_for"]

_PRICED: Final = ("charge", "capture")
_KNOWN: Final = frozenset(
    {"tier", "formula", "variables", "amount", "balanceBefore", "balanceAfter", "holdId"}
)
_DIGITS: Final = 12


async def _show(visit: Visit) -> Response:
    record = await visit.reads.transaction(visit.asked_id())
    row = record.transaction
    refunded = sum(each.amount for each in record.refunds)
    revoked = sum(each.uncollected - each.amount for each in record.revocations)
    return visit.render(
        "transaction.html",
        title=f"Transaction {row.transaction_id}",
        record=record,
        row=row,
        reason=reason_for(record, visit.studio.config),
        details=_other_details(record),
        refunded=refunded,
        revoked=revoked,
        may_change=await may_change(visit),
        shows_key=visit.asked("show") == "key",
        shows_metadata=visit.asked("show") == "metadata",
    )


PAGES: Final = (Page("/transaction", _show),)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a charge cost what it did, as far as its audit row tells."""

    tier: str | None
    knows_tier: bool
    formula: str | None
    variables: Mapping[str, str]
    value: str
    """What the formula gives, in credits. Empty if there was none."""
    today: str
    """The price for that tier by the present configuration. Empty if there is none."""
    is_price_of_today: bool


def reason_for(record: TransactionRecord, config: CreditConfig) -> Reason | None:
    """Say why a charge or a capture cost what it did. None for other operations."""
    row, log = record.transaction, record.audit_log
    if row.operation not in _PRICED:
        return None
    details: Mapping[str, Any] = {} if log is None else log.details
    formula, tier = details.get("formula"), details.get("tier")
    tier = tier if isinstance(tier, str) else None
    stored = details.get("variables")
    variables = (
        {str(name): str(value) for name, value in stored.items()}
        if isinstance(stored, Mapping)
        else {}
    )
    today = _price_of_today(row.action, tier, config)
    return Reason(
        tier=tier,
        knows_tier="tier" in details,
        formula=formula if isinstance(formula, str) else None,
        variables=variables,
        value=_value(formula, variables) if isinstance(formula, str) else "",
        today=today,
        is_price_of_today=today
        == (formula if isinstance(formula, str) else _in_credits(-row.amount, config)),
    )


def _in_credits(units: int, config: CreditConfig) -> str:
    return in_credits(units, config.decimal_places)


def _price_of_today(action: str, tier: str | None, config: CreditConfig) -> str:
    prices = config.policy.tariff.prices.get(action)
    price = None if prices is None else find_price(prices, tier)
    if price is None:
        return ""
    return price.text if isinstance(price, Formula) else _in_credits(price, config)


def _value(formula: str, variables: Mapping[str, str]) -> str:
    """What the formula gives for these variables, before it is rounded to smallest units."""
    try:
        numbers = {name: Fraction(value) for name, value in variables.items()}
        value = Formula.parse(formula).evaluate(exact_variables(numbers))
    except (CreditError, ValueError, ZeroDivisionError):
        # The row is of a version with other formulas, or of other software.
        return ""
    return f"{float(value):,.{_DIGITS}f}".rstrip("0").rstrip(".")


def _other_details(record: TransactionRecord) -> dict[str, Any]:
    """What else the audit row tells, such as the tiers before and after."""
    log = record.audit_log
    if log is None:
        return {}
    return {name: value for name, value in log.details.items() if name not in _KNOWN}

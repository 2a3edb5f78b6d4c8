"""What each operation refuses: a table of refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from credit_mongo import (
    CreditError,
    CreditLedger,
    FormulaEvaluationError,
    InsufficientCreditsError,
    InvalidTierChangeError,
    MembershipRequiredError,
    MissingVariableError,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    UserExistsError,
)
from tests.integration.promises import Row


@dataclass(frozen=True)
class Refused:
    """A call that is refused to a premium user with 50 credits."""

    name: str
    call: Callable[[CreditLedger, str, Row], Awaitable[Any]]
    operation: str
    action: str
    error: type[CreditError]
    facts: Row
    code: str


USER: Any = object()
"""Stands for the user's id in a table."""
NOBODY = "nobody-at-all"
NO_ID = "0" * 24
REFUSALS = [
    Refused(
        "too few credits",
        lambda ledger, user, o: ledger.charge(user, "post", amount=51, **o),
        *("charge", "post", InsufficientCreditsError),
        {"user_id": USER, "required": 51, "available": 50},
        "INSUFFICIENT_CREDITS",
    ),
    Refused(
        "no price",
        lambda ledger, user, o: ledger.charge(user, "dance", **o),
        *("charge", "dance", UndefinedActionError, {"action": "dance"}, "UNDEFINED_ACTION"),
    ),
    Refused(
        "a requirement, for an amount",
        lambda ledger, user, o: ledger.charge(user, "reports", amount=1, **o),
        *("charge", "reports", MembershipRequiredError),
        {"user_id": USER, "required": "enterprise", "current": "premium"},
        "MEMBERSHIP_REQUIRED",
    ),
    Refused(
        "a missing variable",
        lambda ledger, user, o: ledger.charge(user, "tokens", variables={"words": 1}, **o),
        *("charge", "tokens", MissingVariableError),
        {
            "formula": "{token} / 1000",
            "missing_variable": "token",
            "provided_variables": ("words",),
        },
        "MISSING_VARIABLE",
    ),
    Refused(
        "no variables, and no fixed default",
        lambda ledger, user, o: ledger.charge(user, "tokens", **o),
        *("charge", "tokens", MissingVariableError),
        {"formula": "{token} / 1000", "missing_variable": "token", "provided_variables": ()},
        "MISSING_VARIABLE",
    ),
    Refused(
        "a division by zero",
        lambda ledger, user, o: ledger.charge(user, "ratio", variables={"n": 0}, **o),
        *("charge", "ratio", FormulaEvaluationError),
        {"formula": "100 / {n}", "variables": {"n": 0}},
        "FORMULA_EVALUATION_ERROR",
    ),
    Refused(
        "a charge that is not there",
        lambda ledger, user, o: ledger.refund(user, 1, action="post", transaction_id=NO_ID, **o),
        *("refund", "post", TransactionNotFoundError, {"transaction_id": NO_ID}),
        "TRANSACTION_NOT_FOUND",
    ),
    Refused(
        "an unknown tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "gold", **o),
        *("upgrade_tier", "upgrade_tier", UndefinedTierError, {"tier": "gold"}, "UNDEFINED_TIER"),
    ),
    Refused(
        "an upgrade to the same tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "premium", **o),
        *("upgrade_tier", "upgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "premium"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "an upgrade to a lower tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "free", **o),
        *("upgrade_tier", "upgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "free"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "a downgrade to a higher tier",
        lambda ledger, user, o: ledger.downgrade_tier(user, "enterprise", **o),
        *("downgrade_tier", "downgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "enterprise"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "a user who exists",
        lambda ledger, user, o: ledger.create_user(user, **o),
        *("create_user", "create_user", UserExistsError, {"user_id": USER}, "USER_EXISTS"),
    ),
]

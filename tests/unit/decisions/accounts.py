"""Accounts and requests, as the tests of decisions speak of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any

from credit_mongo import KEEP, CreditConfig
from credit_mongo.core.batch import DecidedBatch, decide_batch
from credit_mongo.core.decision import Posting, Request
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.grant import GrantRequest
from credit_mongo.core.operations.refund import RefundRequest
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.state import Loaded
from credit_mongo.core.values import (
    Account,
    Keep,
    RefundableCharge,
    Unopened,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    CreditError,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
A_MOMENT = timedelta(milliseconds=1)
A_DAY = timedelta(days=1)
PAST, FUTURE = NOW - A_DAY, NOW + A_DAY
USER = "user-1"

COSTS: dict[str, dict[str, Any]] = {
    "post": {"default": 10, "premium": 8, "enterprise": 5},
    "completion": {"default": "{token} * 0.001 + 10", "premium": "{token} * 0.0008 + 8"},
    # The lowest tier is not the first.
    "image": {"enterprise": 15, "premium": 20},
    "report": {"default": 1},
    "translate": {"default": 3, "premium": "{words} / 100", "enterprise": "2 * 2"},
    "share": {"default": "{total} / {parts}"},
    "free": {"default": 0},
}
TIERS = {"free": 0, "basic": 1, "plus": 1, "premium": 2, "enterprise": 3}
CAPS = {"free": 100, "basic": 500, "plus": 600, "premium": 2000, "enterprise": 10_000}
REQUIREMENTS = {"report": "premium", "dashboard": "enterprise"}

POLICY = CreditConfig(
    costs=COSTS,
    membership={"tiers": TIERS, "requirements": REQUIREMENTS, "credits_caps": CAPS},
).policy
POLICY_WITHOUT_TIERS = CreditConfig(costs={"post": {"default": 10, "premium": 8}}).policy

_numbers = count(1)


def new_id() -> str:
    """A transaction id that no other request has."""
    return f"{next(_numbers):024x}"


def account(
    credits: int = 100,  # noqa: A002
    *,
    tier: str | None = None,
    expires_at: datetime | None = None,
    seq: int = 7,
    updated_at: datetime = PAST,
    user_id: str = USER,
) -> Account:
    """An account that was last changed yesterday."""
    return Account(
        user_id=user_id,
        credits=credits,
        seq=seq,
        membership_tier=tier,
        membership_expires_at=expires_at,
        created_at=PAST - A_DAY,
        updated_at=updated_at,
    )


def create(
    credits: int = 0,  # noqa: A002
    *,
    tier: str | None = None,
    expires_at: datetime | None = None,
    key: str | None = None,
    user_id: str = USER,
) -> CreateUserRequest:
    """A request to open an account."""
    return CreateUserRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        credits=credits,
        membership_tier=tier,
        membership_expires_at=expires_at,
    )


def charge(
    action: str = "post",
    *,
    amount: int | None = None,
    variables: Mapping[str, float | Decimal] | None = None,
    key: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    user_id: str = USER,
) -> ChargeRequest:
    """A request to charge."""
    return ChargeRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        metadata=metadata,
        action=action,
        amount=amount,
        variables=None if variables is None else exact_variables(variables),
    )


def refund(
    amount: int, *, of: str | None = None, key: str | None = None, user_id: str = USER
) -> RefundRequest:
    """A request to refund, freely or of a charge."""
    return RefundRequest(
        user_id=user_id,
        transaction_id=new_id(),
        key=key,
        action="refund",
        amount=amount,
        charge_id=of,
    )


def grant(amount: int, *, key: str | None = None, user_id: str = USER) -> GrantRequest:
    """A request to grant."""
    return GrantRequest(
        user_id=user_id, transaction_id=new_id(), key=key, action="bonus", amount=amount
    )


def upgrade(
    tier: str, *, expires_at: datetime | Keep | None = KEEP, key: str | None = None
) -> UpgradeTierRequest:
    """A request to move to a higher tier."""
    return UpgradeTierRequest(
        user_id=USER,
        transaction_id=new_id(),
        key=key,
        target_tier=tier,
        membership_expires_at=expires_at,
    )


def downgrade(tier: str, *, clear: bool = False) -> DowngradeTierRequest:
    """A request to move to a lower tier."""
    return DowngradeTierRequest(
        user_id=USER, transaction_id=new_id(), target_tier=tier, clear_expiration=clear
    )


def renew(
    expires_at: datetime | None = FUTURE, *, refill: bool = True, allow_earlier: bool = False
) -> RenewTierRequest:
    """A request to stay in the tier."""
    return RenewTierRequest(
        user_id=USER,
        transaction_id=new_id(),
        membership_expires_at=expires_at,
        refill=refill,
        allow_earlier=allow_earlier,
    )


def decide(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
    unopened: Unopened | None = None,
) -> DecidedBatch:
    """The request decided alone, on the account that was found."""
    loaded = Loaded(
        {} if found is None else {found.user_id: found},
        {},
        {} if of is None else {of.transaction_id: of},
        {},
        frozenset(),
        {} if unopened is None else {request.user_id: unopened},
    )
    return decide_batch(policy, loaded, [request], now)


def posted(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
) -> Posting:
    """The posting that a request comes to."""
    decided = decide(request, found, policy=policy, now=now, of=of)
    assert not decided.refusals, decided.refusals
    [posting] = decided.postings
    return posting


def refused(
    request: Request[Any],
    found: Account | None,
    *,
    policy: Policy = POLICY,
    now: datetime = NOW,
    of: RefundableCharge | None = None,
) -> CreditError:
    """The error of a request that is refused."""
    decided = decide(request, found, policy=policy, now=now, of=of)
    assert not decided.postings
    [refusal] = decided.refusals
    assert refusal.request is request
    assert refusal.at == now
    assert decided.outcomes == [refusal.error]
    return refusal.error


def facts(error: CreditError) -> dict[str, Any]:
    """An error's public attributes."""
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}

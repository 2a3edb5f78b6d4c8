"""Open an account. The opening credits are its first transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from credit_mongo.core.decision import Decision, Operation, Posting, Request, UsageKinds
from credit_mongo.core.policy import Policy, refuse_past
from credit_mongo.core.results import User, user_of
from credit_mongo.core.state import State
from credit_mongo.core.values import Account, moment_text
from credit_mongo.errors import UserExistsError

__all__ = ["CreateUser", "CreateUserRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateUserRequest(Request[User]):
    """Open an account with ``credits`` units."""

    operation: ClassVar[str] = "create_user"

    action: str = field(default="create_user", init=False)
    credits: int
    membership_tier: str | None
    membership_expires_at: datetime | None

    @property
    def effect(self) -> tuple[object, ...]:
        return (self.credits, self.membership_tier, moment_text(self.membership_expires_at))


class CreateUser(Operation[CreateUserRequest, User]):
    """Open an account. If the application has a document for the user, use that document."""

    request_type: ClassVar[type[CreateUserRequest]] = CreateUserRequest
    result_type: ClassVar[type[User]] = User
    usage: ClassVar[UsageKinds] = UsageKinds(added="granted")
    opens_account: ClassVar[bool] = True

    def decide(
        self, request: CreateUserRequest, state: State, policy: Policy, now: datetime
    ) -> Decision[User]:
        user_id = request.user_id
        if user_id in state.accounts:
            raise UserExistsError(user_id)
        unopened = state.unopened.get(user_id)
        if unopened is None:
            state.check_readable(user_id)
        tier, expires_at = request.membership_tier, request.membership_expires_at
        if tier is not None:
            policy.membership.level(tier)
        refuse_past(expires_at, now)
        created_at = now
        if unopened is not None:
            created_at = unopened.created_at or now
            if tier is None:
                # Users of the application may have a tier before they have an account.
                tier = unopened.membership_tier
                expires_at = expires_at or unopened.membership_expires_at
                # If no tiers are configured, the ledger doesn't check the application's own tiers.
                if tier is not None and policy.membership.levels:
                    policy.membership.level(tier)
        account = Account(user_id, request.credits, 1, tier, expires_at, created_at, now)
        posting = Posting(
            request.transaction_id,
            request.operation,
            request.action,
            account,
            0,
            request.credits,
            {"tier": tier},
            request.key,
            request.metadata,
            key_lifetime=request.key_lifetime,
        )
        return Decision((posting,), user_of(account))

"""The methods of the ledger on tiers and prices."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.renew_tier import RenewTierRequest
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.results import Quote
from credit_mongo.core.values import (
    KEEP,
    Keep,
    check_flag,
    check_identifier,
    check_moment,
    check_optional,
)
from credit_mongo.core.variables import exact_variables
from credit_mongo.drivers import AnySession

if TYPE_CHECKING:
    pass
from credit_mongo.ledger.calls import LedgerCalls

__all__ = ["TierMethods"]


class TierMethods(LedgerCalls):
    """Tiers, access and prices."""

    async def upgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        membership_expires_at: datetime | Keep | None = KEEP,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move the user to a higher tier and set the base of the balance by that tier's cap.

        ``membership.on_change`` of the configuration says how. By default the base becomes the cap,
        less a debt, and what it had beyond the cap is lost. Lots and what holds keep stay.

        A datetime in ``membership_expires_at`` is the new expiry, which must lie in the future;
        None means no expiry. ``KEEP`` keeps an expiry in the future and clears one that has passed.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the target isn't
        higher than the current tier, and IdempotencyConflictError.
        """
        expires_at = membership_expires_at
        request = UpgradeTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            membership_expires_at=expires_at
            if isinstance(expires_at, Keep)
            else check_optional(check_moment, "membership_expires_at", expires_at),
        )
        return await self._submit(request, session)

    async def downgrade_tier(
        self,
        user_id: str,
        target_tier: str,
        *,
        clear_expiration: bool = False,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Move the user to a lower tier and set the base of the balance as ``upgrade_tier`` does.

        The membership keeps its expiry unless ``clear_expiration`` removes it.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the target isn't
        lower than the current tier, and IdempotencyConflictError.
        """
        request = DowngradeTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            target_tier=check_identifier("target_tier", target_tier),
            clear_expiration=check_flag("clear_expiration", clear_expiration),
        )
        return await self._submit(request, session)

    async def renew_tier(
        self,
        user_id: str,
        *,
        membership_expires_at: datetime | None,
        refill: bool = True,
        allow_earlier: bool = False,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> TierChangeResult:
        """Give the user's tier a new expiry and, with ``refill``, set the base of the balance.

        The base is set by the tier's cap, as ``upgrade_tier`` does. ``membership_expires_at`` must
        lie in the future; None means no expiry. An expiry before the current one is refused, so
        that a late webhook changes nothing. ``allow_earlier=True`` permits it. A membership without
        an expiry accepts any.

        Raises UserNotFoundError, UndefinedTierError, InvalidTierChangeError if the user has no tier
        or the new expiry is earlier, and IdempotencyConflictError.
        """
        request = RenewTierRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
            refill=check_flag("refill", refill),
            allow_earlier=check_flag("allow_earlier", allow_earlier),
        )
        return await self._submit(request, session)

    async def validate_access(
        self, user_id: str, action: str, *, session: AnySession | None = None
    ) -> bool:
        """Return True if the user's tier has access to the action, or else raise.

        The balance doesn't matter. Raises UserNotFoundError, UndefinedActionError,
        UndefinedTierError, and MembershipRequiredError if the tier has no access.
        """
        user_id = self._users.check_id("user_id", user_id)
        action = check_identifier("action", action)
        own = self._database.session(session)
        account, now = await self._read(own, self._history.account_now, user_id, own)
        self._policy.require_access(account, action, now)
        return True

    async def quote(
        self,
        user_id: str,
        action: str,
        *,
        variables: Mapping[str, object] | None = None,
    ) -> Quote:
        """Return what the action would cost the user now. Writes nothing.

        ``variables`` are those of ``charge``. The call raises the same errors as ``charge``, except
        InsufficientCreditsError: the result's ``affordable`` says whether the balance is enough.
        """
        user_id = self._users.check_id("user_id", user_id)
        action = check_identifier("action", action)
        exact = None if variables is None else exact_variables(variables)
        account, now = await self._read(None, self._history.account_now, user_id, None)
        return self._policy.quote(account, action, exact, now)

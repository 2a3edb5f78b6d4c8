"""The methods of the ledger on accounts: opening, charging, refunding, granting."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from credit_mongo.core.extras import BASE_PRIORITY, MAX_PRIORITY
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.revoke import RevokeRequest, RevokeResult
from credit_mongo.core.operations.set_overdraft import OverdraftResult, SetOverdraftRequest
from credit_mongo.core.results import Erasure, User, user_of
from credit_mongo.core.values import (
    check_amount,
    check_identifier,
    check_moment,
    check_optional,
    check_whole_number,
)
from credit_mongo.core.variables import check_price
from credit_mongo.drivers import AnySession
from credit_mongo.maintenance.ledger_methods import erase

if TYPE_CHECKING:
    pass
from credit_mongo.ledger.calls import LedgerCalls, check_transaction_id

__all__ = ["AccountMethods"]


class AccountMethods(LedgerCalls):
    """Accounts and their credits."""

    async def create_user(
        self,
        user_id: str,
        *,
        credits: int = 0,  # noqa: A002 - the word of the field
        membership_tier: str | None = None,
        membership_expires_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        session: AnySession | None = None,
    ) -> User:
        """Open an account. The opening ``credits`` are its first transaction.

        ``credits`` is 0 to 2**53 - 1 smallest units. ``membership_expires_at`` must lie in the
        future; None means no expiry.

        If the application already has a document for the user, without credits, the ledger opens
        the account on that document. Its other fields stay, and so does its tier unless
        ``membership_tier`` gives another.

        Raises UserExistsError if the user has an account, UndefinedTierError if the configuration
        doesn't define ``membership_tier``, and IdempotencyConflictError.
        """
        request = CreateUserRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            credits=check_amount("credits", credits, least=0),
            membership_tier=check_optional(check_identifier, "membership_tier", membership_tier),
            membership_expires_at=check_optional(
                check_moment, "membership_expires_at", membership_expires_at
            ),
        )
        return await self._submit(request, session)

    async def get_user(self, user_id: str, *, session: AnySession | None = None) -> User:
        """Return a user's account as of now: balance, lots, what is available, tier.

        Amounts are in smallest units. Lots and holds that have ended count as ended. The call
        writes nothing. Raises UserNotFoundError.
        """
        user_id = self._users.check_id("user_id", user_id)
        own = self._database.session(session)
        return user_of(await self._read(own, self._history.account, user_id, own))

    async def get_balance(self, user_id: str, *, session: AnySession | None = None) -> int:
        """Return a user's balance as of now, in smallest units. Raises UserNotFoundError.

        Part of it may be held: ``get_user`` tells what is available.
        """
        return (await self.get_user(user_id, session=session)).credits

    async def delete_user(self, user_id: str, *, requested_by: str | None = None) -> Erasure:
        """Erase a user for good: account, transactions, audit logs and idempotency records.

        Archived rows are erased too, except those archived to files. As soon as the erasure has
        begun, no operation finds the user. If somebody opens an account with the same id before the
        erasure ends, that new account stays.

        The ledger erases at most 1,000 rows at a time. ``operation_timeout_seconds`` limits each
        such step, not the whole call. If the call fails or the process dies, call it again to
        complete the erasure.

        A record of the erasure stays: how many rows, when, and who asked for it (``requested_by``,
        1 to 255 characters). The database role for normal operations isn't allowed to erase: use
        the role for erasing.

        Raises UserNotFoundError, and JobTimeoutError if a step does not end in time.
        """
        await self._read(None, self._opening.check)
        return await erase(
            self._database,
            user_id,
            requested_by=requested_by,
            step_seconds=self._config.operation_timeout_seconds,
            clock=self._clock,
        )

    async def charge(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> ChargeResult:
        """Take the price of ``action`` for the user's tier, or ``amount`` units if given.

        ``amount`` is 1 to 2**53 - 1 smallest units. The action then needs no price, but the user
        still needs access to it. ``amount`` and ``variables`` cannot be combined.

        ``variables`` are the numbers for a price formula, by name: at most 200, within ±10**18.
        ``int``, ``float``, ``Decimal``, ``Fraction`` and NumPy's numbers will do. The formula
        ignores names that it doesn't use, whatever their values, so you can pass a provider's
        whole usage object. If a variable that it uses isn't a number, the call raises
        InvalidRequestError with the variable's name. A formula that needs variables and gets none
        falls back to the action's ``default`` price if that is a fixed one.

        Raises UserNotFoundError, UndefinedActionError, UndefinedTierError, MembershipRequiredError,
        MissingVariableError, FormulaEvaluationError, InsufficientCreditsError and
        IdempotencyConflictError.
        """
        units, exact = check_price(amount, variables)
        request = ChargeRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            action=check_identifier("action", action),
            amount=units,
            variables=exact,
        )
        return await self._submit(request, session)

    async def refund(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        transaction_id: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> RefundResult:
        """Give back ``amount`` units (1 to 2**53 - 1).

        ``transaction_id`` links the refund to that charge of the user: all refunds of a charge
        together never exceed it. Without it, the refund has no limit but the largest balance,
        2**63 - 1 units.

        Raises UserNotFoundError, TransactionNotFoundError if the user has no such charge,
        RefundExceedsChargeError, and IdempotencyConflictError.
        """
        request = RefundRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
            charge_id=check_optional(check_transaction_id, "transaction_id", transaction_id),
        )
        return await self._submit(request, session)

    async def grant(
        self,
        user_id: str,
        amount: int,
        *,
        action: str,
        expires_at: datetime | None = None,
        priority: int = BASE_PRIORITY,
        source: str | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> GrantResult:
        """Give the user ``amount`` units (1 to 2**53 - 1), up to a balance of 2**63 - 1.

        With an end (``expires_at``, in the future), a ``priority`` (0 to 100) other than 50, or a
        ``source`` (1 to 255 characters), the credits are a lot of their own. They are used by the
        lower priority number first, then by the sooner end, then by age. The rest of the balance
        has the priority 50 and no end. Lots with equal priority, end and source are one. From
        ``expires_at`` on, what is left of the lot is gone. A debt is repaid first.

        Raises UserNotFoundError, AccountLimitError if the user has 64 lots, and
        IdempotencyConflictError.
        """
        request = GrantRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            amount=check_amount("amount", amount),
            action=check_identifier("action", action),
            expires_at=check_optional(check_moment, "expires_at", expires_at),
            priority=check_whole_number("priority", priority, 0, MAX_PRIORITY),
            source=check_optional(check_identifier, "source", source),
        )
        return await self._submit(request, session)

    async def revoke(
        self,
        grant_transaction_id: str,
        amount: int | None = None,
        *,
        action: str,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> RevokeResult:
        """Take back a grant, say after a chargeback: ``amount`` units, or all that is left of it.

        They are taken from the lot that the grant went into, then from the balance outside of lots,
        then as a debt, as far as the overdraft allows. What holds keep is not taken, and what has
        expired in that lot is not taken again. What could not be taken is the result's
        ``uncollected``, and counts as revoked.

        Raises TransactionNotFoundError if there is no such grant, RevokeExceedsGrantError if less
        is left of it, and IdempotencyConflictError.
        """
        grant_id = check_transaction_id("grant_transaction_id", grant_transaction_id)
        amount = None if amount is None else check_amount("amount", amount)
        action = check_identifier("action", action)
        common = self._without_user(idempotency_key, idempotency_ttl, metadata)
        own = self._database.session(session)
        user_id = await self._read(own, self._history.owner_of_grant, grant_id, own)
        request = RevokeRequest(
            **common, user_id=user_id, grant_id=grant_id, amount=amount, action=action
        )
        return await self._submit(request, session)

    async def set_overdraft(
        self,
        user_id: str,
        limit: int,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> OverdraftResult:
        """Let the user's balance go ``limit`` units (0 to 2**53 - 1) below zero.

        Grants repay a debt first. A limit below the present debt is allowed: charges are then
        refused until enough is repaid.

        Raises UserNotFoundError and IdempotencyConflictError.
        """
        request = SetOverdraftRequest(
            **self._common(user_id, idempotency_key, idempotency_ttl, metadata),
            limit=check_amount("limit", limit, least=0),
        )
        return await self._submit(request, session)

"""The ledger's side of a paid request: its charge and its refund."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Final

from credit_mongo.errors import (
    IdempotencyConflictError,
    InsufficientCreditsError,
    RefundExceedsChargeError,
    StorageError,
    TransactionNotFoundError,
    UndefinedActionError,
    UserNotFoundError,
)
from credit_mongo.integrations.fastapi.orders import Order, Paid, variables_of
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.rows import Raw

__all__ = ["Charges"]

_MAX_CLOCK_DIFFERENCE: Final = timedelta(hours=1)
_MAX_ATTEMPTS: Final = 5


class Charges:
    """Charges for runs. Each charge has the run's id as its idempotency key."""

    def __init__(self, ledger: CreditLedger) -> None:
        self._ledger = ledger

    async def check(self, order: Order) -> None:
        """Raise what a charge for the order would raise now. Writes and audits nothing."""
        user_id, action = order.user_id, order.action
        if order.amount is None:
            quote = await self._ledger.quote(user_id, action, variables=order.variables)
            cost, balance = quote.cost, quote.balance
        else:
            with contextlib.suppress(UndefinedActionError):  # a given amount needs no price
                await self._ledger.validate_access(user_id, action)
            cost, balance = order.amount, await self._ledger.get_balance(user_id)
        if cost > balance:
            raise InsufficientCreditsError(user_id, cost, balance)

    async def charge(self, run: Raw) -> tuple[Paid, bool]:
        """Charge for a run. Also returns whether the charge had already been made."""
        amount = run["amount"]
        charge = await self._ledger.charge(
            run["userId"],
            run["action"],
            amount=None if amount is None else int(amount),
            variables=variables_of(run["variables"]),
            idempotency_key=run["run"],
        )
        paid = Paid(charge.transaction_id, charge.user_id, charge.action, charge.cost)
        return paid, charge.replayed

    async def find(self, run: Raw) -> Paid | None:
        """Find the charge of a run in the history, even if its key has expired."""
        found = await self._ledger._read(
            None,
            self._ledger._history.charge_with_key,
            run["userId"],
            run["run"],
            run["startedAt"] - _MAX_CLOCK_DIFFERENCE,
        )
        return None if found is None else Paid(found[0], run["userId"], run["action"], found[1])

    async def refund(self, charge: Paid) -> None:
        """Refund the part of the charge that hasn't been refunded yet."""
        suffix = ""
        for _ in range(_MAX_ATTEMPTS):
            refunded = await self._ledger._read(
                None,
                self._ledger._history.refunded_of,
                charge.user_id,
                charge.transaction_id,
            )
            if refunded >= charge.cost:
                return
            try:
                await self._ledger.refund(
                    charge.user_id,
                    charge.cost - refunded,
                    action=charge.action,
                    transaction_id=charge.transaction_id,
                    idempotency_key=f"refund:{charge.transaction_id}:{refunded}{suffix}",
                )
            except RefundExceedsChargeError:
                continue  # the application has just refunded a part itself
            except IdempotencyConflictError:
                suffix += ":request"  # the application refunded a part itself, with this key
            except (UserNotFoundError, TransactionNotFoundError):
                return  # the user was erased
            else:
                return
        raise StorageError(
            "the charge could not be refunded: other refunds of it run at the same time. Try again"
        )

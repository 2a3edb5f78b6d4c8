"""The ledger's side of a paid request: its charge, and what is given back of it."""

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

_CLOCKS_DIFFER: Final = timedelta(hours=1)
_MOST_TRIES: Final = 5


class Charges:
    """Charges for runs, each with the run's id as its idempotency key."""

    def __init__(self, ledger: CreditLedger) -> None:
        self._ledger = ledger

    async def check(self, order: Order) -> None:
        """Raise what a charge for the order would raise now; nothing is written or audited."""
        user_id, action = order.user_id, order.action
        if order.amount is None:
            quote = await self._ledger.quote(user_id, action, variables=order.variables)
            cost, balance = quote.cost, quote.balance
        else:
            with contextlib.suppress(UndefinedActionError):  # an amount needs no price
                await self._ledger.validate_access(user_id, action)
            cost, balance = order.amount, await self._ledger.get_balance(user_id)
        if cost > balance:
            raise InsufficientCreditsError(user_id, cost, balance)

    async def charge(self, run: Raw) -> tuple[Paid, bool]:
        """The charge of a run, and whether it was there already."""
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
        """The charge of a run that is in the records, whether or not its key is still known."""
        found = await self._ledger._read(
            None,
            self._ledger._history.charge_with_key,
            run["userId"],
            run["run"],
            run["startedAt"] - _CLOCKS_DIFFER,
        )
        return None if found is None else Paid(found[0], run["userId"], run["action"], found[1])

    async def refund(self, charge: Paid) -> None:
        """Give back what nobody has given back of the charge yet."""
        suffix = ""
        for _ in range(_MOST_TRIES):
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
                continue  # the application has refunded a part meanwhile
            except IdempotencyConflictError:
                suffix += ":request"  # the application's own refund of a part has that key
            except (UserNotFoundError, TransactionNotFoundError):
                return  # the user was erased
            else:
                return
        raise StorageError("the charge could not be refunded: others refund it at the same time")

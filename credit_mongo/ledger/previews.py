"""What an operation would do now: decided on the present state, and not written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from credit_mongo.core.decision import Request
from credit_mongo.core.results import User, user_of
from credit_mongo.drivers import AnySession
from credit_mongo.engine.commit import Foreseen
from credit_mongo.errors import CreditError
from credit_mongo.ledger.accounts import AccountMethods
from credit_mongo.ledger.calls import LedgerCalls
from credit_mongo.ledger.holds import HoldMethods
from credit_mongo.ledger.tiers import TierMethods

__all__ = ["PreviewLedger", "Previewed", "preview"]

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Previewed(Generic[_R]):
    """What an operation would return, and its user before and after, as of now.

    If the operation's idempotency key was used for it before, the result is the first call's
    (``replayed``), and ``after`` is ``before``. ``before`` is None if there is no account yet.
    """

    result: _R
    before: User | None
    after: User | None


async def preview(
    ledger: LedgerCalls, operation: Callable[[PreviewLedger], Awaitable[_R]]
) -> Previewed[_R]:
    """Return what one operation of the ledger would do now: ``preview(ledger, lambda it: it.…)``.

    Nothing is written, no audit row either, and no other operation has to wait. Somebody else may
    change the account before the operation is called. Raises the errors of the operation.
    """
    own = PreviewLedger(ledger)
    result = await operation(own)
    foreseen = own.foreseen
    return Previewed(
        result,
        None if foreseen is None or foreseen.before is None else user_of(foreseen.before),
        None if foreseen is None or foreseen.after is None else user_of(foreseen.after),
    )


class PreviewLedger(AccountMethods, HoldMethods, TierMethods):
    """A ledger whose operations decide and don't write."""

    def __init__(self, ledger: LedgerCalls) -> None:
        vars(self).update(vars(ledger))
        self.foreseen: Foreseen[Any] | None = None

    async def _submit(self, request: Request[_R], session: AnySession | None) -> _R:
        assert session is None  # noqa: S101 - a preview is no part of a transaction
        seconds = self._config.operation_timeout_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        self._check_open()
        if not self._opening.is_done:
            await self._read(None, self._opening.check)
        foreseen = await self._committer.foresee(request, deadline)
        self.foreseen = foreseen
        outcome = foreseen.outcome
        if isinstance(outcome, CreditError):
            raise outcome
        return outcome

    # What writes by another way than `_submit`.

    def hold(self, *_: object, **__: object) -> NoReturn:
        """Refuse: a block that runs can't be previewed, but ``place_hold`` can."""
        raise NotImplementedError("preview place_hold instead")

    async def delete_user(self, *_: object, **__: object) -> NoReturn:
        """Refuse: an erasure is no operation. ``credit-mongo erase --dry-run`` previews it."""
        raise NotImplementedError("an erasure has a preview of its own")

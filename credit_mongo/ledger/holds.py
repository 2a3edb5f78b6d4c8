"""The methods of the ledger on holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from credit_mongo.core.holds import OVERAGES, TIMEOUTS, HoldStatus, Overage, Timeout, check_ttl
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest, CaptureResult
from credit_mongo.core.operations.extend_hold import ExtendHoldRequest
from credit_mongo.core.operations.hold_results import Hold, hold_of
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.operations.release_hold import ReleaseHoldRequest
from credit_mongo.core.values import (
    check_amount,
    check_flag,
    check_identifier,
    check_one_of,
    check_whole_number,
)
from credit_mongo.core.variables import check_price
from credit_mongo.drivers import AnySession
from credit_mongo.engine.open_holds import OpenHold
from credit_mongo.storage.holds import HOLD_STATUSES
from credit_mongo.storage.reads import MAX_HOLDS_READ

if TYPE_CHECKING:
    pass
from credit_mongo.ledger.calls import LedgerCalls, check_transaction_id

__all__ = ["HoldMethods"]


class HoldMethods(LedgerCalls):
    """Credits that are kept for work whose cost is known afterwards."""

    def hold(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        ttl: float = 60.0,
        overage: Overage = "available",
        on_timeout: Timeout = "settle",
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> OpenHold:
        """Hold credits while a block runs: ``async with ledger.hold(…) as hold``.

        ``hold.use(amount=…)`` or ``hold.use(variables=…)`` notes what was used so far: a total,
        noted locally. At the end of the block, by an error or a cancellation too, the ledger
        captures what was used and releases the rest, once. If ``use`` was never called, the end of
        the block captures the whole hold, and an error or a cancellation releases it.
        ``hold.result`` is then the CaptureResult, or None after a release.

        While the block runs, the ledger extends the hold every third of ``ttl`` and reports what
        was used. If the process dies, the hold ends by itself, as ``on_timeout`` says.

        The arguments are those of ``place_hold``. With an ``idempotency_key`` whose hold an earlier
        call has placed, the block is not run: its beginning raises RequestInProgressError while
        that hold is active, and HoldClosedError after that. Otherwise the beginning raises the
        errors of ``place_hold``. After CommitOutcomeUnknownError, the ledger releases the hold if
        it was placed.

        The end of the block waits for the settlement, at most twice
        ``operation_timeout_seconds``. If the database doesn't answer, it raises StorageError or
        CommitOutcomeUnknownError, unless the block has raised an error of its own. The ledger then
        keeps trying, until ``holds.late_seconds`` of the configuration are over. The end raises
        HoldClosedError if the hold was settled by another call meanwhile, so that what was used
        can't be captured, and LedgerBusyError if the ledger was closed before the block ended.
        """
        request = self._hold_request(
            action,
            amount=amount,
            variables=variables,
            ttl=ttl,
            overage=overage,
            on_timeout=on_timeout,
            common=self._common(user_id, idempotency_key, idempotency_ttl, metadata),
        )
        return OpenHold(self._open_holds, request)

    async def place_hold(
        self,
        user_id: str,
        action: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        ttl: float = 60.0,
        overage: Overage = "available",
        on_timeout: Timeout = "settle",
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """Keep the price of ``action``, or ``amount`` units, for work whose cost is known later.

        Nobody else can spend what is held. ``capture_hold`` takes what the work cost and
        ``release_hold`` gives up the hold. If neither happens within ``ttl`` seconds (1 second to
        30 days), the hold ends. ``on_timeout`` says what happens then: ``"settle"`` charges what
        ``extend_hold`` last reported as used, ``"release"`` charges nothing.

        ``overage`` is for work that costs more than what is held. ``"available"`` takes what the
        user has and no hold keeps, ``"debt"`` goes on into the overdraft, and ``"reject"`` refuses
        the capture. The price is that of this moment, also if the tier changes later.

        Amounts and variables are those of ``charge``, and ``amount`` and ``variables`` cannot be
        combined. Raises the errors of ``charge``, and AccountLimitError if the user has 256 active
        holds.
        """
        request = self._hold_request(
            action,
            amount=amount,
            variables=variables,
            ttl=ttl,
            overage=overage,
            on_timeout=on_timeout,
            common=self._common(user_id, idempotency_key, idempotency_ttl, metadata),
        )
        return await self._place(request, session)

    async def extend_hold(
        self,
        hold_id: str,
        *,
        ttl: float | None = None,
        amount: int | None = None,
        used: int | None = None,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """Let an active hold live ``ttl`` seconds from now, hold ``amount`` units, report ``used``.

        Each that is None stays as it is. ``amount`` and ``used`` are totals, what was captured
        included. The end never moves back. ``used`` cannot be less than was reported before.

        Raises HoldNotFoundError, HoldClosedError, InsufficientCreditsError if the user has not
        enough for a larger ``amount``, and IdempotencyConflictError.
        """
        longer = None if ttl is None else check_ttl(ttl)
        amount = None if amount is None else check_amount("amount", amount, least=0)
        used = None if used is None else check_amount("used", used, least=0)
        common = self._without_user(idempotency_key, idempotency_ttl, metadata)
        common |= await self._owned_hold(hold_id, session)
        request = ExtendHoldRequest(
            **common,
            ttl=longer,
            amount=amount,
            used=used,
        )
        return await self._submit(request, session)

    async def capture_hold(
        self,
        hold_id: str,
        *,
        amount: int | None = None,
        variables: Mapping[str, object] | None = None,
        final: bool = True,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> CaptureResult:
        """Take what the work cost: ``amount`` units, or the hold's price for the variables.

        Without both, the whole hold is captured. The amount is the **total** of all captures of the
        hold: repeating a capture changes nothing, and a smaller one is refused. A ``final`` capture
        ends the hold and releases the rest.

        After the hold's end, a capture is charged as far as it goes beyond what was charged then
        (``late`` in the result), until ``holds.late_seconds`` of the configuration are over.

        Raises HoldNotFoundError, HoldClosedError, HoldExceededError if the hold's overage is
        ``"reject"`` and it holds less, InvalidRequestError, the errors of a formula, and
        IdempotencyConflictError.
        """
        units, exact = check_price(amount, variables, least=0)
        is_final = check_flag("final", final)
        common = self._without_user(idempotency_key, idempotency_ttl, metadata)
        common |= await self._owned_hold(hold_id, session)
        request = CaptureHoldRequest(
            **common,
            amount=units,
            variables=exact,
            is_final=is_final,
        )
        return await self._submit(request, session)

    async def release_hold(
        self,
        hold_id: str,
        *,
        idempotency_key: str | None = None,
        idempotency_ttl: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
    ) -> Hold:
        """End an active hold and take nothing more. Releasing it again changes nothing.

        Raises HoldNotFoundError, HoldClosedError if the hold was captured or has expired, and
        IdempotencyConflictError.
        """
        common = self._without_user(idempotency_key, idempotency_ttl, metadata)
        common |= await self._owned_hold(hold_id, session)
        request = ReleaseHoldRequest(**common)
        return await self._submit(request, session)

    async def get_hold(self, hold_id: str, *, session: AnySession | None = None) -> Hold:
        """Return a hold as of now. Raises HoldNotFoundError."""
        hold_id = check_transaction_id("hold_id", hold_id)
        own = self._database.session(session)
        return hold_of(await self._read(own, self._history.hold, hold_id, own))

    async def get_holds(
        self,
        user_id: str,
        *,
        status: HoldStatus | None = None,
        limit: int = 50,
        session: AnySession | None = None,
    ) -> tuple[Hold, ...]:
        """Return the user's holds as of now, the newest first: all, or those with this status.

        ``status`` is "active", "captured", "released" or "expired". ``limit`` is 1 to 1,000 holds.

        Raises UserNotFoundError.
        """
        user_id = self._users.check_id("user_id", user_id)
        if status is not None:
            status = check_one_of("status", status, HOLD_STATUSES)
        limit = check_whole_number("limit", limit, 1, MAX_HOLDS_READ)
        own = self._database.session(session)
        found = await self._read(own, self._history.holds, user_id, status, limit, own)
        return tuple(hold_of(record) for record in found)

    def _hold_request(
        self,
        action: object,
        *,
        amount: object,
        variables: Mapping[str, object] | None,
        ttl: object,
        overage: object,
        on_timeout: object,
        common: Mapping[str, Any],
    ) -> PlaceHoldRequest:
        units, exact = check_price(amount, variables)
        return PlaceHoldRequest(
            **common,
            action=check_identifier("action", action),
            amount=units,
            variables=exact,
            ttl=check_ttl(ttl),
            overage=check_one_of("overage", overage, OVERAGES),
            on_timeout=check_one_of("on_timeout", on_timeout, TIMEOUTS),
        )

    async def _owned_hold(self, hold_id: object, session: AnySession | None) -> dict[str, str]:
        """Return the id in the form that is stored, and the hold's user, who never changes."""
        hold_id = check_transaction_id("hold_id", hold_id)
        user_id = self._owners_of_holds.get(hold_id)
        if user_id is None:
            own = self._database.session(session)
            user_id = await self._read(own, self._history.owner_of_hold, hold_id, own)
            self._remember_owner(hold_id, user_id)
        return {"hold_id": hold_id, "user_id": user_id}

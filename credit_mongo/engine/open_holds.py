"""Holds that are open while a block runs: ``async with ledger.hold(…) as hold``.

    placed ──→ open, with heartbeats ──→ settling, without ──→ settled

The settlement begins when the block ends, in whatever way, or when the ledger closes. It begins
once, in a task of its own, so that no cancellation can stop it. First it stops the heartbeats and
waits for one that is on its way, so that none can follow it. Then it captures or releases, and
repeats that until the database answers. A repeat is harmless: the amount of a capture is a total,
and the capture has a key derived from the hold's id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from bson import ObjectId

from credit_mongo.core.decision import R, Request
from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest, CaptureResult
from credit_mongo.core.operations.extend_hold import ExtendHoldRequest
from credit_mongo.core.operations.hold_results import Hold, cost_at_hold_s_price
from credit_mongo.core.operations.place_hold import PlaceHoldRequest
from credit_mongo.core.operations.release_hold import ReleaseHoldRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import check_amount
from credit_mongo.core.variables import Variables, exact_variables
from credit_mongo.engine import tasks
from credit_mongo.engine.heartbeats import Heartbeats
from credit_mongo.errors import (
    CommitOutcomeUnknownError,
    CreditError,
    HoldClosedError,
    HoldExceededError,
    HoldNotFoundError,
    IdempotencyConflictError,
    InvalidRequestError,
    LedgerBusyError,
    RequestInProgressError,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["OpenHold", "OpenHolds"]

_LOG: Final = logging.getLogger("credit_mongo")
_SHORTEST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 5.0


class _Submit(Protocol):
    """Sends a request to the lanes, also while the ledger closes."""

    def __call__(self, request: Request[R], *, spent_seconds: float = 0.0) -> Awaitable[R]: ...


class _Usage(NamedTuple):
    """What was used so far: a total in smallest units, and the variables it was reckoned from."""

    total: int
    variables: Variables | None


class OpenHolds:
    """The open holds of one ledger: what they share."""

    def __init__(
        self,
        policy: Policy,
        *,
        place: Callable[[PlaceHoldRequest], Awaitable[Hold]],
        submit: _Submit,
        find: Callable[[str], Awaitable[HoldRecord]],
        timeout_seconds: float,
        gives_keys: bool,
    ) -> None:
        self.policy = policy
        self.place = place
        self.submit = submit
        self.find = find
        self.timeout_seconds = timeout_seconds
        self.gives_keys = gives_keys
        self.open: set[OpenHold] = set()
        self._work: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Event = asyncio.Event()

    @property
    def is_closing(self) -> bool:
        """Whether the ledger is being closed, or was."""
        return self._closing.is_set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin work that goes on if its caller is cancelled. ``close`` waits for it."""
        task = tasks.start(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        task.add_done_callback(tasks.seen)
        return task

    async def pause(self, seconds: float) -> None:
        """Wait, but not while the ledger closes."""
        closing = tasks.start(self._closing.wait())
        try:
            await asyncio.wait({closing}, timeout=seconds)
        finally:
            closing.cancel()

    async def close(self, seconds: float) -> None:
        """Settle what is open as if each block had been interrupted, within ``seconds``."""
        self._closing.set()
        for hold in tuple(self.open):
            hold.settle(is_complete=False)
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while self._work and clock() < deadline:
            await asyncio.wait(self._work, timeout=deadline - clock())


class OpenHold:
    """Credits that are held while a block runs: ``async with ledger.hold(…) as hold``.

    Enter it once. ``result`` is the capture that settled the hold. It is None while the hold is
    open, and if the hold was released.
    """

    def __init__(self, holds: OpenHolds, request: PlaceHoldRequest) -> None:
        self._holds = holds
        self._request = request
        self._placing: asyncio.Task[None] | None = None
        self._hold: Hold | None = None
        self._used: _Usage | None = None
        self._heartbeats: Heartbeats | None = None
        self._settling: asyncio.Task[None] | None = None
        self._is_complete = False
        self._is_abandoned = False
        self._failure: CreditError | None = None
        self.result: CaptureResult | None = None

    def __repr__(self) -> str:
        """Show which hold it is and whether it is open."""
        state = "new" if self._hold is None else "open" if self._settling is None else "over"
        return f"<OpenHold {self._request.transaction_id!r} {state}>"

    @property
    def hold_id(self) -> str:
        """The id of the hold, for ``capture_hold`` and the other calls. Ids are never reused."""
        return self._request.transaction_id

    @property
    def used(self) -> int | None:
        """The total that ``use`` was last called with, in smallest units. None before that."""
        return None if self._used is None else self._used.total

    @property
    def is_settled(self) -> bool:
        """Whether the hold is over. False while the ledger still tries, and if it can't."""
        settling = self._settling
        return settling is not None and settling.done() and self._failure is None

    def use(
        self, *, amount: int | None = None, variables: Mapping[str, object] | None = None
    ) -> None:
        """Note what was used so far: ``amount`` units (0 to 2**53 - 1), or the variables' price.

        It is a **total**, never less than before. The call sends nothing: the next heartbeat
        reports the total, and the end of the block captures it. The price is that of the moment
        when the hold began.

        Raises InvalidRequestError, the errors of a formula, HoldExceededError if the hold's overage
        is ``"reject"`` and it is for less, and HoldClosedError if the hold is over. After an error,
        the total is as before.
        """
        hold = self._hold
        if hold is None:
            raise InvalidRequestError("hold", "has not begun: use it inside of 'async with'")
        if self._settling is not None:
            raise HoldClosedError(self.hold_id, "captured" if self._captures else "released")
        if (amount is None) == (variables is None):
            raise InvalidRequestError("amount", "or variables must be given, and not both")
        field, exact = "amount", None
        if variables is None:
            total = check_amount("amount", amount, least=0)
        else:
            field, exact = "variables", exact_variables(variables)
            price = hold.price
            total = cost_at_hold_s_price(self._holds.policy, hold.action, price, exact).cost
        before = 0 if self._used is None else self._used.total
        if total < before:
            reason = f"come to {total}" if exact is not None else f"is {total}"
            raise InvalidRequestError(
                field, f"{reason}: a total, and less than the {before} before"
            )
        if self._request.overage == "reject" and total > hold.amount:
            raise HoldExceededError(self.hold_id, hold.amount, total)
        self._used = _Usage(total, exact)

    async def __aenter__(self) -> Self:
        if self._placing is not None:
            raise InvalidRequestError("hold", "was entered before: call ledger.hold again")
        self._placing = self._holds.start(self._place())
        try:
            await tasks.result_of(self._placing)
        except BaseException:
            self._is_abandoned = True
            if self._hold is not None:
                self.settle(is_complete=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        settling = self.settle(is_complete=kind is None)
        # Time for the heartbeat on its way, and for one attempt that the database doesn't answer.
        patience = 2 * self._holds.timeout_seconds
        await asyncio.wait({settling}, timeout=patience)
        if kind is not None:
            return  # a failure was logged, and does not hide the block's own
        if self._failure is not None:
            raise self._failure
        if not settling.done():
            raise StorageError(f"the hold was not settled within {patience:g} s: it still may be")
        settling.result()
        if not self._is_complete and self._used is None:
            raise LedgerBusyError("the ledger was closed before the block ended: it was not paid")

    # The beginning

    async def _place(self) -> None:
        request = self._request
        try:
            hold = await self._holds.place(request)
        except CommitOutcomeUnknownError:
            self._holds.start(self._release_if_placed())
            raise
        if hold.hold_id != request.transaction_id:
            # An earlier call with this key placed it. Its work must not be done again unpaid.
            found = await self._holds.find(hold.hold_id)
            if found.status == "active":
                raise RequestInProgressError
            raise HoldClosedError(hold.hold_id, found.status)
        self._hold = hold
        self._holds.open.add(self)
        if self._is_abandoned or self._holds.is_closing:
            self.settle(is_complete=False)
            raise LedgerBusyError("the ledger is closed")
        self._heartbeats = Heartbeats(self._beat, request.ttl.total_seconds() / 3)

    async def _release_if_placed(self) -> None:
        """Settle a hold that perhaps was placed. If this fails too, the hold ends by itself."""
        try:
            await self._until_answered(self._release_request())
        except HoldNotFoundError:
            pass
        except CreditError as error:
            self._warn(error)

    # The heartbeat

    async def _beat(self) -> None:
        """Extend the hold, and report what was used."""
        try:
            await self._extend(self.used)
        except InvalidRequestError:
            # The application has captured or reported more by itself.
            await self._extend(None)

    async def _extend(self, used: int | None) -> None:
        given = self._request
        request = ExtendHoldRequest(
            user_id=given.user_id,
            transaction_id=str(ObjectId()),
            hold_id=self.hold_id,
            ttl=given.ttl,
            amount=None,
            used=used,
        )
        # Not for longer than until the next heartbeat, so that the end of the block need not wait.
        timeout = self._holds.timeout_seconds
        seconds = min(timeout, given.ttl.total_seconds() / 3)
        await self._holds.submit(request, spent_seconds=timeout - seconds)

    # The settlement

    def settle(self, *, is_complete: bool) -> asyncio.Task[None]:
        """Begin the settlement, unless it has begun. ``is_complete``: whether the work was done."""
        if self._settling is None:
            self._is_complete = is_complete
            self._settling = self._holds.start(self._settle())
        return self._settling

    @property
    def _captures(self) -> bool:
        return self._used is not None or self._is_complete

    async def _settle(self) -> None:
        try:
            if self._heartbeats is not None:
                await self._heartbeats.stop()
            if self._captures:
                await self._capture()
            else:
                await self._release()
            self._failure = None
        except CreditError as error:
            self._failure = error
            self._warn(error)
        finally:
            self._holds.open.discard(self)

    async def _capture(self) -> None:
        request = self._capture_request()
        try:
            self.result = await self._until_answered(request)
        except HoldExceededError as error:
            # Somebody has made the hold smaller meanwhile. What it has is taken.
            self.result = await self._until_answered(
                replace(request, amount=error.held, variables=None, key=None)
            )
            raise
        except InvalidRequestError:
            # The application has captured more by itself. That stands, and the rest is released.
            await self._release()
        except HoldClosedError:
            # Settled by hand. That is an error only if it leaves something unpaid.
            if self._used is not None:
                raise

    async def _release(self) -> None:
        with contextlib.suppress(HoldClosedError):  # then it holds nothing any more
            await self._until_answered(self._release_request())

    def _capture_request(self) -> CaptureHoldRequest:
        given, used = self._request, self._used
        by_variables = used is not None and used.variables is not None
        return CaptureHoldRequest(
            user_id=given.user_id,
            transaction_id=str(ObjectId()),
            key=f"hold:{self.hold_id}" if self._holds.gives_keys else None,
            metadata=given.metadata,
            hold_id=self.hold_id,
            amount=None if used is None or by_variables else used.total,
            variables=None if used is None else used.variables,
            is_final=True,
        )

    def _release_request(self) -> ReleaseHoldRequest:
        given = self._request
        return ReleaseHoldRequest(
            user_id=given.user_id,
            transaction_id=str(ObjectId()),
            metadata=given.metadata,
            hold_id=self.hold_id,
        )

    async def _until_answered(self, request: Request[R]) -> R:
        """Repeat the request until the database answers, the ledger closes, or it is too late."""
        clock = asyncio.get_running_loop().time
        late = self._request.ttl + self._holds.policy.hold_late
        deadline = clock() + late.total_seconds()
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            try:
                return await self._holds.submit(request)
            except IdempotencyConflictError:
                if request.key is None:
                    raise
                # The application has used this key for something else. The totals are enough.
                request = replace(request, key=None)
            except (StorageError, CommitOutcomeUnknownError) as error:
                self._failure = error
                if self._holds.is_closing or clock() > deadline:
                    raise
                await self._holds.pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                request = replace(request, transaction_id=str(ObjectId()))

    def _warn(self, error: CreditError) -> None:
        _LOG.warning("the hold %s could not be settled: %s", self.hold_id, error.code)

"""Requests that pay for what they used, when their response has ended.

The hold itself says how far a request is, whichever process runs it: it is active as long as
heartbeats extend it, and over when it was captured or released, or when its process has died. The
request's document only leads to the hold, and says which request the key belongs to:

    placing ──→ held ──→ completed   something was paid. Remembered as long as keys are
       ↑ a retry: a new run with a new hold    │
       └──────────── released ←────────────────┘   nothing was paid

A run that was replaced while its hold was being placed finds that out before its handler runs, and
gives the hold up. So one key runs one handler at a time, and pays at most once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from pymongo.errors import DuplicateKeyError

from credit_mongo.config import CreditConfig
from credit_mongo.engine import tasks
from credit_mongo.engine.open_holds import OpenHold
from credit_mongo.errors import (
    CommitOutcomeUnknownError,
    CreditError,
    IdempotencyConflictError,
    RequestCompletedError,
    RequestInProgressError,
    StorageError,
)
from credit_mongo.integrations.fastapi.orders import Held, Order, Terms
from credit_mongo.integrations.fastapi.stored_requests import (
    MAX_ATTEMPTS,
    StoredRequests,
    request_id,
    seconds_from_now,
)
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.leases import ServerLease
from credit_mongo.storage.rows import Raw

__all__ = ["HeldRequests"]

_LOG: Final = logging.getLogger("credit_mongo.integrations.fastapi")


class _InterruptedError(Exception):
    """The response did not end: it failed, or the client is gone."""


class _Life:
    """A request between its beginning and the end of its response."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[Held] = loop.create_future()
        self._ended: asyncio.Future[bool] = loop.create_future()

    def end(self, *, is_complete: bool) -> None:
        """Let the hold be settled. ``is_complete``: whether the response has ended."""
        if not self._ended.done():
            self._ended.set_result(is_complete)

    async def wait_for_end(self) -> None:
        """Raises _InterruptedError unless the response has ended."""
        if not await self._ended:
            raise _InterruptedError


class HeldRequests(StoredRequests):
    """The requests with holds of an application's process."""

    def __init__(self, ledger: CreditLedger, config: CreditConfig, *, lease_seconds: float) -> None:
        super().__init__(ledger, config)
        self._ledger = ledger
        self._lease = ServerLease("placingUntil", lease_seconds)
        self._lives: set[_Life] = set()

    @asynccontextmanager
    async def held(
        self, order: Order, terms: Terms, is_cut_off: Callable[[], bool]
    ) -> AsyncIterator[Held]:
        """Hold credits while the block runs, and settle when it has ended, in whatever way.

        ``is_cut_off`` says at the end of the block whether the client was gone before that. Raises
        what `CreditLedger.place_hold` raises, IdempotencyConflictError, RequestInProgressError and
        RequestCompletedError.
        """
        life = _Life()
        self._lives.add(life)
        # In a task of its own, so that no cancellation of the request disturbs it.
        living = self._start(self._live(order, terms, life))
        living.add_done_callback(tasks.seen)
        is_complete = False
        try:
            first: set[asyncio.Future[Any]] = {living, life.begun}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not life.begun.done():
                living.result()  # raises what the request was refused for
            yield life.begun.result()
            is_complete = not is_cut_off()
        finally:
            life.end(is_complete=is_complete)
            self._lives.discard(life)
            await asyncio.wait({living})

    async def close(self) -> None:
        """Interrupt the requests that are still running, and wait for their settlements."""
        for life in self._lives:
            life.end(is_complete=False)
        await super().close()

    # A run

    async def _live(self, order: Order, terms: Terms, life: _Life) -> None:
        run = None if order.key is None else await self._open(order)
        if run is not None and run["state"] == "completed":
            life.begun.set_result(Held(run["holdId"], order.user_id, order.action, replayed=True))
            return
        hold = self._ledger.hold(
            order.user_id,
            order.action,
            amount=order.amount,
            variables=order.variables,
            ttl=terms.ttl,
            overage=terms.overage,
            on_timeout=terms.on_timeout,
        )
        try:
            with contextlib.suppress(_InterruptedError):
                async with hold:
                    if run is not None:
                        await self._note_hold(run, hold.hold_id)
                    held = Held(hold.hold_id, order.user_id, order.action, _open=hold)
                    life.begun.set_result(held)
                    await life.wait_for_end()
        except CreditError as error:
            if not life.begun.done():
                if run is not None:
                    await self._refuse(run, error)
                raise
        if run is not None:
            await self._finish(run, hold)

    async def _refuse(self, run: Raw, error: CreditError) -> None:
        """Forget a run whose handler was not run. Callers without credits would fill the books."""
        if isinstance(error, CommitOutcomeUnknownError | RequestInProgressError):
            return
        with contextlib.suppress(StorageError):
            await self._end(run, "released", {}, remembered_for=self._lease.seconds)

    async def _finish(self, run: Raw, hold: OpenHold) -> None:
        """Note what came of the run, if that is known. If not, the next repeat asks the hold."""
        if not hold.is_settled:
            return
        result = hold.result
        try:
            if result is None or not result.captured:
                await self._end(run, "released", {})
            else:
                paid = result.transaction_id, result.captured
                await self._complete(run, hold.hold_id, *paid)
        except CreditError as error:
            _LOG.warning("the end of a request could not be noted: %s", error.code)

    async def _complete(
        self, run: Raw, hold_id: str, transaction_id: str | None, cost: int
    ) -> None:
        if transaction_id is None:
            # Time has captured it.
            history = self._ledger._history
            transaction_id = await self._ledger._read(
                None, history.capture_of, run["userId"], hold_id, run["startedAt"]
            )
        facts = {"transactionId": transaction_id or hold_id, "cost": cost, "holdId": hold_id}
        await self._end(run, "completed", facts)

    async def _open(self, order: Order) -> Raw:
        """A new run, or the run of a completed request that may be answered again."""
        request = request_id(order.user_id, order.key or "")
        replaced: Raw | None = None
        moments = {**self._lease.renewed, "expiresAt": seconds_from_now(self._ttl_seconds)}
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._store_run(order, request, "placing", moments, replaced)
            except DuplicateKeyError:
                found: Raw | None = await self._keep(self._collection.find_one({"_id": request}))
            if found is None:
                continue
            if await self._is_erased(found):
                replaced = {"run": found["run"]}
                continue
            if found["fingerprint"] != order.fingerprint:
                raise IdempotencyConflictError(order.key or "")
            if found["state"] == "completed" and order.answers_again:
                return found
            replaced = await self._replaceable(found)
        raise RequestInProgressError

    async def _replaceable(self, run: Raw) -> Raw | None:
        """Which run may be replaced: a released one if None.

        Raises RequestCompletedError and RequestInProgressError if it may not be.
        """
        if run["state"] == "completed":
            raise RequestCompletedError(run["transactionId"])
        if run["state"] == "held":
            await self._follow(run)
        if run["state"] != "placing":
            return None
        replaced = {name: run[name] for name in ("run", "state")}
        query = {**replaced, "_id": run["_id"], **self._lease.is_over}
        if await self._keep(self._collection.find_one(query, {"_id": 1})) is None:
            raise RequestInProgressError
        return replaced

    async def _note_hold(self, run: Raw, hold_id: str) -> None:
        """Let the run lead to its hold. Raises RequestInProgressError if the run was replaced."""
        query = {name: run[name] for name in ("_id", "run", "state")}
        fields = {"state": "held", "holdId": hold_id}
        change = {"$set": fields, "$unset": {"placingUntil": "", "amount": "", "variables": ""}}
        changed: Any = await self._keep(self._collection.update_one(query, change))
        if not changed.matched_count:
            raise RequestInProgressError
        run.update(fields)

    async def _follow(self, run: Raw) -> None:
        """Note what came of a run whose process has not. Raises RequestInProgressError."""
        hold = await self._ledger.get_hold(run["holdId"])
        if hold.status == "active":
            raise RequestInProgressError
        if hold.captured:
            await self._complete(run, hold.hold_id, None, hold.captured)
        else:
            await self._end(run, "released", {})

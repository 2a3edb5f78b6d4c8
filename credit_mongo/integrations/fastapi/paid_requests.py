"""Requests that are paid before they run, and refunded if they fail.

A collection of its own holds the state of each request. The ledger's keys alone can't tell whether
the process that charged is still running the request, has died, or has refunded. A request (a user
and an ``Idempotency-Key``) has one document. Each attempt at the request is a run. The run's id is
also the idempotency key of its charge:

    running ──────────────→ completed   remembered as long as keys are
       │ ↑ a retry: a new run with a new charge
       ↓ │
    released                nothing is charged: refused or refunded
       ↑
    settling ←── running    its process died, or didn't renew the lease in time

The run is stored before anything is charged. So whichever process dies, another one finds the run
when its lease is over, and settles it. It repeats the charge with the same key, which tells what
was charged, and refunds that under a key made from the charge's id. A settled run never becomes
completed: a handler that outlived its lease answers 409. Leases use the server's clock only.

So each successful answer has one charge that is not refunded. And each charge that is not refunded
has a successful answer that was sent, is being prepared, or was lost on its way to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from credit_mongo.config import CreditConfig
from credit_mongo.engine import tasks
from credit_mongo.errors import (
    AccountDataError,
    CommitOutcomeUnknownError,
    CreditError,
    IdempotencyConflictError,
    RequestCompletedError,
    RequestInProgressError,
    StorageError,
)
from credit_mongo.integrations.fastapi.orders import Order, Paid
from credit_mongo.integrations.fastapi.stored_requests import (
    MAX_ATTEMPTS,
    StoredRequests,
    request_id,
)
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.leases import ServerLease
from credit_mongo.storage.rows import Raw

__all__ = ["PaidRequests"]

_LOG: Final = logging.getLogger("credit_mongo.integrations.fastapi")
_Begun: TypeAlias = tuple[Raw, Paid | None]
_SETTLED_AT_ONCE: Final = 100


class PaidRequests(StoredRequests):
    """The paid requests of an application's process."""

    def __init__(
        self,
        ledger: CreditLedger,
        config: CreditConfig,
        *,
        lease_seconds: float,
    ) -> None:
        super().__init__(ledger, config)
        self._lease = ServerLease("leaseUntil", lease_seconds)
        # The runs of this process. It renews their leases.
        self._runs: set[str] = set()

    @asynccontextmanager
    async def paid(self, order: Order) -> AsyncIterator[Paid]:
        """Charge, and refund if the block fails or is cancelled.

        Raises what `CreditLedger.charge` raises, IdempotencyConflictError, RequestInProgressError
        and RequestCompletedError.
        """
        beginning = self._start(self._begin(order))
        try:
            run, charge = await tasks.result_of(beginning)
        except asyncio.CancelledError:
            self._start(self._undo(beginning))
            raise
        if charge is None:
            yield Paid(run["transactionId"], run["userId"], run["action"], int(run["cost"]), True)
            return
        try:
            yield charge
        except BaseException:
            await tasks.result_of(self._start(self._fail(run, charge)))
            raise
        await tasks.result_of(self._start(self._complete(run, charge)))

    async def maintain(self) -> None:
        """Renew the leases of this process's runs and settle abandoned runs, until cancelled."""
        # Separate tasks: settling may wait for a contended user, and renewals must not.
        await asyncio.gather(
            tasks.start(self._repeat(self._renew)),
            tasks.start(self._repeat(self.settle_abandoned)),
        )

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except CreditError as error:
                _LOG.warning("the leases of paid requests could not be checked: %s", error.code)
            await asyncio.sleep(self._lease.seconds / 3)

    async def settle_abandoned(self) -> None:
        """Refund the charges of runs whose lease is over."""
        found = await self._keep(
            self._collection.find(self._lease.is_over, limit=_SETTLED_AT_ONCE).to_list()
        )
        settling = [tasks.start(self._settle_if_over(run)) for run in found]
        for outcome in await asyncio.gather(*settling, return_exceptions=True):
            if isinstance(outcome, BaseException):
                # Its new lease ends too, and then it's tried again.
                _LOG.warning("a paid request could not be settled: %s", type(outcome).__name__)

    # A run

    async def _begin(self, order: Order) -> _Begun:
        run = await self._open(order)
        if run["state"] == "completed":
            return run, None
        self._runs.add(run["run"])
        try:
            charge, replayed = await self._charges.charge(run)
        except BaseException as error:
            self._runs.discard(run["run"])
            # If that fails, the run is settled when its lease is over.
            with contextlib.suppress(StorageError, CommitOutcomeUnknownError):
                if isinstance(error, CommitOutcomeUnknownError):
                    await self._settle(run)
                elif isinstance(error, CreditError):
                    # Nothing was charged, so don't remember it for long. Otherwise callers without
                    # credits and unknown users would fill the collection.
                    await self._release(run, remembered_for=self._lease.seconds)
            raise
        if replayed:
            # The first request for this charge found it made: another process took this run for
            # abandoned and is settling it.
            self._runs.discard(run["run"])
            raise RequestInProgressError
        return run, charge

    async def _open(self, order: Order) -> Raw:
        """A new run, or the run of a completed request that may be answered again."""
        request = request_id(order.user_id, order.key or str(uuid4()))
        replaced: Raw | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._store_run(
                    order, request, "running", self._lease.renewed, replaced
                )
            except DuplicateKeyError:
                found: Raw | None = await self._keep(self._collection.find_one({"_id": request}))
            if found is None:
                continue
            replaced = {"run": found["run"]} if await self._is_erased(found) else None
            if replaced is not None:
                continue
            if found["fingerprint"] != order.fingerprint:
                raise IdempotencyConflictError(order.key or "")
            if found["state"] == "completed":
                if order.answers_again:
                    return found
                raise RequestCompletedError(found["transactionId"])
            if found["state"] != "released" and not await self._settle_if_over(found):
                raise RequestInProgressError
        raise RequestInProgressError

    async def _complete(self, run: Raw, charge: Paid) -> None:
        self._runs.discard(run["run"])
        known = {"transactionId": charge.transaction_id, "cost": charge.cost}
        if not await self._end(run, "completed", known):
            await self._charges.refund(charge)
            raise RequestInProgressError

    async def _fail(self, run: Raw, charge: Paid) -> None:
        self._runs.discard(run["run"])
        try:
            await self._charges.refund(charge)
            await self._release(run)
        except CreditError as error:
            # Some process settles it when its lease is over.
            _LOG.warning("a charge could not be refunded yet: %s", error.code)

    async def _undo(self, beginning: asyncio.Task[_Begun]) -> None:
        """Undo a beginning whose caller was cancelled."""
        await asyncio.wait({beginning})
        if beginning.exception() is None:
            run, charge = beginning.result()
            if charge is not None:
                await self._fail(run, charge)

    # Settling

    async def _settle_if_over(self, run: Raw) -> bool:
        """Settle the run if its lease is over. Returns whether this call settled it."""
        query = {"_id": run["_id"], "run": run["run"], **self._lease.is_over}
        change = [{"$set": {"state": "settling", **self._lease.renewed}}]
        claimed = await self._keep(
            self._collection.find_one_and_update(
                query, change, return_document=ReturnDocument.AFTER
            )
        )
        if claimed is None:
            return False
        await self._settle(claimed)
        return True

    async def _settle(self, run: Raw) -> None:
        if await self._is_erased(run):
            # Its charge is gone with the account. An account opened since then is owed nothing.
            await self._release(run)
            return
        age = run["leaseUntil"] - run["startedAt"]
        try:
            if age.total_seconds() < self._ttl_seconds / 2:
                charge: Paid | None = (await self._charges.charge(run))[0]
            else:
                charge = await self._charges.find(run)
        except AccountDataError:
            # The account cannot be charged now. It may have been charged before it was damaged.
            charge = await self._charges.find(run)
        except (StorageError, CommitOutcomeUnknownError):
            raise
        except CreditError:
            charge = None  # refused: nothing was charged
        if charge is not None:
            await self._charges.refund(charge)
        await self._release(run)

    async def _release(self, run: Raw, *, remembered_for: float | None = None) -> None:
        await self._end(run, "released", {}, remembered_for=remembered_for)

    # The leases

    async def _renew(self) -> None:
        if self._runs:
            query = {"leaseUntil": {"$exists": True}, "run": {"$in": list(self._runs)}}
            change = [{"$set": self._lease.renewed}]
            await self._keep(self._collection.update_many({**query, "state": "running"}, change))

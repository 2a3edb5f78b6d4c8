"""Requests that are paid before they are done, and given back what they paid if they fail.

What a request has come to stands in a collection of its own, for the ledger's keys alone cannot
tell whether whoever charged is still at work, has died, or was refunded. A request (a user and an
``Idempotency-Key``) has one run, and each time that it is worked on is a run, with an id that
is also the ledger's key of the run's charge:

    running ──────────────→ completed   for as long as keys are remembered
       │ ↑ a retry: a new run, which pays anew
       ↓ │
    released                nothing is charged: refused, or refunded
       ↑
    settling ←── running    whoever worked on it has died, or was not heard of for its lease

Before anything is charged, the run is written down. So whatever dies, some process finds the run
when its lease is over, and settles it: it asks for the same charge with the same key, which tells
what was charged, and refunds it under a key made of the charge's id. No run that was settled
becomes completed: a handler that was late for its lease answers 409. The lease is the server's time
alone. So each answer with success has one charge that is not refunded, and each charge that is not
refunded has such an answer, or one under way, sent or lost on the way to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_preferences import ReadPreference

from credit_mongo.config import CreditConfig
from credit_mongo.engine import tasks
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.errors import (
    AccountDataError,
    CommitOutcomeUnknownError,
    CreditError,
    IdempotencyConflictError,
    RequestCompletedError,
    RequestInProgressError,
    StorageError,
)
from credit_mongo.integrations.fastapi.charges import Charges
from credit_mongo.integrations.fastapi.orders import Order, Paid, stored_variables
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.redaction import Unlogged
from credit_mongo.storage.rows import CODEC_OPTIONS, Raw
from credit_mongo.storage.unit_of_work import JOURNALED_MAJORITY

__all__ = ["PaidRequests"]

_LOG: Final = logging.getLogger("credit_mongo.integrations.fastapi")
_T = TypeVar("_T")
_Begun: TypeAlias = tuple[Raw, Paid | None]
_MOST_TRIES: Final = 5
_SETTLED_AT_ONCE: Final = 100
# Without the first, a run that is over would do: a field that is missing is less than any date.
_LEASE_IS_OVER: Final = {
    "leaseUntil": {"$exists": True},
    "$expr": {"$lt": ["$leaseUntil", "$$NOW"]},
}


class PaidRequests:
    """The paid requests of an application's process."""

    def __init__(
        self,
        ledger: CreditLedger,
        config: CreditConfig,
        *,
        lease_seconds: float,
    ) -> None:
        self._charges = Charges(ledger)
        database = ledger._database
        self._database = database.with_options(codec_options=CODEC_OPTIONS)
        self._names = config.collections
        self._collection = database.get_collection(
            config.collections.paid_requests,
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=JOURNALED_MAJORITY,
        )
        self._deadlines = Deadlines(database.client)
        self._timeout_seconds = config.operation_timeout_seconds
        self._lease_seconds = lease_seconds
        self._ttl_seconds = config.idempotency.ttl_seconds
        # Runs that somebody here works on, whose leases are renewed.
        self._runs: set[str] = set()
        self._work: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def paid(self, order: Order) -> AsyncIterator[Paid]:
        """Charge, and refund if the block fails or is cancelled.

        Raises what `CreditLedger.charge` raises, IdempotencyConflictError, RequestInProgressError,
        RequestCompletedError.
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

    async def check(self, order: Order) -> None:
        """Raise what `paid` would raise for the account and its balance; nothing is written.

        A repetition raises nothing: its balance says nothing about the request it repeats.
        """
        if order.key is not None:
            query = {"_id": _request_id(order.user_id, order.key), "state": {"$ne": "released"}}
            if await self._keep(self._collection.find_one(query, {"_id": 1})) is not None:
                return
        await self._charges.check(order)

    async def go_on(self) -> None:
        """Renew the leases of what is under way here, settle what others left; for ever."""
        # Apart: settling may wait for a user that somebody holds, and leases must not.
        await asyncio.gather(
            tasks.start(self._repeat(self._renew)),
            tasks.start(self._repeat(self.settle_abandoned)),
        )

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except CreditError as error:
                _LOG.warning("paid requests could not be looked after: %s", error.code)
            await asyncio.sleep(self._lease_seconds / 3)

    async def settle_abandoned(self) -> None:
        """Refund what runs whose lease is over have charged."""
        found = await self._keep(
            self._collection.find(_LEASE_IS_OVER).limit(_SETTLED_AT_ONCE).to_list(_SETTLED_AT_ONCE)
        )
        settling = [tasks.start(self._settle_if_over(run)) for run in found]
        for outcome in await asyncio.gather(*settling, return_exceptions=True):
            if isinstance(outcome, BaseException):
                # Another time, when its lease is over again.
                _LOG.warning("a paid request could not be settled: %s", type(outcome).__name__)

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._work:
            await asyncio.wait(self._work)
        await self._deadlines.close(self._timeout_seconds)

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
            # If that fails, it is settled when its lease is over.
            with contextlib.suppress(StorageError, CommitOutcomeUnknownError):
                if isinstance(error, CommitOutcomeUnknownError):
                    await self._settle(run)
                elif isinstance(error, CreditError):
                    # Nothing was charged, so there is nothing to remember: callers without credits
                    # and users that do not exist would fill the collection otherwise.
                    await self._release(run, remembered_for=self._lease_seconds)
            raise
        if replayed:
            # Asked for the first time, it was there: somebody has taken this run for abandoned.
            self._runs.discard(run["run"])
            raise RequestInProgressError
        return run, charge

    async def _open(self, order: Order) -> Raw:
        """A new run, or that of a completed request that may be answered again."""
        request = _request_id(order.user_id, order.key or str(uuid4()))
        over: Raw | None = None
        for _ in range(_MOST_TRIES):
            try:
                return await self._write_down(order, request, over)
            except DuplicateKeyError:
                found: Raw | None = await self._keep(self._collection.find_one({"_id": request}))
            if found is None:
                continue
            over = {"run": found["run"]} if await self._is_erased(found) else None
            if over is not None:
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

    async def _is_erased(self, run: Raw) -> bool:
        """Whether it is of an account that is gone, though its erasure is not at the end yet."""
        user_id = run["userId"]
        looking = erased_until(self._database, self._names, [user_id], field="requestsUntil")
        until = (await self._keep(looking)).get(user_id)
        return until is not None and bool(run["startedAt"] <= until)

    async def _write_down(self, order: Order, request: str, over: Raw | None = None) -> Raw:
        """A new run, also in the place of one that was released, or of ``over``."""
        facts: Raw = {
            "fingerprint": order.fingerprint,
            "userId": order.user_id,
            "action": order.action,
            "amount": order.amount,
            "variables": stored_variables(order.variables),
            "state": "running",
            "run": str(uuid4()),
        }
        # Literally: what a caller gives may begin with a dollar.
        fields: Raw = {name: {"$literal": value} for name, value in facts.items()}
        fields |= {"startedAt": "$$NOW", "leaseUntil": self._lease()}
        fields |= dict.fromkeys(("expiresAt", "transactionId", "cost"), "$$REMOVE")
        replaced = over or {"state": "released", "fingerprint": order.fingerprint}
        query = {"_id": request, **replaced}
        writing: Coroutine[Any, Any, Any] = self._collection.find_one_and_update(
            query, [{"$set": fields}], upsert=True, return_document=ReturnDocument.AFTER
        )
        run: Raw = await self._keep(writing)
        return run

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
            # Its lease ends, and then it is settled.
            _LOG.warning("a charge could not be refunded yet: %s", error.code)

    async def _undo(self, beginning: asyncio.Task[_Begun]) -> None:
        """What was begun for a caller that was cancelled meanwhile."""
        await asyncio.wait({beginning})
        if beginning.exception() is None:
            run, charge = beginning.result()
            if charge is not None:
                await self._fail(run, charge)

    # Settling

    async def _settle_if_over(self, run: Raw) -> bool:
        """Whether the lease of the run was over, and it has been settled here."""
        query = {"_id": run["_id"], "run": run["run"], **_LEASE_IS_OVER}
        change = [{"$set": {"state": "settling", "leaseUntil": self._lease()}}]
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
            # What it had charged is gone. An account that was opened since owes nothing for it.
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

    # The collection

    async def _end(
        self, run: Raw, state: str, facts: Raw, *, remembered_for: float | None = None
    ) -> bool:
        """Whether the run was still in the state in which it was last seen.

        It is remembered for as many seconds, by default for as long as keys are.
        """
        seconds = self._ttl_seconds if remembered_for is None else remembered_for
        fields: Raw = {name: {"$literal": value} for name, value in facts.items()}
        fields |= {
            "state": state,
            "expiresAt": {"$add": ["$$NOW", int(seconds * 1000)]},
            **dict.fromkeys(("leaseUntil", "amount", "variables"), "$$REMOVE"),
        }
        query = {name: run[name] for name in ("_id", "run", "state")}
        result = await self._keep(self._collection.update_one(query, [{"$set": fields}]))
        return bool(result.matched_count)

    async def _renew(self) -> None:
        if self._runs:
            query = {"leaseUntil": {"$exists": True}, "run": {"$in": list(self._runs)}}
            change = [{"$set": {"leaseUntil": self._lease()}}]
            await self._keep(self._collection.update_many({**query, "state": "running"}, change))

    def _lease(self) -> Raw:
        return {"$add": ["$$NOW", int(self._lease_seconds * 1000)]}

    async def _keep(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            with Unlogged():
                return await self._deadlines.keep(work, self._timeout_seconds)
        except DuplicateKeyError:
            raise
        except asyncio.TimeoutError as error:
            raise StorageError("the database did not answer in time") from error
        except PyMongoError as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Work that goes on when its caller is cancelled, and is waited for at the end."""
        task = tasks.start(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


def _request_id(user_id: str, key: str) -> str:
    # A digest: keys are not kept, and those of one user are not those of another.
    return hashlib.blake2b(repr((user_id, key)).encode(), digest_size=20).hexdigest()

"""Requests that have been paid for, or will be, as they are stored: one document for each.

What `PaidRequests` and `HeldRequests` share. A request is a user and an ``Idempotency-Key``. Each
attempt at it is a run, and the document has the state of the last one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from credit_mongo.config import CreditConfig
from credit_mongo.engine import tasks
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.errors import StorageError
from credit_mongo.integrations.fastapi.charges import Charges
from credit_mongo.integrations.fastapi.orders import Order, stored_variables
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.rows import Raw

__all__ = ["MAX_ATTEMPTS", "StoredRequests", "request_id", "seconds_from_now"]

MAX_ATTEMPTS: Final = 5
"""How often a request looks for its state while others change it."""
_OF_THE_RUN: Final = ("leaseUntil", "placingUntil")
_OF_THE_END: Final = ("expiresAt", "transactionId", "cost", "holdId")
_T = TypeVar("_T")


class StoredRequests:
    """The requests of an application's process, and the collection of all processes' requests."""

    def __init__(self, ledger: CreditLedger, config: CreditConfig) -> None:
        self._charges = Charges(ledger)
        # A request that another process has just written down must be found at once.
        self._database = database = ledger._database.read_locally()
        self._collection = database[database.names.paid_requests]
        self._deadlines = Deadlines(database.client)
        self._timeout_seconds = config.operation_timeout_seconds
        self._ttl_seconds = config.idempotency.ttl_seconds
        self._work: set[asyncio.Task[Any]] = set()

    async def check(self, order: Order) -> None:
        """Raise what paying for it would raise for the account and its balance. Writes nothing.

        A repeat raises nothing, as today's balance says nothing about the request it repeats.
        """
        if order.key is not None:
            query = {"_id": request_id(order.user_id, order.key), "state": {"$ne": "released"}}
            if await self._keep(self._collection.find_one(query, {"_id": 1})) is not None:
                return
        await self._charges.check(order)

    async def close(self) -> None:
        """Wait for the work in progress."""
        while self._work:
            await asyncio.wait(self._work)
        await self._deadlines.close(self._timeout_seconds)

    async def _is_erased(self, run: Raw) -> bool:
        """Whether its account was erased, even if that erasure has not finished."""
        user_id = run["userId"]
        reading = erased_until(self._database, [user_id], field="requestsUntil")
        until = (await self._keep(reading)).get(user_id)
        return until is not None and bool(run["startedAt"] <= until)

    async def _store_run(
        self,
        order: Order,
        request: str,
        state: str,
        moments: Raw,
        replaced: Raw | None = None,
    ) -> Raw:
        """Store a new run. It replaces a released one, or the one that ``replaced`` describes.

        ``moments`` are fields that the server's clock decides.

        Raises DuplicateKeyError if the request has a run that it may not replace.
        """
        facts: Raw = {
            "fingerprint": order.fingerprint,
            "userId": order.user_id,
            "action": order.action,
            "amount": order.amount,
            "variables": stored_variables(order.variables),
            "state": state,
            "run": str(uuid4()),
        }
        # As literals, because a caller's values may begin with a dollar.
        fields: Raw = {name: {"$literal": value} for name, value in facts.items()}
        fields |= dict.fromkeys((*_OF_THE_END, *_OF_THE_RUN), "$$REMOVE")
        fields |= {"startedAt": "$$NOW", **moments}
        replaced = replaced or {"state": "released", "fingerprint": order.fingerprint}
        query = {"_id": request, **replaced}
        writing: Coroutine[Any, Any, Any] = self._collection.find_one_and_update(
            query, [{"$set": fields}], upsert=True, return_document=ReturnDocument.AFTER
        )
        run: Raw = await self._keep(writing)
        return run

    async def _end(
        self, run: Raw, state: str, facts: Raw, *, remembered_for: float | None = None
    ) -> bool:
        """End the run in ``state``. Returns False if its state changed since it was read.

        It stays stored for ``remembered_for`` seconds, by default as long as keys are remembered.
        """
        seconds = self._ttl_seconds if remembered_for is None else remembered_for
        fields: Raw = {name: {"$literal": value} for name, value in facts.items()}
        fields |= {
            "state": state,
            "expiresAt": seconds_from_now(seconds),
            **dict.fromkeys(("amount", "variables", *_OF_THE_RUN), "$$REMOVE"),
        }
        query = {name: run[name] for name in ("_id", "run", "state")}
        result = await self._keep(self._collection.update_one(query, [{"$set": fields}]))
        return bool(result.matched_count)

    async def _keep(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await self._deadlines.keep(work, self._timeout_seconds)
        except DuplicateKeyError:
            raise
        except asyncio.TimeoutError as error:
            raise StorageError(
                f"the database did not answer within {self._timeout_seconds:g} s: try again"
            ) from error
        except PyMongoError as error:
            raise as_storage_error(error)  # noqa: B904 - it has its cause already

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start work that continues if its caller is cancelled. `close` waits for it."""
        task = tasks.start(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


def seconds_from_now(seconds: float) -> Raw:
    """A moment by the server's clock, for an update that is a pipeline."""
    return {"$add": ["$$NOW", int(seconds * 1000)]}


def request_id(user_id: str, key: str) -> str:
    """The id of a request's document."""
    # A digest, so that no key is stored. It includes the user, as each user has its own keys.
    return hashlib.blake2b(repr((user_id, key)).encode(), digest_size=20).hexdigest()

"""The ledger's life within an application's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from credit_mongo.config import CreditConfig, Settings
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import ConfigurationError
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.ledger import CreditLedger

__all__ = ["credit_lifespan", "get_ledger", "get_paid_requests"]

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What ``FastAPI(lifespan=…)`` takes."""

_LEAST_LEASE_SECONDS, _MOST_LEASE_SECONDS = 1, 3600


@dataclass(frozen=True, slots=True)
class _Credits:
    ledger: CreditLedger
    paid_requests: PaidRequests


def credit_lifespan(
    config: CreditConfig,
    *,
    database: AnyDatabase | None = None,
    lifespan: Lifespan | None = None,
    lease_seconds: float = 30,
    indexes: bool = True,
) -> Lifespan:
    """For ``FastAPI(lifespan=credit_lifespan(…))``: the ledger, open while the application is.

    ``database``: of the application's own client, which stays open; left out, MONGODB_URI and
    MONGODB_DATABASE of the environment. ``lifespan``: the application's own, which runs within, so
    that `get_ledger` works there, and whose state stays its own. Indexes are made if missing; with
    ``indexes`` False, those of the ledger are not looked at: ``credit-mongo init`` makes them
    before an application starts whose database role (creditRuntime, say) may not.

    ``collections.paid_requests`` of the configuration has the states of the requests that `Charge`
    charges for. One whose process dies is settled by any process, ``lease_seconds`` (1 to 3600)
    later or up to a third more.

    Raises ConfigurationError, and, when the application starts, what ``CreditLedger`` raises.
    """
    if not isinstance(config, CreditConfig):
        raise ConfigurationError("", "config must be a CreditConfig")
    if not config.idempotency.enabled:
        raise ConfigurationError("idempotency.enabled", "must be on: refunds need it to be safe")
    _check_lease(lease_seconds, config)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        async with AsyncExitStack() as stack:
            opened = _connect(config) if database is None else CreditLedger(database, config)
            ledger = await stack.enter_async_context(opened)
            if indexes:
                await ledger.ensure_indexes()
            paid_requests = PaidRequests(ledger, config, lease_seconds=lease_seconds)
            await paid_requests.ensure_indexes()
            stack.push_async_callback(paid_requests.close)
            await stack.enter_async_context(_going_on(paid_requests))
            app.state.credit_mongo = _Credits(ledger, paid_requests)
            state = None
            if lifespan is not None:
                state = await stack.enter_async_context(lifespan(app))
            yield state

    return run


def get_ledger(connection: HTTPConnection) -> CreditLedger:
    """The application's ledger; a dependency: ``Depends(get_ledger)``.

    Raises ConfigurationError in an application without `credit_lifespan`.
    """
    return _credits_of(connection).ledger


def get_paid_requests(connection: HTTPConnection) -> PaidRequests:
    """The application's paid requests; a dependency. Raises as `get_ledger` does."""
    return _credits_of(connection).paid_requests


def _credits_of(connection: HTTPConnection) -> _Credits:
    found = getattr(connection.app.state, "credit_mongo", None)
    if not isinstance(found, _Credits):
        raise ConfigurationError("lifespan", "must be credit_lifespan(…) of this application")
    return found


def _check_lease(lease_seconds: object, config: CreditConfig) -> None:
    if (
        not isinstance(lease_seconds, int | float)
        or isinstance(lease_seconds, bool)
        or not _LEAST_LEASE_SECONDS <= lease_seconds <= _MOST_LEASE_SECONDS
    ):
        raise ConfigurationError("lease_seconds", "must be a number from 1 to 3600")
    if config.idempotency.ttl_seconds < 10 * lease_seconds:
        raise ConfigurationError("idempotency.ttl_seconds", "must be ten times lease_seconds")


def _connect(config: CreditConfig) -> CreditLedger:
    settings = Settings()
    return CreditLedger.connect(settings.uri, database=settings.database, config=config)


@asynccontextmanager
async def _going_on(paid_requests: PaidRequests) -> AsyncIterator[None]:
    task = asyncio.create_task(paid_requests.go_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

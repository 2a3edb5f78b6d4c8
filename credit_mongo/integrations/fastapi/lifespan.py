"""The ledger's life within an application's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from credit_mongo.config import CreditConfig, Settings
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.errors import ConfigurationError
from credit_mongo.integrations.fastapi.middleware import Credits, CreditsMiddleware, credits_of
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.integrations.fastapi.problems import share_credit_handlers
from credit_mongo.integrations.fastapi.routes import charged_endpoints
from credit_mongo.ledger import CreditLedger

__all__ = ["credit_lifespan", "get_credits", "get_ledger"]

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
"""What ``FastAPI(lifespan=…)`` takes."""

_LEAST_LEASE_SECONDS, _MOST_LEASE_SECONDS = 1, 3600
_DEFAULT_BODY_BYTES: Final = 16 * 1024 * 1024
_MOST_BODY_BYTES: Final = 2**40


def credit_lifespan(
    config: CreditConfig,
    *,
    database: AnyDatabase | None = None,
    lifespan: Lifespan | None = None,
    lease_seconds: float = 30,
    indexes: bool = True,
    max_body_bytes: int = _DEFAULT_BODY_BYTES,
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

    A request that is charged for and has a body of more than ``max_body_bytes`` (16 MiB; 1 to
    2**40) is answered 413 REQUEST_TOO_LARGE, and nothing is charged.

    Applications that are mounted in this one use its ledger, unless they have a `credit_lifespan`
    of their own that is running, and its error handlers, unless they have their own.

    Raises ConfigurationError. When the application starts, it raises what ``CreditLedger`` raises,
    and ConfigurationError for a route that charges twice.
    """
    if not isinstance(config, CreditConfig):
        raise ConfigurationError("", "config must be a CreditConfig")
    if not config.idempotency.enabled:
        raise ConfigurationError("idempotency.enabled", "must be on: refunds need it to be safe")
    _check_lease(lease_seconds, config)
    _check_body_limit(max_body_bytes)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        charged = charged_endpoints(app)
        async with AsyncExitStack() as stack:
            opened = _connect(config) if database is None else CreditLedger(database, config)
            ledger = await stack.enter_async_context(opened)
            if indexes:
                await ledger.ensure_indexes()
            paid_requests = PaidRequests(ledger, config, lease_seconds=lease_seconds)
            stack.push_async_callback(paid_requests.close)
            await stack.enter_async_context(_going_on(paid_requests))
            app.state.credit_mongo = Credits(ledger, paid_requests, max_body_bytes, charged)
            _add_middleware(app)
            share_credit_handlers(app)
            state = None
            if lifespan is not None:
                state = await stack.enter_async_context(lifespan(app))
            yield state

    return run


def get_ledger(connection: HTTPConnection) -> CreditLedger:
    """The application's ledger; a dependency: ``Depends(get_ledger)``.

    Raises ConfigurationError in an application without `credit_lifespan`.
    """
    return get_credits(connection).ledger


def get_credits(connection: HTTPConnection) -> Credits:
    """The application's ledger and paid requests; a dependency. Raises as `get_ledger` does."""
    found = credits_of(connection)
    if found is None:
        raise ConfigurationError("lifespan", "must be credit_lifespan(…) of this application")
    return found


def _add_middleware(app: FastAPI) -> None:
    # Starlette's add_middleware refuses an application that has started, as this one has.
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    if not isinstance(app.middleware_stack, CreditsMiddleware):
        app.middleware_stack = CreditsMiddleware(app.middleware_stack, app)


def _check_body_limit(max_body_bytes: object) -> None:
    if type(max_body_bytes) is not int or not 1 <= max_body_bytes <= _MOST_BODY_BYTES:
        raise ConfigurationError("max_body_bytes", f"must be an int from 1 to {_MOST_BODY_BYTES}")


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
    task = tasks.start(paid_requests.go_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""Open and close the ledger with the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from credit_mongo.config import CreditConfig, Settings
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.engine.observer import Observer, tell_by
from credit_mongo.errors import ConfigurationError
from credit_mongo.integrations.fastapi.held_requests import HeldRequests
from credit_mongo.integrations.fastapi.middleware import Credits, CreditsMiddleware, credits_of
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.integrations.fastapi.problems import share_credit_handlers
from credit_mongo.integrations.fastapi.routes import charged_endpoints
from credit_mongo.ledger import CreditLedger
from credit_mongo.storage.connection import EventListener, check_listeners

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
    event_listeners: Iterable[EventListener] = (),
    observer: Observer | None = None,
) -> Lifespan:
    """Keep the ledger open while the application runs: ``FastAPI(lifespan=credit_lifespan(…))``.

    - ``database``: a database of the application's own client, which stays open. Default: the
      environment says, as in `Settings`: MONGODB_URI, MONGODB_DATABASE, and the connections of
      MONGODB_POOL_PROFILE, MONGODB_MIN_POOL_SIZE and MONGODB_MAX_POOL_SIZE.
    - ``lifespan``: the application's own lifespan. It runs while the ledger is open, so it may use
      `get_ledger`, and keeps its own state.
    - ``lease_seconds``: 1 to 3600. If a process dies, any other settles its paid requests after
      this time, at most a third later. ``collections.paid_requests`` of the configuration names
      the collection that holds their states.
    - ``indexes``: whether to create missing indexes. False leaves the ledger's indexes alone. Use
      that where the application's database role may not create indexes (creditRuntime, for
      example), and run ``credit-mongo init`` first.
    - ``max_body_bytes``: 1 to 2**40, by default 16 MiB. A charged request with a larger body gets
      413 REQUEST_TOO_LARGE, and nothing is charged.
    - ``event_listeners``: of ``pymongo.monitoring``, for the client, as in
      ``CreditLedger.connect``. With ``database``, give them to your own client instead.
    - ``observer``: a function that the ledger calls with events, as in ``CreditLedger``.

    An application mounted in this one uses this ledger, unless it runs its own `credit_lifespan`.
    It also uses these error handlers, unless it has its own.

    Raises ConfigurationError. The application's start raises what ``CreditLedger`` raises, and
    ConfigurationError for a route that charges twice.
    """
    if not isinstance(config, CreditConfig):
        raise ConfigurationError("", "config must be a CreditConfig")
    if not config.idempotency.enabled:
        raise ConfigurationError("idempotency.enabled", "must be True: safe refunds need keys")
    _check_lease(lease_seconds, config)
    _check_body_limit(max_body_bytes)
    tell_by(observer)  # before the application starts
    listeners = check_listeners(event_listeners)
    if listeners and database is not None:
        raise ConfigurationError(
            "event_listeners", "must be given to the client of the application's database instead"
        )

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        charged = charged_endpoints(app)
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(_ledger(config, database, listeners, observer))
            if indexes:
                await ledger.ensure_indexes()
            paid_requests = PaidRequests(ledger, config, lease_seconds=lease_seconds)
            stack.push_async_callback(paid_requests.close)
            await stack.enter_async_context(_maintained(paid_requests))
            held_requests = HeldRequests(ledger, config, lease_seconds=lease_seconds)
            stack.push_async_callback(held_requests.close)
            app.state.credit_mongo = Credits(
                ledger, paid_requests, held_requests, max_body_bytes, charged
            )
            _add_middleware(app)
            share_credit_handlers(app)
            state = None
            if lifespan is not None:
                state = await stack.enter_async_context(lifespan(app))
            yield state

    return run


def get_ledger(connection: HTTPConnection) -> CreditLedger:
    """The application's ledger, as a dependency: ``Depends(get_ledger)``.

    Raises ConfigurationError in an application without `credit_lifespan`.
    """
    return get_credits(connection).ledger


def get_credits(connection: HTTPConnection) -> Credits:
    """A dependency: the application's ledger and paid requests. Raises ConfigurationError."""
    found = credits_of(connection)
    if found is None:
        raise ConfigurationError(
            "lifespan", "has no ledger: create the application with lifespan=credit_lifespan(…)"
        )
    return found


def _add_middleware(app: FastAPI) -> None:
    # Starlette's add_middleware refuses an application that has already started.
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
        raise ConfigurationError(
            "idempotency.ttl_seconds", f"must be at least ten times lease_seconds ({lease_seconds})"
        )


def _ledger(
    config: CreditConfig,
    database: AnyDatabase | None,
    listeners: list[EventListener],
    observer: Observer | None,
) -> CreditLedger:
    if database is not None:
        return CreditLedger(database, config, observer=observer)
    settings = Settings()
    return CreditLedger.connect(
        settings.uri,
        database=settings.database,
        config=config,
        pool_profile=settings.pool_profile,
        min_pool_size=settings.min_pool_size,
        max_pool_size=settings.max_pool_size,
        event_listeners=listeners,
        observer=observer,
    )


@asynccontextmanager
async def _maintained(paid_requests: PaidRequests) -> AsyncIterator[None]:
    task = tasks.start(paid_requests.maintain())
    try:
        yield
    finally:
        await tasks.stop(task)
        if not task.cancelled():
            task.result()

"""Motor, whose objects are PyMongo's synchronous ones with threads before them.

The only module that knows it. It need not be installed: nothing can be Motor's unless the
application has imported Motor.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from credit_mongo.drivers.synchronous import AdaptedClient, AdaptedDatabase

if TYPE_CHECKING:
    from motor.motor_asyncio import AsyncIOMotorClientSession, AsyncIOMotorDatabase

    MotorDatabase: TypeAlias = AsyncIOMotorDatabase[Any]
    MotorSession: TypeAlias = AsyncIOMotorClientSession

__all__ = ["adapted_database", "delegate_of_session", "is_client"]


def adapted_database(database: object) -> AdaptedDatabase | None:
    """A database of an AsyncIOMotorClient as PyMongo's; None for anything else."""
    if not _is_a("AsyncIOMotorDatabase", database):
        return None
    delegate: Any = database.delegate  # type: ignore[attr-defined]
    return AdaptedDatabase(delegate, _run, AdaptedClient(delegate.client, _run))


def delegate_of_session(session: object) -> Any:
    """PyMongo's synchronous session in one of Motor's; None for anything else."""
    if not _is_a("AsyncIOMotorClientSession", session):
        return None
    return session.delegate  # type: ignore[attr-defined]


def is_client(client: object) -> bool:
    """Whether it is an AsyncIOMotorClient, or says that it is."""
    return _is_a("AsyncIOMotorClient", client)


def _is_a(name: str, value: object) -> bool:
    motor = sys.modules.get("motor.motor_asyncio")
    return motor is not None and isinstance(value, getattr(motor, name))


def _run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Awaitable[Any]:
    """In one of Motor's own threads: the application says how many there are."""
    from motor.frameworks.asyncio import run_on_executor  # noqa: PLC0415 - once it is there

    run: Callable[..., Awaitable[Any]] = run_on_executor
    return run(asyncio.get_running_loop(), function, *arguments, **options)

"""An application on Motor, for tests that are written for any driver."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession
from pymongo.errors import PyMongoError

from tests.any_driver import pymongo_client


class MotorApplication:
    """A Motor client used like PyMongo's, whose sessions are Motor's own."""

    def __init__(self, uri: str, **options: Any) -> None:
        self.motor: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(uri, **options)

    def __getitem__(self, name: str) -> Any:
        return pymongo_client(self.motor)[name]

    async def drop_database(self, name: str) -> None:
        """Drop the database."""
        await self.motor.drop_database(name)

    @asynccontextmanager
    async def start_session(self) -> AsyncIterator[AsyncIOMotorClientSession]:
        """Start a session of Motor's."""
        async with await self.motor.start_session() as session:
            yield session

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.motor.close()


async def begun(session: Any) -> Any:
    """Begin a transaction: PyMongo's must be awaited, Motor's must not."""
    transaction = session.start_transaction()
    return await transaction if inspect.isawaitable(transaction) else transaction


async def with_motor_transaction(session: Any, callback: Callable[[Any], Awaitable[Any]]) -> Any:
    """Repeat failed commits as applications on Motor must do themselves."""
    while True:
        session.start_transaction()
        try:
            done = await callback(session)
            await _commit(session)
        except Exception as error:
            if session.in_transaction:
                await session.abort_transaction()
            if not _has_label(error, "TransientTransactionError"):
                raise
        else:
            return done


async def _commit(session: Any) -> None:
    while True:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not _has_label(error, "UnknownTransactionCommitResult"):
                raise
        else:
            return


def _has_label(error: Exception, label: str) -> bool:
    return isinstance(error, PyMongoError) and error.has_error_label(label)

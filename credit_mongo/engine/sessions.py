"""Sessions of the application: refused before anything is sent if they cannot work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.mongo_client import AsyncMongoClient

from credit_mongo.errors import InvalidRequestError

__all__ = ["ApplicationSessions"]


class ApplicationSessions:
    """The sessions that a ledger's operations are using right now."""

    def __init__(self, client: AsyncMongoClient[Any]) -> None:
        self._client = client
        self._in_use: set[AsyncClientSession] = set()

    @contextlib.contextmanager
    def using(self, session: AsyncClientSession | None) -> Iterator[None]:
        """Have a session for one operation. Raises InvalidRequestError. None is no session."""
        if session is None:
            yield
            return
        if session.client is not self._client:
            raise InvalidRequestError(
                "session", "belongs to another client than the ledger's: start one on that client"
            )
        if session.has_ended:
            raise InvalidRequestError("session", "has ended")
        if session in self._in_use:
            # The driver would mix up their commands (asyncio.gather on one session).
            raise InvalidRequestError("session", "is in use by another operation: await that first")
        self._in_use.add(session)
        try:
            yield
        finally:
            self._in_use.discard(session)

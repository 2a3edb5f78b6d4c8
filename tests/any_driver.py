"""PyMongo's interface in front of any driver, for what tests themselves do with a database.

The library's adapters have only the methods that the library calls. Here are those that only tests
call. A ledger never gets them: it works on the adapter that ``with_options`` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymongo import MongoClient

from credit_mongo.drivers import as_database
from credit_mongo.drivers.synchronous import (
    AdaptedClient,
    AdaptedCollection,
    AdaptedCursor,
    AdaptedDatabase,
    Run,
)

__all__ = ["pymongo_client"]


def pymongo_client(client: Any) -> Any:
    """Return a client of any driver as PyMongo's."""
    adapted = as_database(client["admin"])
    if not isinstance(adapted, AdaptedDatabase):
        return client
    return _Client(adapted.client.delegate, adapted._run)


class _Client(AdaptedClient):
    def __getitem__(self, name: str) -> _Database:
        return _Database(self.delegate[name], self._run, self)

    async def drop_database(self, name: str) -> None:
        await self._run(self._own.drop_database, name)

    async def close(self) -> None:
        await self._run(self._own.close)

    @property
    def _own(self) -> Any:
        is_pymongos = isinstance(self.delegate, MongoClient)
        return self.delegate if is_pymongos else self.delegate.delegate


class _Database(AdaptedDatabase):
    _awaited = AdaptedDatabase._awaited | {
        "create_collection",
        "drop_collection",
        "list_collection_names",
    }
    _give_cursors = AdaptedDatabase._give_cursors | {"aggregate"}

    def __getitem__(self, name: str) -> _Collection:
        return _Collection(self.delegate[name], self._run)

    def get_collection(self, name: str, **options: Any) -> _Collection:
        return _Collection(self.delegate.get_collection(name, **options), self._run)


class _Collection(AdaptedCollection):
    _awaited = AdaptedCollection._awaited | {
        "create_index",
        "create_indexes",
        "drop_index",
        "drop_indexes",
        "index_information",
        "replace_one",
    }

    def with_options(self, **options: Any) -> _Collection:
        return _Collection(self.delegate.with_options(**options), self._run)

    def find(self, *arguments: Any, **options: Any) -> _Cursor:
        def open_cursor(**more: Any) -> Any:
            return super(_Collection, self).find(*arguments, **options, **more).delegate

        return _Cursor(open_cursor, self._run)


class _Cursor(AdaptedCursor):
    """A cursor whose options can be given one after the other."""

    def __init__(self, open_cursor: Callable[..., Any], run: Run) -> None:
        super().__init__(None, run)
        self._open = open_cursor
        self._options: dict[str, Any] = {}

    def sort(self, keys: Any, direction: int = 1) -> _Cursor:
        self._options["sort"] = [(keys, direction)] if isinstance(keys, str) else keys
        return self

    def limit(self, limit: int) -> _Cursor:
        self._options["limit"] = limit
        return self

    def skip(self, skip: int) -> _Cursor:
        self._options["skip"] = skip
        return self

    async def _call(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        if self.delegate is None:
            self.delegate = self._open(**self._options)
        return await super()._call(name, *arguments, **options)

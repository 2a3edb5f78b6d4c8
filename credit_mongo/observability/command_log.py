"""A log of the commands that a client sends: names and durations, never a value."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from credit_mongo.errors import ConfigurationError

__all__ = ["CommandLog"]

_LOG: Final = logging.getLogger("credit_mongo.commands")

# Commands whose own value is the name of a collection. The value of another may be a user's name.
_ON_A_COLLECTION: Final = frozenset(
    {
        *("aggregate", "collMod", "collStats", "count", "create", "createIndexes", "delete"),
        *("distinct", "drop", "dropIndexes", "find", "findAndModify", "insert", "killCursors"),
        *("listIndexes", "update", "validate"),
    }
)
# A command that was cancelled is never told to have ended. Such ones are forgotten beyond this.
_MOST_UNDER_WAY: Final = 10_000
_LONGEST_MILLISECONDS: Final = 86_400_000


class CommandLog(CommandListener):
    """Logs slow commands, and every command at DEBUG. A listener for one or several clients.

        client = AsyncMongoClient(uri, event_listeners=[CommandLog(slow_milliseconds=500)])

    Motor's clients take it in the same way, and ``CreditLedger.connect`` by the same name.

    The logger is ``credit_mongo.commands``. A line has the command's name, its database and
    collection, its duration in milliseconds, and the server's name for an error. It never has a
    value: no query, no document, no id, no text of an error. A command that took
    ``slow_milliseconds`` or longer is logged as a WARNING, with the same as fields of the record
    (``command_name``, ``database_name``, ``collection_name``, ``duration_milliseconds``, and
    ``error_name`` or None). What waits for news, as change streams do, is not slow.

    Raises ConfigurationError if ``slow_milliseconds`` is not a number from 0 to 86,400,000.
    """

    def __init__(self, *, slow_milliseconds: float = 1000) -> None:
        self._slow_microseconds = 1000 * _check_milliseconds(slow_milliseconds)
        # Only the event of the beginning tells the collection.
        self._collections: dict[int, str] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """A command has been sent."""
        collection = _collection_of(event)
        if collection is not None:
            if len(self._collections) >= _MOST_UNDER_WAY:
                self._collections.clear()
            self._collections[event.request_id] = collection

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """The server has answered."""
        collection = self._collections.pop(event.request_id, None)
        is_slow = event.duration_micros >= self._slow_microseconds
        if is_slow and event.command_name == "getMore" and _brought_nothing(event.reply):
            is_slow = False
        if is_slow or _LOG.isEnabledFor(logging.DEBUG):
            _log(event, collection, None, is_slow=is_slow)

    def failed(self, event: CommandFailedEvent) -> None:
        """The server has refused the command, or the connection broke."""
        collection = self._collections.pop(event.request_id, None)
        is_slow = event.duration_micros >= self._slow_microseconds
        if is_slow or _LOG.isEnabledFor(logging.DEBUG):
            _log(event, collection, _error_name(event.failure), is_slow=is_slow)


def _check_milliseconds(value: object) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= _LONGEST_MILLISECONDS
    ):
        return value
    raise ConfigurationError(
        "slow_milliseconds", f"must be a number from 0 to {_LONGEST_MILLISECONDS:,}"
    )


def _collection_of(event: CommandStartedEvent) -> str | None:
    name = event.command_name
    if name in _ON_A_COLLECTION:
        collection = event.command.get(name)
    elif name == "getMore":
        collection = event.command.get("collection")
    else:
        return None
    return collection if isinstance(collection, str) else None


def _brought_nothing(reply: Mapping[str, Any]) -> bool:
    """Whether a cursor has waited on the server for something to happen, and nothing has."""
    cursor = reply.get("cursor")
    return isinstance(cursor, Mapping) and not cursor.get("nextBatch")


def _error_name(failure: Mapping[str, Any]) -> str:
    """The server's name for an error, or the class of the driver's: nothing that quotes a value."""
    return str(failure.get("codeName") or failure.get("errtype") or failure.get("code") or "error")


def _log(
    event: CommandSucceededEvent | CommandFailedEvent,
    collection: str | None,
    error: str | None,
    *,
    is_slow: bool,
) -> None:
    milliseconds = event.duration_micros / 1000
    place = f"{event.database_name}.{collection}" if collection else event.database_name
    _LOG.log(
        logging.WARNING if is_slow else logging.DEBUG,
        "%s%s on %s took %.1f ms%s",
        "slow command: " if is_slow else "",
        event.command_name,
        place,
        milliseconds,
        "" if error is None else f" and failed: {error}",
        extra={
            "command_name": event.command_name,
            "database_name": event.database_name,
            "collection_name": collection,
            "duration_milliseconds": milliseconds,
            "error_name": error,
        },
    )

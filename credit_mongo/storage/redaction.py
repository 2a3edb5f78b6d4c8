"""No document of the ledger's in the driver's log.

At the level DEBUG, PyMongo logs every command and every reply (logger ``pymongo.command``), and so
the idempotency keys and the metadata that the ledger writes. Here a filter on that logger takes the
documents out of the records of the ledger's own commands, which stay in all else what they were:
name, database, server, duration, error code. The application's own commands are logged as ever,
also those on the same client and the same collections.

A command is the ledger's if it is sent within ``Unlogged()``. The driver makes no record, and asks
no filter, unless DEBUG is on. An application's own ``CommandListener`` is no log: it is given what
the driver gives it.
"""

from __future__ import annotations

import contextvars
import json
import logging
from typing import Any, Final

__all__ = ["REDACTED", "Unlogged"]

REDACTED: Final = "(not shown: it may hold keys and metadata)"
# What stays, in the words of MongoDB's logging specification; whatever else there is, goes.
_SHOWN: Final = frozenset(
    {
        "message",
        "clientId",
        "commandName",
        "databaseName",
        "requestId",
        "operationId",
        "driverConnectionId",
        "serverConnectionId",
        "serverHost",
        "serverPort",
        "serviceId",
        "durationMS",
    }
)
# All of a failure that quotes nothing.
_HARMLESS: Final = ("code", "codeName", "errorLabels", "errtype")

_is_unlogged: Final = contextvars.ContextVar("credit_mongo_is_unlogged", default=False)


class Unlogged:
    """What is sent within, and in tasks that are begun there, shows no document in the log."""

    # Entered for each commit and each read: a generator would take four times as long.
    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _is_unlogged.set(True)

    def __exit__(self, *_: object) -> None:
        _is_unlogged.reset(self._token)


class _Redaction(logging.Filter):
    """Lets every record pass, those of the ledger's own commands without documents."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_unlogged.get():
            # Made here, once and for all handlers: the driver's message is made when it is read.
            record.msg = _without_documents(record.getMessage())
            record.args = None
        return True


def _without_documents(message: str) -> str:
    try:
        fields = json.loads(message)
        shown = {
            name: value if name in _SHOWN else _redacted(value) for name, value in fields.items()
        }
        return json.dumps(shown)
    except (ValueError, AttributeError):
        # Not what the specification says; nobody knows what it holds.
        return f"A command of credit_mongo {REDACTED}"


def _redacted(document: Any) -> object:
    try:
        found = json.loads(document) if isinstance(document, str) else document
        return {name: found[name] for name in _HARMLESS if name in found} or REDACTED
    except (ValueError, TypeError):  # cut off, as long documents are
        return REDACTED


# Once for the process, as loggers are; records from elsewhere pass as they are.
logging.getLogger("pymongo.command").addFilter(_Redaction())

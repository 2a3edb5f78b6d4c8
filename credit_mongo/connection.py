"""The way to the server: an URI that means what it says, and a server that can do the work."""

from __future__ import annotations

from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from credit_mongo.errors import ConfigurationError, ReplicaSetRequiredError

__all__ = ["check_replica_set", "connect"]

# The character set that MongoDB forbids in the names of databases, on any platform.
_FORBIDDEN_IN_DATABASE: Final = set('/\\. "$*<>:|?\0')
_LONGEST_DATABASE: Final = 63


def connect(uri: object, database: object, timeout_seconds: float) -> AsyncDatabase[dict[str, Any]]:
    """A database on a new client. Raises ConfigurationError.

    The driver only warns of options that it does not know, and then ignores them: ``tls=True`` is
    plaintext. Here, what is not understood is refused.
    """
    if not isinstance(uri, str):
        raise ConfigurationError("uri", f"must be a str, not {type(uri).__name__}")
    if not isinstance(database, str) or not 0 < len(database.encode()) <= _LONGEST_DATABASE:
        raise ConfigurationError("database", f"must be a str of 1 to {_LONGEST_DATABASE} bytes")
    if _FORBIDDEN_IN_DATABASE & set(database):
        raise ConfigurationError("database", "has a character that MongoDB forbids in names")
    try:
        # As if without "+srv": names are looked up when the client connects, not here.
        options = parse_uri(uri.replace("mongodb+srv://", "mongodb://", 1), warn=False)["options"]
    except (PyMongoError, ValueError, TypeError) as error:
        raise ConfigurationError("uri", _without_credentials(str(error), uri)) from None
    write_concern = options.get("w", "majority")
    if write_concern != "majority" and not (isinstance(write_concern, int) and write_concern > 0):
        raise ConfigurationError("uri", "w must be 'majority' or left out")
    defaults: dict[str, Any] = {
        "appname": "credit_mongo",
        # Before the deadline of the operation: the error then says which servers did not answer.
        "serverSelectionTimeoutMS": int(min(timeout_seconds * 0.8, 30) * 1000),
    }
    given = {name.lower() for name in options}
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
        uri, **{name: value for name, value in defaults.items() if name.lower() not in given}
    )
    return client[database]


def _without_credentials(message: str, uri: str) -> str:
    """The driver's text, unless it could quote a password."""
    if "@" in uri and any(part in message for part in uri.split("@")[:-1]):
        return "is not a MongoDB URI"
    return message


async def check_replica_set(database: AsyncDatabase[Any]) -> None:
    """Raise ReplicaSetRequiredError unless the server has transactions."""
    hello = await database.client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise ReplicaSetRequiredError

"""The way to the server: an URI that means what it says, and a server that can do the work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_plus

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.monitoring import (
    CommandListener,
    ConnectionPoolListener,
    ServerHeartbeatListener,
    ServerListener,
    TopologyListener,
)
from pymongo.uri_parser import parse_uri

from credit_mongo.config import PoolSize, check_pool
from credit_mongo.errors import ConfigurationError, ReplicaSetRequiredError
from credit_mongo.storage.connection_waits import ConnectionWaits
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["EventListener", "check_database", "check_listeners", "check_replica_set", "connect"]

EventListener: TypeAlias = (
    CommandListener
    | ConnectionPoolListener
    | ServerHeartbeatListener
    | ServerListener
    | TopologyListener
)
"""What a client of the driver tells its events."""

# The character set that MongoDB forbids in the names of databases, on any platform.
_FORBIDDEN_IN_DATABASE: Final = re.compile('[/\\\\. "$*<>:|?\x00\ud800-\udfff]')
# What makes it an URI to be looked up in DNS.
_SRV: Final = re.compile(r"(?<=^mongodb)\+srv(?=://)|(?<=[?&])srv\w+=[^&]*&?", re.IGNORECASE)
_LONGEST_DATABASE: Final = 63
_LONG_PART: Final = 5
# Inside of a user name or a password these end it, and the rest is taken for something else.
_UNESCAPED: Final = re.compile(r"[:@\[\]]|%(?![0-9A-Fa-f]{2})")


def connect(
    uri: object,
    database: object,
    timeout_seconds: float,
    *,
    pool_profile: object = None,
    min_pool_size: object = None,
    max_pool_size: object = None,
    event_listeners: object = (),
) -> AsyncDatabase[dict[str, Any]]:
    """A database on a new client, which warns when calls wait for a connection.

    The driver only warns of options that it does not know, and then ignores them: ``tls=True`` is
    plaintext. Here, what is not understood is refused.

    Raises ConfigurationError.
    """
    if not isinstance(uri, str):
        raise ConfigurationError("uri", f"must be a str, not {type(uri).__name__}")
    check_database(database)
    _check_credentials(uri)
    listeners = check_listeners(event_listeners)
    try:
        with warnings.catch_warnings():
            # An option that is repeated, or whose value is not known, gives no more than a warning.
            warnings.simplefilter("error")
            # As if without "+srv": names are looked up when the client connects, not here.
            options = parse_uri(_SRV.sub("", uri), warn=False)["options"]
            _check_write_concern(options.get("w", "majority"))
            in_uri = PoolSize(options.get("minPoolSize"), options.get("maxPoolSize"))
            pool = check_pool(pool_profile, min_pool_size, max_pool_size, in_uri)
            given = {name.lower() for name in options}
            client = _client(uri, given, timeout_seconds, pool, listeners)
    except (PyMongoError, ValueError, TypeError, OSError, Warning) as error:
        raise ConfigurationError("uri", _without_credentials(str(error), uri)) from None
    return client[str(database)]


def check_database(database: object) -> None:
    """Raise ConfigurationError unless MongoDB allows the name on every platform."""
    if not isinstance(database, str):
        raise ConfigurationError("database", f"must be a str, not {type(database).__name__}")
    if not 0 < len(database.encode(errors="replace")) <= _LONGEST_DATABASE:
        raise ConfigurationError("database", f"must have 1 to {_LONGEST_DATABASE} bytes")
    if _FORBIDDEN_IN_DATABASE.search(database):
        raise ConfigurationError("database", "has a character that MongoDB forbids in names")


def _check_credentials(uri: str) -> None:
    """Raise ConfigurationError for credentials with a character that must be percent-encoded.

    Ours to see before the driver, which takes what follows such a character for a host or an
    option, and says so in words that change from version to version and can quote a password.
    """
    authority, *rest = re.split("[/?#]", uri.partition("://")[2], maxsplit=1)
    name, _, password = authority.rpartition("@")[0].partition(":")
    if any("@" in text for text in rest) or any(map(_UNESCAPED.search, (name, password))):
        raise ConfigurationError(
            "uri",
            "has a character in the user name, the password or an option that must be "
            "percent-encoded, such as / as %2F or @ as %40; urllib.parse.quote_plus does it",
        )


def _check_write_concern(write_concern: object) -> None:
    if write_concern != "majority" and not (isinstance(write_concern, int) and write_concern > 0):
        raise ConfigurationError("uri", "w must be 'majority' or left out")


def check_listeners(listeners: object) -> list[EventListener]:
    """What the driver calls with its events. Raises ConfigurationError for anything else."""
    found: list[EventListener] = []
    for each in listeners if isinstance(listeners, Iterable) else [listeners]:
        if not isinstance(each, EventListener):
            kind = type(each).__name__
            raise ConfigurationError(
                "event_listeners", f"must be listeners of pymongo.monitoring, not {kind}"
            )
        found.append(each)
    return found


def _client(
    uri: str,
    given: set[str],
    timeout_seconds: float,
    pool: PoolSize,
    listeners: list[EventListener],
) -> AsyncMongoClient[dict[str, Any]]:
    sizes = {"minPoolSize": pool.least, "maxPoolSize": pool.most}
    defaults: dict[str, Any] = {
        "appname": "credit_mongo",
        # Before the deadline of the operation, by more than the driver's half second between two
        # looks: the error then says which servers did not answer.
        "serverSelectionTimeoutMS": int(max(timeout_seconds - 1, timeout_seconds / 2) * 1000),
    }
    options = {name: value for name, value in defaults.items() if name.lower() not in given}
    options |= {name: size for name, size in sizes.items() if size is not None}
    return AsyncMongoClient(uri, event_listeners=[ConnectionWaits(), *listeners], **options)


def _without_credentials(message: str, uri: str) -> str:
    """The driver's text, unless it could quote a user name or a password.

    The driver may quote any part of a password, decoded or in lower case. A short part counts only
    as a whole word: "ada" is no part of "readable".
    """
    credentials = uri.rpartition("@")[0].partition("://")[2]
    parts = re.split(r"\W+", f"{credentials} {unquote_plus(credentials)}".casefold())
    text = message.casefold()
    words = set(re.split(r"\W+", text))
    if any(part in words or (len(part) >= _LONG_PART and part in text) for part in parts if part):
        return (
            "cannot be used: it must start with mongodb:// or mongodb+srv://, with user name and "
            "password escaped (urllib.parse.quote_plus), name an existing host and valid options"
        )
    return message


async def check_replica_set(database: LedgerDatabase) -> None:
    """Raise ReplicaSetRequiredError unless the server has transactions."""
    hello = await database.ask({"hello": 1})
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise ReplicaSetRequiredError

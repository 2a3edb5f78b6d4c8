"""What to say of a server that is not reached: which it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo import AsyncMongoClient

__all__ = ["no_usable_server", "not_in_time"]

_REMEDY = (
    "Is the URI right, and does each mongod run with --replSet, once initiated? "
    "For development: python -m credit_mongo.local"
)


def no_usable_server(driver_text: str) -> str:
    """The driver's text without its view of the whole topology, and what to do."""
    found = driver_text.partition(" (configured timeouts")[0].partition(", Timeout:")[0]
    return f"no usable server in time{': ' if found else ''}{found}. {_REMEDY}"


def not_in_time(client: Any) -> str:
    """Of a call that ended by its deadline: by the servers' fault, if none can be written to."""
    if not isinstance(client, AsyncMongoClient):
        # A mock of one, which has no servers.
        return "the database did not answer in time"
    servers: Mapping[Any, Any] = client.topology_description.server_descriptions()
    if not servers or any(server.is_writable for server in servers.values()):
        return "the database did not answer in time"
    found = []
    for (host, port), server in sorted(servers.items(), key=str):
        name = host if port is None else f"{host}:{port}"
        if server.error is not None:
            # The driver's text begins with the name.
            found.append(str(server.error).partition(" (configured timeouts")[0])
        else:
            found.append(f"{name}: {'no primary' if server.is_server_type_known else 'no answer'}")
    return no_usable_server(", ".join(found))

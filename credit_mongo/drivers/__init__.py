"""The door: databases and sessions of any supported driver, as PyMongo's async API.

Those of PyMongo's own async client pass as they are: nothing stands between them and the engine.
Another driver's module is only looked at if the application has imported that driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database as SynchronousDatabase

from credit_mongo.drivers import mongomock, motor
from credit_mongo.drivers.synchronous import AdaptedDatabase, AdaptedSession
from credit_mongo.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    AnyDatabase: TypeAlias = AsyncDatabase[Any] | motor.MotorDatabase | mongomock.MockDatabase
    AnySession: TypeAlias = AsyncClientSession | motor.MotorSession
else:
    # The other drivers need not be installed.
    AnyDatabase = AnySession = Any

__all__ = ["AnyDatabase", "AnySession", "as_database", "as_session"]


def as_database(database: object) -> AsyncDatabase[Any]:
    """A database of an application's client. Raises ConfigurationError if it is none."""
    if isinstance(database, AsyncDatabase):
        return database
    # A mock says that it is Motor's: it is asked first.
    adapted = (
        database
        if isinstance(database, AdaptedDatabase)
        else mongomock.adapted_database(database) or motor.adapted_database(database)
    )
    if adapted is None:
        raise ConfigurationError("", f"database must be {_remedy(database)}")
    # It has all that is used of one.
    return cast(AsyncDatabase[Any], adapted)


def as_session(session: object, database: AsyncDatabase[Any]) -> AsyncClientSession | None:
    """A session for work on the database. Raises InvalidRequestError if it cannot be one."""
    if session is None or isinstance(session, AsyncClientSession):
        return session
    if isinstance(database, AdaptedDatabase):
        delegate = session.delegate if isinstance(session, AdaptedSession) else None
        if delegate is None:
            delegate = motor.delegate_of_session(session)
        if delegate is not None:
            adapted = database.client.adopt_session(delegate)
            adapted.application_session = session
            return cast(AsyncClientSession, adapted)
    raise InvalidRequestError(
        "session", f"must be a session of the ledger's client, not {type(session).__name__}"
    )


def _remedy(database: object) -> str:
    """What a database must be, for somebody who gave something else."""
    if isinstance(database, AsyncMongoClient) or motor.is_client(database):
        return "a database of the client, not the client: client['name']"
    if isinstance(database, MongoClient | SynchronousDatabase):
        return (
            "a database of an async client, for this one would block the event loop: "
            "AsyncMongoClient(uri)['name']"
        )
    return (
        "a database of PyMongo's AsyncMongoClient (or of Motor's AsyncIOMotorClient), "
        f"client['name'], not {type(database).__name__}"
    )

"""A ledger without a server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from credit_mongo.config import CreditConfig
from credit_mongo.errors import ConfigurationError
from credit_mongo.ledger import CreditLedger

if TYPE_CHECKING:
    from credit_mongo.drivers.mongomock import MockDatabase

__all__ = ["mock_ledger"]


def mock_ledger(
    config: CreditConfig,
    *,
    database: MockDatabase | None = None,
    clock: Callable[[], datetime] | None = None,
) -> CreditLedger:
    """A ledger in memory, for unit tests. Every operation works, with its results and errors.

    It needs the extra ``mock`` and no server. ``database`` is a database of the application's own
    ``AsyncMongoMockClient``. By default the ledger has an empty one to itself. ``clock`` has the
    same meaning as for CreditLedger.

    IT SHOWS THE LEDGER'S DECISIONS, AND NOTHING ELSE. It can't show the following, so test these on
    a replica set (``credit_mongo.local.LocalReplicaSet``):

    - Atomicity: there are no transactions. If an operation fails, its writes are undone. If the
      process dies, nothing is undone.
    - Concurrency: operations run one after the other, so they never conflict, wait or race.
    - Durability: the data is gone with the object.
    - Your own transactions: mongomock has no sessions, so ``session=`` is refused.
    - A server's timing and errors: there are no outages, deadlines, validators, access control or
      limits on the size of a document. Indexes don't slow, refuse or enforce anything. There is no
      TTL, so expired keys stay in the collection, though they count as absent as usual.
    - Maintenance: ``verify``, ``export`` and the other jobs need a server. ``delete_user`` and
      ``ensure_indexes`` work, but the latter only stores the indexes' descriptions.

    Raises ConfigurationError if mongomock-motor is not installed.
    """
    try:
        from mongomock_motor import AsyncMongoMockClient  # noqa: PLC0415 - needs an extra
    except ImportError as error:
        raise ConfigurationError(
            "", "mock_ledger needs mongomock-motor: pip install 'credit-mongo[mock]'"
        ) from error
    database = AsyncMongoMockClient()["app"] if database is None else database
    return CreditLedger(database, config, clock=clock)

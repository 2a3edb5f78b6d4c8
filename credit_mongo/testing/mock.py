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
    """A ledger in memory, for unit tests: every operation, with its results and its errors.

    It needs the extra ``mock``, and no server. ``database`` is one of the application's own
    ``AsyncMongoMockClient``; without, the ledger is empty and alone. ``clock`` as for CreditLedger.

    IT SHOWS WHAT THE LEDGER DECIDES, AND NOTHING ELSE. These it cannot show, and a test on it is no
    evidence for them; test them on a replica set (``credit_mongo.local.LocalReplicaSet``):

    - atomicity: there are no transactions. What an operation wrote is undone if it fails, but
      nothing is undone if the process dies;
    - concurrency: one operation runs after the other, so nothing ever conflicts, waits or races;
    - durability: it is gone with the object;
    - your own transactions: mongomock has no sessions, so ``session=`` is refused;
    - time and errors of a server: no outage, no deadline, no TTL (expired keys count as absent,
      as ever, and stay in the collection), no index that slows, refuses or enforces anything, no
      validator, no access control, no limit on the size of a document;
    - maintenance: ``verify``, ``export`` and the other jobs need a server. ``delete_user`` and
      ``ensure_indexes`` (which keeps descriptions of indexes, no more) work.

    Raises ConfigurationError if mongomock-motor is not installed.
    """
    try:
        from mongomock_motor import AsyncMongoMockClient  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise ConfigurationError(
            "", "mock_ledger needs mongomock-motor: pip install 'credit-mongo[mock]'"
        ) from error
    database = AsyncMongoMockClient()["app"] if database is None else database
    return CreditLedger(database, config, **({} if clock is None else {"clock": clock}))

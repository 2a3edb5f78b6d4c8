"""Opening a ledger: its settings are compared with those kept in the database, once."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from credit_mongo.engine.failures import may_pass
from credit_mongo.storage.collations import check_collations
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.settings import SETTINGS_COLLECTION, LedgerSettings

__all__ = ["Opening"]

_LOG: Final = logging.getLogger("credit_mongo")
_NOT_COMPARED: Final = (
    "the ledger's settings were not compared, as this user's role may not read %s: "
    "run credit-mongo roles --create"
)
_UNAUTHORIZED: Final = 13
_MOST_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.1


class Opening:
    """What has to be known before the first operation of a ledger, and costs the others nothing."""

    def __init__(self, database: LedgerDatabase, settings: LedgerSettings) -> None:
        self.is_done: bool = False
        self._database = database
        self._settings = settings
        # Operations that come together at the beginning wait for one look.
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Raise ConfigurationError if the ledger was set up with other settings, or collections.

        A failure is not remembered: the next operation looks again. Raises PyMongoError.
        """
        async with self._lock:
            if not self.is_done:
                self._settings.check(await self._kept())
                await check_collations(self._database)
                self.is_done = True

    async def _kept(self) -> tuple[LedgerSettings, ...]:
        for number in range(1, _MOST_TRIES + 1):
            try:
                return await LedgerSettings.all_in(self._database)
            except PyMongoError as error:
                if isinstance(error, OperationFailure) and error.code == _UNAUTHORIZED:
                    # A role from before there were settings: it did without until now.
                    _LOG.warning(_NOT_COMPARED, SETTINGS_COLLECTION)
                    return ()
                # Who waited for a server in vain has no time left to wait again.
                is_over = number == _MOST_TRIES or isinstance(error, ServerSelectionTimeoutError)
                if is_over or not may_pass(error):
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError

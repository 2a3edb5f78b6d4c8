"""Opening a ledger: its settings are compared with those kept in the database, once."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
from collections.abc import Sequence
from typing import Final

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from credit_mongo.engine import tasks
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.failures import may_pass
from credit_mongo.errors import CreditError
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.collations import check_collations
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.forms import missing_forms
from credit_mongo.storage.settings import SETTINGS_COLLECTION, LedgerSettings, stored_settings

__all__ = ["Opening"]

_LOG: Final = logging.getLogger("credit_mongo")
_NOT_COMPARED: Final = (
    "the ledger's settings were not compared, as this user's role may not read %s: "
    "run credit-mongo roles --create"
)
_MISSING: Final = (
    "the ledger in %s lacks these migrations of its stored form: %s. Run credit-mongo init"
)
_UNAUTHORIZED: Final = 13
_MOST_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.1


class Opening:
    """What has to be known before the first operation of a ledger, and costs the others nothing."""

    def __init__(
        self,
        database: LedgerDatabase,
        settings: LedgerSettings,
        deadlines: Deadlines,
        *,
        timeout_seconds: float,
    ) -> None:
        self.is_done: bool = False
        self._database = database
        self._settings = settings
        self._deadlines = deadlines
        # So that an operation whose look hangs has time for another, and for its own work.
        self._seconds = timeout_seconds / 3
        # Operations that come together at the beginning wait for one look.
        self._look: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Raise ConfigurationError if the ledger was set up with other settings, or collections.

        A failure is not remembered: the next operation looks again. Raises PyMongoError.
        """
        while not self.is_done:
            if self._look is None or self._look.done():
                # In a context of its own: a caller's pymongo.timeout() is not that of the others.
                self._look = contextvars.Context().run(tasks.start, self._look_in_time())
            try:
                await tasks.result_of(self._look)
            except asyncio.TimeoutError:
                continue  # its connection hangs, and another may not
            except CreditError as error:
                # One for each: an error that is raised takes up the traceback of its raising.
                raise copy.copy(error) from error.__cause__

    async def _look_in_time(self) -> None:
        await self._deadlines.keep(self._compare(), self._seconds)

    async def _compare(self) -> None:
        kept = await self._kept()
        if kept is not None:
            self._tell_what_is_missing(self._settings.check(kept))
        await check_collations(self._database)
        self.is_done = True

    def _tell_what_is_missing(self, row: Raw | None) -> None:
        missing = ", ".join(form.name for form in missing_forms(row))
        if missing:
            # A new application opens its ledger before ensure_indexes has ever run.
            level = logging.INFO if row is None else logging.WARNING
            _LOG.log(level, _MISSING, self._database.name, missing)

    async def _kept(self) -> Sequence[Raw] | None:
        """Return the rows of all ledgers, or None if the role may not read them."""
        for number in range(1, _MOST_TRIES + 1):
            try:
                return await stored_settings(self._database)
            except PyMongoError as error:
                if isinstance(error, OperationFailure) and error.code == _UNAUTHORIZED:
                    # A role from before there were settings: it did without until now.
                    _LOG.warning(_NOT_COMPARED, SETTINGS_COLLECTION)
                    return None
                # Who waited for a server in vain has no time left to wait again.
                is_over = number == _MOST_TRIES or isinstance(error, ServerSelectionTimeoutError)
                if is_over or not may_pass(error):
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError

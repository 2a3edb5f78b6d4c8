"""The methods of the ledger on its records."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from credit_mongo.core.pricing import in_credits
from credit_mongo.drivers import AnySession
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.errors import (
    InvalidRequestError,
)
from credit_mongo.maintenance.ledger_methods import IndexReport, ensure_all
from credit_mongo.storage.pages import AuditPage, HistoryPage

if TYPE_CHECKING:
    pass
from credit_mongo.ledger.calls import LedgerCalls

__all__ = ["RecordMethods"]


class RecordMethods(LedgerCalls):
    """Histories, the audit log, and the indexes."""

    async def get_history(
        self,
        user_id: str,
        *,
        limit: int = 50,
        offset: int = 0,
        cursor: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        action: str | None = None,
        include_archived: bool = False,
        session: AnySession | None = None,
    ) -> HistoryPage:
        """Return a page of the user's transactions, newest first.

        ``start_date`` is included, ``end_date`` is not. ``limit`` is 1 to 1,000 rows, ``offset`` 0
        to 100,000 rows. ``cursor`` takes a page's ``next_cursor`` and continues exactly where that
        page ended, whatever was written since; it cannot be combined with an ``offset``.

        ``include_archived`` also reads the archive collections, but not what was archived to files.

        Raises UserNotFoundError.
        """
        own = self._database.session(session)
        return await self._read(
            own,
            self._history.transactions,
            user_id,
            limit=limit,
            offset=offset,
            cursor=cursor,
            start_date=start_date,
            end_date=end_date,
            action=action,
            include_archived=include_archived,
            session=own,
        )

    async def get_audit_log(
        self,
        user_id: str,
        *,
        limit: int = 50,
        offset: int = 0,
        cursor: str | None = None,
        status: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        action: str | None = None,
        include_archived: bool = False,
        session: AnySession | None = None,
    ) -> AuditPage:
        """Return a page of the attempted operations on a user, newest first.

        ``status`` is "success" or "failed"; None returns both. The log also has the attempts on
        users who don't exist. All other arguments are those of ``get_history``.
        """
        own = self._database.session(session)
        return await self._read(
            own,
            self._history.audit_logs,
            user_id,
            limit=limit,
            offset=offset,
            cursor=cursor,
            status=status,
            start_date=start_date,
            end_date=end_date,
            action=action,
            include_archived=include_archived,
            session=own,
        )

    async def ensure_indexes(self) -> IndexReport:
        """Create the collections and indexes that are missing, and store the ledger's settings.

        Indexes that fit are kept, whatever their names. An index that conflicts doesn't raise: the
        report names it and says what to do. ``operation_timeout_seconds`` doesn't limit this call,
        because the server may need long to build an index on many rows.

        Raises ConfigurationError, and creates nothing, if the ledger in the database was set up
        with other settings.
        """
        self._check_open()
        config = self._config
        try:
            return await ensure_all(self._database, decimal_places=config.decimal_places)
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    def format(self, units: int) -> str:
        """Return an amount of smallest units as credits, for people to read.

        With ``decimal_places=2``, ``format(135_000)`` is ``"1,350.00"``. Raises InvalidRequestError
        if ``units`` is not an ``int``.
        """
        if isinstance(units, bool) or not isinstance(units, int):
            raise InvalidRequestError("units", f"must be an int, not {type(units).__name__}")
        return in_credits(int.__int__(units), self._config.decimal_places)

"""What an erasure takes: the rows of an account that was opened before it, and not those since."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import StorageError
from credit_mongo.maintenance.archive.borders import NO_BORDER, border_or_none
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import NEVER, after, not_after, place_of
from credit_mongo.storage.rows import Raw

__all__ = ["History", "RowsToErase", "in_files"]


def in_files(border: Raw | None) -> int:
    """Return how many of a user's transactions are in archive files, which stay."""
    found = (None if border is None else border_or_none(border)) or NO_BORDER
    return sum(
        segment.seq - found.opening_of(segment)[0]
        for segment in found.segments
        if segment.place == "files"
    )


class History(NamedTuple):
    """A collection of transactions, the one of their audit rows, and the names of their counts."""

    transactions: str
    audit_logs: str
    counted: str
    audits_counted: str


class RowsToErase:
    """The rows of one user, and which of them an erasure takes. Reads only."""

    def __init__(self, database: LedgerDatabase, user_id: str) -> None:
        self._database = database
        self._names = names = database.names
        self._users = database.users
        self._user_id = user_id
        live = History(names.transactions, names.audit_logs, "transactions", "auditLogs")
        # Rows only ever move from live to archived: a row that has left the first is in the other.
        archived = History(
            names.transactions_archive,
            names.audit_logs_archive,
            "archivedTransactions",
            "archivedAuditLogs",
        )
        self.histories: tuple[History, History] = (live, archived)
        self.holds: tuple[str, str] = (names.holds, names.holds_archive)
        self.collections: tuple[str, ...] = (
            *live[:2],
            *archived[:2],
            names.idempotency_records,
            *self.holds,
        )

    async def count(self) -> int:
        """Return about how many rows there are, without the idempotency records."""
        return sum(
            [
                await self._database[collection].count_documents({"userId": self._user_id})
                for history in self.histories
                for collection in history[:2]
            ]
        )

    async def has_history(self, session: AsyncClientSession) -> bool:
        """Return whether something is left of an account whose document other software removed.

        Audit rows don't count, because attempts on unknown users leave them too.
        """
        collections = [history.transactions for history in self.histories]
        if await self.has_rows([*collections, self._names.idempotency_records], {}, session):
            return True
        borders = self._database[self._names.archive_borders]
        return await borders.find_one({"_id": self._user_id}, session=session) is not None

    async def has_rows(
        self, collections: Iterable[str], query: Raw, session: AsyncClientSession
    ) -> bool:
        own = {"userId": self._user_id, **query}
        for collection in collections:
            if await self._database[collection].find_one(own, {"_id": 1}, session=session):
                return True
        return False

    async def scope(self, session: AsyncClientSession) -> Raw:
        """Return the part of a query that selects the rows to erase.

        It excludes the rows of an account opened since, and audit rows of later attempts, which
        could keep coming.
        """
        record = await self._database[self._names.erasures].find_one(
            {"_id": place_of(self._user_id)}, session=session
        )
        if record is None:
            # Another process has completed the erasure. If there is an account, it is a new one.
            return {"_id": {"$in": []}}
        until: datetime = record.get("until", NEVER)
        scope = {"createdAt": not_after(until)}
        users, collection = self._users, self._database[self._names.users]
        query = users.query_of(self._user_id)
        account = await collection.find_one(query, users.fields, session=session)
        if account is None or (users.are_the_applications and users.is_unopened(account)):
            return scope
        if users.are_the_applications:
            # The document may be older than its account.
            places = [history.transactions for history in self.histories]
            firsts = [await self.newest_in(each, session, seq=1) for each in places]
            opened: Any = max(firsts)
        else:
            opened = account.get(users.names.created_at)
        if not isinstance(opened, datetime) or opened <= until:
            # Other software opened the account, or a ledger that didn't know about the erasure.
            raise StorageError(
                "a new account was opened during the erasure, but it is not dated after the old "
                "one, so their rows cannot be told apart: erase the user again to erase both"
            )
        return scope

    async def newest(self, border: Raw | None, session: AsyncClientSession) -> datetime:
        """Return the date of the user's newest row, including rows in files."""
        moments = [await self.newest_in(each, session) for each in self.collections]
        archived = None if border is None else border.get("createdAt")
        return max([*moments, archived] if isinstance(archived, datetime) else moments)

    async def newest_in(
        self,
        collection: str,
        session: AsyncClientSession,
        field: str = "createdAt",
        **query: Any,
    ) -> datetime:
        found: Raw | None = await self._database[collection].find_one(
            {"userId": self._user_id, field: after(NEVER), **query},
            {field: 1},
            sort=[(field, -1)],
            session=session,
        )
        return NEVER if found is None else found[field]

"""Reads: accounts, history, audit log."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.values import Account, check_flag, check_identifier
from credit_mongo.errors import InvalidRequestError, UserNotFoundError
from credit_mongo.storage.clocks import CheckedClock
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.fields import StoredFields
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.pages import AuditPage, HistoryPage, PageQuery
from credit_mongo.storage.rows import Raw, audit_log_from, to_object_id, transaction_from

__all__ = ["History"]

_AUDIT_STATUSES: Final = ("success", "failed")

Row = TypeVar("Row")


class History:
    """What the ledger's collections hold, read as a majority has acknowledged it."""

    def __init__(
        self, database: LedgerDatabase, latest_write: LatestWrite, clock: CheckedClock
    ) -> None:
        self._database = database
        self._names = database.names
        self._users = database.users
        self._latest_write = latest_write
        self._clock = clock

    async def account(self, user_id: str, session: AsyncClientSession | None) -> Account:
        """A user's account. Raises UserNotFoundError and AccountDataError."""
        async with self._latest_write.seen_by(session) as seen:
            return await self._account(user_id, seen)

    async def account_now(
        self, user_id: str, session: AsyncClientSession | None
    ) -> tuple[Account, datetime]:
        """The same, and the time, for what time decides. Also raises ClockSkewError."""
        async with self._latest_write.seen_by(session) as seen:
            account, now = await self._account(user_id, seen), self._clock()
            await self._clock.check(now, seen)
            return account, now

    async def _account(self, user_id: str, session: AsyncClientSession) -> Account:
        users = self._users
        query = {"_id": users.id_of(user_id)}
        collection = self._database[self._names.users]
        document = await collection.find_one(query, users.fields, session=session)
        if document is None:
            raise UserNotFoundError(user_id)
        return users.account_from(document)

    async def transactions(
        self,
        user_id: object,
        *,
        limit: object,
        offset: object,
        cursor: object,
        start_date: object,
        end_date: object,
        action: object,
        include_archived: object,
        session: AsyncClientSession | None,
    ) -> HistoryPage:
        """A page of a user's transactions. Raises InvalidRequestError and UserNotFoundError."""
        query = PageQuery(
            "transactions",
            self._users.check_id("user_id", user_id),
            tie_breaker="seq",
            limit=limit,
            offset=offset,
            cursor=cursor,
            start_date=start_date,
            end_date=end_date,
        )
        if action is not None:
            query.filter["action"] = check_identifier("action", action)
        names = self._names
        places = _places(names.transactions, names.transactions_archive, include_archived)
        page = HistoryPage(*await self._page(places, query, transaction_from, session))
        if not page:
            await self.account(query.user_id, session)
        return page

    async def audit_logs(
        self,
        user_id: object,
        *,
        limit: object,
        offset: object,
        cursor: object,
        status: object,
        start_date: object,
        end_date: object,
        action: object,
        include_archived: object,
        session: AsyncClientSession | None,
    ) -> AuditPage:
        """A page of the attempts on a user, of one that does not exist, too."""
        query = PageQuery(
            "audit_logs",
            self._users.check_id("user_id", user_id),
            tie_breaker="_id",
            limit=limit,
            offset=offset,
            cursor=cursor,
            start_date=start_date,
            end_date=end_date,
        )
        if status is not None:
            if not isinstance(status, str) or status not in _AUDIT_STATUSES:
                raise InvalidRequestError("status", "must be 'success' or 'failed'")
            query.filter["status"] = status
        if action is not None:
            query.filter["action"] = check_identifier("action", action)
        names = self._names
        places = _places(names.audit_logs, names.audit_logs_archive, include_archived)
        return AuditPage(*await self._page(places, query, audit_log_from, session))

    async def charge_with_key(
        self, user_id: str, key: str, start_date: datetime
    ) -> tuple[str, int] | None:
        """Id and cost of the user's charge with this key, made since ``start_date``."""
        query = {
            "userId": user_id,
            "createdAt": {"$gte": start_date},
            "operation": ChargeRequest.operation,
            "idempotencyKey": key,
        }
        for row in await self._amounts(query, user_id):
            return row.row_id, -row.whole_number("amount")
        return None

    async def refunded_of(self, user_id: str, transaction_id: str) -> int:
        """How many units were refunded of this charge. Raises AccountDataError."""
        query = {"refundOf": to_object_id(transaction_id)}
        return sum(row.whole_number("amount") for row in await self._amounts(query, user_id))

    async def _amounts(self, query: Raw, user_id: str) -> list[StoredFields]:
        """Of transactions. One that moves to the archive meanwhile is not counted twice."""
        found: dict[Any, StoredFields] = {}
        async with self._latest_write.seen_by(None) as seen:
            # The archive comes last: what leaves the first collection meanwhile is there already.
            for place in (self._names.transactions, self._names.transactions_archive):
                rows = self._database[place].find(query, {"amount": 1}, session=seen)
                found |= {row["_id"]: StoredFields(row, user_id) async for row in rows}
        return list(found.values())

    async def _page(
        self,
        places: tuple[str, ...],
        query: PageQuery,
        row_from: Callable[[Mapping[str, Any], str], Row],
        session: AsyncClientSession | None,
    ) -> tuple[tuple[Row, ...], str | None]:
        """Rows and the cursor after them. Raises AccountDataError for a row that can't be read."""
        read = partial(self._read, places, query, row_from)
        return await self._latest_write.in_snapshot(self._database, places[0], session, read)

    async def _read(
        self,
        places: tuple[str, ...],
        query: PageQuery,
        row_from: Callable[[Mapping[str, Any], str], Row],
        session: AsyncClientSession,
    ) -> tuple[tuple[Row, ...], str | None]:
        query = copy.deepcopy(query)
        erased = await erased_until(self._database, [query.user_id], session)
        if (until := erased.get(query.user_id)) is not None:
            query.leave_out_until(until)
        documents: list[Raw] = []
        rows: list[Row] = []
        for number, place in enumerate(places):
            if number:
                await self._go_on(places[0], query, documents, session)
            found = await self._find(place, query, len(documents), session)
            # Before the query goes on from one of them: it needs what is checked here.
            wanted = found[: query.limit - len(documents)]
            rows += [row_from(document, query.user_id) for document in wanted]
            documents += found
            if len(documents) > query.limit:
                return tuple(rows), query.write_cursor(documents[: query.limit])
        return tuple(rows), None

    async def _find(
        self, place: str, query: PageQuery, found: int, session: AsyncClientSession
    ) -> list[Raw]:
        return await (
            self._database[place]
            .find(
                query.filter,
                sort=query.sort,
                skip=query.skip,
                # One more than asked for tells whether there is a next page.
                limit=query.limit + 1 - found,
                session=session,
            )
            .to_list(None)
        )

    async def _go_on(
        self, place: str, query: PageQuery, found: list[Raw], session: AsyncClientSession
    ) -> None:
        """In the archive, with what is older."""
        if found:
            query.continue_after_row(found[-1])
        elif query.skip:
            query.skip -= await self._database[place].count_documents(
                query.filter, limit=query.skip, session=session
            )


def _places(live: str, archive: str, include_archived: object) -> tuple[str, ...]:
    return (live, archive) if check_flag("include_archived", include_archived) else (live,)

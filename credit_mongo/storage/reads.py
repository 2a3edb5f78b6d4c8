"""Reads: accounts, history, audit log."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.advance import NO_REQUEST, advance, as_of
from credit_mongo.core.holds import HoldChanged, HoldRecord
from credit_mongo.core.operations.capture_hold import CaptureHoldRequest
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import Account, check_flag, check_identifier
from credit_mongo.errors import (
    AccountDataError,
    HoldNotFoundError,
    InvalidRequestError,
    TransactionNotFoundError,
    UserNotFoundError,
)
from credit_mongo.storage.clocks import CheckedClock
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until, is_erased
from credit_mongo.storage.fields import StoredFields
from credit_mongo.storage.holds import hold_from
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.pages import AuditPage, HistoryPage, PageQuery
from credit_mongo.storage.rows import Raw, audit_log_from, transaction_from

__all__ = ["MAX_HOLDS_READ", "History"]

MAX_HOLDS_READ: Final = 1000

_AUDIT_STATUSES: Final = ("success", "failed")

Row = TypeVar("Row")


class History:
    """What the ledger's collections hold, read as a majority has acknowledged it."""

    def __init__(
        self,
        database: LedgerDatabase,
        policy: Policy,
        latest_write: LatestWrite,
        clock: CheckedClock,
    ) -> None:
        self._policy = policy
        self._database = database
        self._names = database.names
        self._users = database.users
        self._latest_write = latest_write
        self._clock = clock

    async def account(self, user_id: str, session: AsyncClientSession | None) -> Account:
        """A user's account as of now. Raises UserNotFoundError and AccountDataError.

        Also raises ClockSkewError if time decides what the user has.
        """
        async with self._latest_write.seen_by(session) as seen:
            account = await self._account(user_id, seen)
            return account if account.extras is None else (await self._advanced(account, seen))[0]

    async def account_now(
        self, user_id: str, session: AsyncClientSession | None
    ) -> tuple[Account, datetime]:
        """The same, and the time, for what time decides. Also raises ClockSkewError."""
        async with self._latest_write.seen_by(session) as seen:
            return await self._advanced(await self._account(user_id, seen), seen)

    async def _advanced(
        self, account: Account, session: AsyncClientSession
    ) -> tuple[Account, datetime]:
        """The account as time has left it, without the rows that nobody has written yet."""
        now = self._clock()
        await self._clock.check(now, session)
        return as_of(account, self._policy.time_for(account, now)), now

    async def _account(self, user_id: str, session: AsyncClientSession) -> Account:
        users = self._users
        query = {"_id": users.id_of(user_id)}
        collection = self._database[self._names.users]
        document = await collection.find_one(query, users.fields, session=session)
        if document is None:
            raise UserNotFoundError(user_id)
        return users.account_from(document)

    async def owner_of_grant(self, grant_id: str, session: AsyncClientSession | None) -> str:
        """The user of a grant, archived or not. Raises TransactionNotFoundError."""
        places = (self._names.transactions, self._names.transactions_archive)
        owner = await self._owner_of(places, grant_id, session)
        if owner is None:
            raise TransactionNotFoundError(grant_id, "grant")
        return owner

    async def owner_of_hold(self, hold_id: str, session: AsyncClientSession | None) -> str:
        """The user of a hold, archived or not. Raises HoldNotFoundError."""
        places = (self._names.holds, self._names.holds_archive)
        owner = await self._owner_of(places, hold_id, session)
        if owner is None:
            raise HoldNotFoundError(hold_id)
        return owner

    async def _owner_of(
        self, places: tuple[str, ...], row_id: str, session: AsyncClientSession | None
    ) -> str | None:
        """The user of a row. The operation itself settles whether it can use the row."""
        query = {"_id": to_object_id(row_id)}
        async with self._latest_write.seen_by(session) as seen:
            # The archive comes last: what leaves the first collection meanwhile is there already.
            for place in places:
                row = await self._database[place].find_one(query, {"userId": 1}, session=seen)
                if row is not None and isinstance(row.get("userId"), str):
                    return str(row["userId"])
        return None

    async def hold(self, hold_id: str, session: AsyncClientSession | None) -> HoldRecord:
        """A hold as of now. Raises HoldNotFoundError and AccountDataError."""
        found = await self._holds_now({"_id": to_object_id(hold_id)}, 1, session)
        if not found:
            raise HoldNotFoundError(hold_id)
        return found[0]

    async def holds(
        self, user_id: str, status: str | None, limit: int, session: AsyncClientSession | None
    ) -> list[HoldRecord]:
        """A user's holds as of now, the newest first. Raises UserNotFoundError."""
        query: Raw = {"userId": user_id}
        if status in {"active", "expired"}:
            # Some that are stored as active have ended by now.
            query["status"] = {"$in": ["active", status]}
        elif status is not None:
            query["status"] = status
        found = await self._holds_now(query, limit, session, status)
        if not found:
            await self.account(user_id, session)
        return found

    async def _holds_now(
        self,
        query: Raw,
        limit: int,
        session: AsyncClientSession | None,
        status: str | None = None,
    ) -> list[HoldRecord]:
        read = partial(self._read_holds, query, limit, status)
        place = self._names.holds
        return await self._latest_write.in_snapshot(self._database, place, session, read)

    async def _read_holds(
        self, query: Raw, limit: int, status: str | None, session: AsyncClientSession
    ) -> list[HoldRecord]:
        found: list[HoldRecord] = []
        ended: dict[str, Mapping[str, Any]] = {}
        looked_at: set[str] = set()
        until: dict[str, datetime | None] = {}
        for place in (self._names.holds, self._names.holds_archive):
            sort = [("createdAt", -1), ("_id", -1)]
            async for document in self._database[place].find(query, sort=sort, session=session):
                owner = str(document.get("userId"))
                if owner not in until:
                    until[owner] = (await erased_until(self._database, [owner], session)).get(owner)
                if is_erased(document, until[owner]):
                    continue
                record = hold_from(document)
                if isinstance(record, AccountDataError):
                    raise record
                if record.status == "active" and record.user_id not in looked_at:
                    looked_at.add(record.user_id)
                    ended |= await self._ended_holds(record.user_id, session)
                record = replace(record, **ended.get(record.hold_id, {}))
                if status is None or record.status == status:
                    found.append(record)
                if len(found) == limit:
                    return found
        return found

    async def as_of_now(self, records: Sequence[HoldRecord]) -> list[HoldRecord]:
        """Holds of any users as time has left them, whatever nobody has written yet."""
        owners = {record.user_id for record in records if record.status == "active"}
        if not owners:
            return list(records)
        users = self._users
        query = {"_id": {"$in": users.stored_ids(owners)}}
        ended: dict[str, Mapping[str, Any]] = {}
        async with self._latest_write.seen_by(None) as session:
            now = self._clock()
            await self._clock.check(now, session)
            collection = self._database[self._names.users]
            async for document in collection.find(query, users.fields, session=session):
                # Of an account that can't be read, the holds are shown as they are stored.
                with contextlib.suppress(AccountDataError):
                    ended |= self._ended_of(users.account_from(document), now)
        return [replace(record, **ended.get(record.hold_id, {})) for record in records]

    async def _ended_holds(
        self, user_id: str, session: AsyncClientSession
    ) -> dict[str, Mapping[str, Any]]:
        """What time has changed in a user's holds and nobody has written yet."""
        account = await self._account(user_id, session)
        now = self._clock()
        await self._clock.check(now, session)
        return self._ended_of(account, now)

    def _ended_of(self, account: Account, now: datetime) -> dict[str, Mapping[str, Any]]:
        advanced = advance(account, self._policy.time_for(account, now), NO_REQUEST)
        changes = (change for change in advanced.changes if isinstance(change, HoldChanged))
        return {change.hold_id: change.changes for change in changes}

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

    async def capture_of(self, user_id: str, hold_id: str, start_date: datetime) -> str | None:
        """Id of a capture of the user's hold, made since ``start_date``."""
        query = {
            "userId": user_id,
            "createdAt": {"$gte": start_date},
            "operation": CaptureHoldRequest.operation,
            "holdId": to_object_id(hold_id),
        }
        return next((row.row_id for row in await self._amounts(query, user_id)), None)

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

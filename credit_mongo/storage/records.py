"""Rows of all users, the newest first, and one transaction with all that belongs to it.

They are for people who look at the ledger. Each list goes through an index, and a filter that no
index serves looks at so many rows a page (see ``listings.py``).
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Generic, TypeVar

from bson import ObjectId

from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.results import AuditLog, Transaction
from credit_mongo.core.values import (
    LARGEST_BALANCE,
    check_identifier,
    check_optional,
    check_whole_number,
)
from credit_mongo.errors import AccountDataError, InvalidRequestError, TransactionNotFoundError
from credit_mongo.storage.database import BY_ID, LedgerDatabase
from credit_mongo.storage.documents import FAILED_BY_TIME
from credit_mongo.storage.erasures import erased_until, is_erased
from credit_mongo.storage.fields import milliseconds
from credit_mongo.storage.holds import hold_from
from credit_mongo.storage.listings import MOST_EXAMINED, MOST_MILLISECONDS
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.reads import History
from credit_mongo.storage.rows import Raw, audit_log_from, transaction_from

__all__ = ["Records", "RowFilter", "RowsPage", "TransactionRecord"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MOST_RELATED: Final = 100
_MOST_OF_ONE_MOMENT: Final = 100_000
_IDS: Final[Raw] = {"$type": ["objectId", "string"]}

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class RowsPage(Generic[Row]):
    """Rows, the newest first, and where the list goes on."""

    rows: tuple[Row, ...]
    next_cursor: str | None
    examined: int | None = None
    """How many rows were looked at, if the page ends because these are enough for one page."""
    unreadable: int = 0
    """How many rows are left out because they are not what the ledger writes."""


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows to list."""

    action: str | None = None
    operation: str | None = None
    status: str | None = None
    code: str | None = None
    """The code of the error that refused an attempt."""
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> Raw:
        """The conditions that no index serves."""
        wanted = {
            "action": check_optional(check_identifier, "action", self.action),
            "operation": check_optional(check_identifier, "operation", self.operation),
            "status": check_optional(check_identifier, "status", self.status),
            "details.code": check_optional(check_identifier, "code", self.code),
        }
        return {name: value for name, value in wanted.items() if value is not None}


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """One transaction, with all that belongs to it."""

    transaction: Transaction
    is_archived: bool
    audit_log: AuditLog | None
    before: Transaction | None
    """The user's transaction before it, if it is in the database."""
    after: Transaction | None
    related: Transaction | None
    """The charge that it refunds, or the grant that it revokes."""
    refunds: tuple[Transaction, ...]
    revocations: tuple[Transaction, ...]


class Records:
    """The rows of a ledger, across its users."""

    def __init__(self, database: LedgerDatabase, history: History) -> None:
        self._database = database
        self._names = database.names
        self._history = history

    # Lists

    async def refused(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[AuditLog]:
        """The refused attempts, by time."""
        created_at: Raw = {"$type": "date"}
        if wanted.since is not None:
            created_at["$gte"] = wanted.since
        skip, place = 0, None if cursor is None else _moment_of(cursor)
        if wanted.until is not None:
            created_at["$lt"] = wanted.until
        if place is not None:
            moment, skip = place
            created_at["$lte"] = moment
        reading = _Reading(
            self._names.audit_logs,
            {"status": "failed", "createdAt": created_at},
            [("createdAt", -1)],
            replace(wanted, status=None).conditions(),
            hint=FAILED_BY_TIME.document["key"],
            skip=skip,
        )
        documents, end = await self._read(reading, limit)

        def cursor_after(seen: list[Raw]) -> str:
            last = seen[-1]["createdAt"]
            alike = sum(each["createdAt"] == last for each in seen)
            goes_on = place is not None and place[0] == last
            return _encoded([milliseconds(last), alike + (skip if goes_on else 0)])

        return await self._page(documents, limit, end, cursor_after, _audit_log)

    async def attempts(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[AuditLog]:
        """All attempts in the order of their ids, which is that of their time to the second."""
        reading = _Reading(
            self._names.audit_logs,
            _ids_before(cursor),
            [("_id", -1)],
            wanted.conditions(),
        )
        documents, end = await self._read(reading, limit)
        return await self._page(documents, limit, end, _cursor_after_id, _audit_log)

    async def holds(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[HoldRecord]:
        """Holds as of now, in the order of their ids, which is that in which they were placed."""
        conditions = wanted.conditions()
        if wanted.status in ("active", "expired"):
            # Some that are stored as active have ended by now.
            conditions["status"] = {"$in": ["active", wanted.status]}
        reading = _Reading(self._names.holds, _ids_before(cursor), [("_id", -1)], conditions)
        documents, end = await self._read(reading, limit)
        page = await self._page(documents, limit, end, _cursor_after_id, _hold)
        holds = await self._history.as_of_now(page.rows)
        return RowsPage(
            tuple(hold for hold in holds if wanted.status in (None, hold.status)),
            page.next_cursor,
            page.examined,
            page.unreadable,
        )

    async def _read(self, reading: _Reading, limit: int) -> tuple[list[Raw], Raw | None]:
        """One row more than asked for if there are more; and the last row that was looked at."""
        collection = self._database[reading.collection]
        found = await collection.aggregate(
            reading.pipeline(limit), maxTimeMS=MOST_MILLISECONDS, hint=dict(reading.hint)
        )
        documents: list[Raw] = await found.to_list()
        if not reading.conditions or len(documents) > limit:
            return documents, None
        last = await collection.find(
            reading.by_index,
            {"createdAt": 1},
            sort=reading.order,
            skip=reading.skip + MOST_EXAMINED - 1,
            limit=2,
            hint=list(reading.hint.items()),
        ).to_list()
        return documents, last[0] if len(last) > 1 else None

    async def _page(
        self,
        documents: list[Raw],
        limit: int,
        end: Raw | None,
        cursor_after: Callable[[list[Raw]], str],
        row_from: Callable[[Raw, str], Row],
    ) -> RowsPage[Row]:
        seen = documents[:limit]
        owners = {str(each.get("userId")) for each in seen}
        until = await erased_until(self._database, owners)
        rows, unreadable = [], 0
        for document in seen:
            owner = str(document.get("userId"))
            if is_erased(document, until.get(owner)):
                continue
            try:
                rows.append(row_from(document, owner))
            except AccountDataError:
                unreadable += 1
        cursor = None
        if len(documents) > limit:
            cursor = cursor_after(seen)
        elif end is not None:
            cursor = cursor_after([end])
        return RowsPage(tuple(rows), cursor, MOST_EXAMINED if end else None, unreadable)

    # One transaction

    async def transaction(self, transaction_id: str) -> TransactionRecord:
        """Raises TransactionNotFoundError and AccountDataError."""
        wanted = {"_id": to_object_id(transaction_id)}
        live, archive = self._names.transactions, self._names.transactions_archive
        # The archive comes last: what leaves the first collection meanwhile is there already.
        document, is_archived = await self._database[live].find_one(wanted), False
        if document is None:
            document, is_archived = await self._database[archive].find_one(wanted), True
        owner = "" if document is None else str(document.get("userId"))
        until = await erased_until(self._database, {owner})
        if document is None or is_erased(document, until.get(owner)):
            raise TransactionNotFoundError(transaction_id, "transaction")
        row = transaction_from(document, owner)
        named = row.refund_of or row.revoke_of
        return TransactionRecord(
            transaction=row,
            is_archived=is_archived,
            audit_log=await self._audit_log(transaction_id, owner),
            before=await self._neighbour(row, later=False),
            after=await self._neighbour(row, later=True),
            related=None if named is None else await self._one({"_id": to_object_id(named)}),
            refunds=await self._all({"refundOf": to_object_id(transaction_id)}),
            revocations=await self._all({"revokeOf": to_object_id(transaction_id)}),
        )

    async def captures(self, hold: HoldRecord) -> tuple[Transaction, ...]:
        """What was captured of a hold, the oldest first."""
        found = await self._all(
            {
                "userId": hold.user_id,
                "createdAt": {"$gte": hold.created_at, "$lte": hold.updated_at},
                "holdId": to_object_id(hold.hold_id),
            }
        )
        return tuple(sorted(found, key=lambda row: (row.created_at, row.seq)))

    async def _audit_log(self, row_id: str, owner: str) -> AuditLog | None:
        for place in (self._names.audit_logs, self._names.audit_logs_archive):
            document = await self._database[place].find_one({"_id": to_object_id(row_id)})
            if document is not None:
                with contextlib.suppress(AccountDataError):
                    return audit_log_from(document, owner)
        return None

    async def _neighbour(self, row: Transaction, *, later: bool) -> Transaction | None:
        """The user's next transaction, or the one before."""
        order, bound, beyond = (1, "$gte", "$gt") if later else (-1, "$lte", "$lt")
        query = {
            "userId": row.user_id,
            "createdAt": {bound: row.created_at},
            "seq": {beyond: row.seq},
        }
        found = []
        for place in (self._names.transactions, self._names.transactions_archive):
            document = await self._database[place].find_one(
                query, sort=[("createdAt", order), ("seq", order)]
            )
            with contextlib.suppress(AccountDataError):
                if document is not None:
                    found.append(transaction_from(document, row.user_id))
        return min(found, key=lambda each: abs(each.seq - row.seq), default=None)

    async def _one(self, query: Raw) -> Transaction | None:
        return next(iter(await self._all(query)), None)

    async def _all(self, query: Raw) -> tuple[Transaction, ...]:
        found: dict[str, Transaction] = {}
        for place in (self._names.transactions, self._names.transactions_archive):
            documents = self._database[place].find(query, limit=_MOST_RELATED)
            async for document in documents:
                with contextlib.suppress(AccountDataError):
                    row = transaction_from(document, str(document.get("userId")))
                    found[row.transaction_id] = row
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Reading:
    """A page of rows in the order of an index."""

    collection: str
    by_index: Raw
    order: list[tuple[str, int]]
    conditions: Raw
    hint: Mapping[str, int] = field(default_factory=lambda: dict(BY_ID))
    skip: int = 0

    def pipeline(self, limit: int) -> list[Raw]:
        stages: list[Raw] = [{"$match": self.by_index}, {"$sort": dict(self.order)}]
        if self.skip:
            stages.append({"$skip": self.skip})
        if self.conditions:
            stages += [{"$limit": MOST_EXAMINED}, {"$match": self.conditions}]
        return [*stages, {"$limit": limit + 1}]


def _audit_log(document: Raw, owner: str) -> AuditLog:
    return audit_log_from(document, owner)


def _hold(document: Raw, _owner: str) -> HoldRecord:
    found = hold_from(document)
    if isinstance(found, AccountDataError):
        raise found
    return found


# Cursors


def _ids_before(cursor: str | None) -> Raw:
    if cursor is None:
        return {"_id": _IDS}
    place = _decoded(cursor)
    if isinstance(place, list) and len(place) == 1 and isinstance(place[0], str):
        return {"_id": {"$lt": place[0]}}
    if isinstance(place, str) and ObjectId.is_valid(place):
        # Not "less than", which compares values of one type: strings come after all ObjectIds.
        return {"_id": {"$not": {"$gte": ObjectId(place)}, **_IDS}}
    raise _no_cursor()


def _cursor_after_id(seen: list[Raw]) -> str:
    row_id = seen[-1]["_id"]
    return _encoded(str(row_id) if isinstance(row_id, ObjectId) else [str(row_id)])


def _moment_of(cursor: str) -> tuple[datetime, int]:
    place = _decoded(cursor)
    try:
        at, count = place
        count = check_whole_number("cursor", count, 1, _MOST_OF_ONE_MOMENT)
        at = check_whole_number("cursor", at, -LARGEST_BALANCE, LARGEST_BALANCE)
        return _EPOCH + timedelta(milliseconds=at), count
    except (TypeError, ValueError, OverflowError, InvalidRequestError):
        raise _no_cursor() from None


def _encoded(place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Any:
    text = check_identifier("cursor", cursor)
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (ValueError, RecursionError):
        raise _no_cursor() from None


def _no_cursor() -> InvalidRequestError:
    return InvalidRequestError("cursor", "is not a cursor of this list")

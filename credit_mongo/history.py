"""Reads: accounts, history, audit log."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Generic, TypeVar, overload

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config import CollectionNames
from credit_mongo.core.accounts import Account
from credit_mongo.core.requests import LARGEST_BALANCE, check_identifier, check_moment
from credit_mongo.core.results import AuditLog, Transaction
from credit_mongo.engine.store import ACCOUNT_FIELDS, JOURNALED_MAJORITY, MAJORITY
from credit_mongo.errors import AccountDataError, InvalidRequestError, UserNotFoundError
from credit_mongo.rows import (
    CODEC_OPTIONS,
    Raw,
    account_from,
    audit_log_from,
    to_object_id,
    transaction_from,
)

__all__ = ["AuditPage", "History", "HistoryPage", "Page"]

LARGEST_LIMIT: Final = 1000
# An offset is walked row by row; a cursor is not.
LARGEST_OFFSET: Final = 100_000
_AUDIT_STATUSES: Final = ("success", "failed")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

Row = TypeVar("Row")


class Page(Sequence[Row], Generic[Row]):
    """Rows, newest first; ``next_cursor`` continues after the last, None at the end."""

    __slots__ = ("_rows", "next_cursor")

    def __init__(self, rows: Sequence[Row], next_cursor: str | None) -> None:
        self._rows = tuple(rows)
        self.next_cursor = next_cursor

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}, next_cursor={self.next_cursor!r}>"


class HistoryPage(Page[Transaction]):
    """A page of transactions."""

    __slots__ = ()


class AuditPage(Page[AuditLog]):
    """A page of audit logs."""

    __slots__ = ()


class _Query:
    """What part of a user's rows to read, checked; and the cursor, which is a place in them.

    Rows are ordered by ``createdAt`` and then by a field that no two of a user's rows share.
    """

    def __init__(
        self,
        kind: str,
        user_id: object,
        *,
        tie_breaker: str,
        limit: object,
        offset: object,
        cursor: object,
        start_date: object,
        end_date: object,
    ) -> None:
        self.user_id = check_identifier("user_id", user_id)
        self.limit = _check_count("limit", limit, 1, LARGEST_LIMIT)
        self.skip = _check_count("offset", offset, 0, LARGEST_OFFSET)
        self.tie_breaker = tie_breaker
        self.moment: datetime | None = None
        self._belongs_to = hashlib.blake2b(
            f"{kind}\0{self.user_id}".encode(), digest_size=6
        ).hexdigest()
        self.filter: Raw = {"userId": self.user_id}
        created_at: Raw = {}
        if start_date is not None:
            created_at["$gte"] = check_moment("start_date", start_date)
        if end_date is not None:
            created_at["$lt"] = check_moment("end_date", end_date)
        if len(created_at) == 2 and created_at["$gte"] > created_at["$lt"]:  # noqa: PLR2004
            raise InvalidRequestError("start_date", "is after end_date")
        if created_at:
            self.filter["createdAt"] = created_at
        if cursor is not None:
            if self.skip:
                raise InvalidRequestError("offset", "goes with no cursor")
            self._continue_after(cursor)

    @property
    def sort(self) -> list[tuple[str, int]]:
        return [("createdAt", -1), (self.tie_breaker, -1)]

    def write_cursor(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The place after these rows."""
        last = rows[-1]
        moment, tie = last["createdAt"], last.get(self.tie_breaker)
        seen = 0
        if tie is None:
            # Rows of the Credit SDK have no seq: of one moment, they are counted.
            alike = [r["createdAt"] == moment and r.get(self.tie_breaker) is None for r in rows]
            seen = sum(alike) + (self.skip if all(alike) and moment == self.moment else 0)
        milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
        place = [self._belongs_to, milliseconds, str(tie) if isinstance(tie, ObjectId) else tie]
        if seen:
            place.append(seen)
        return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")

    def _continue_after(self, cursor: object) -> None:
        text = check_identifier("cursor", cursor)
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            place = json.loads(base64.b64decode(padded, b"-_", validate=True))
            belongs_to, milliseconds, tie, seen = place if len(place) > 3 else [*place, 0]  # noqa: PLR2004
            moment = _EPOCH + timedelta(milliseconds=_check_count("cursor", milliseconds, 0))
            if self.tie_breaker == "_id":
                tie = to_object_id(check_identifier("cursor", tie))
            elif tie is not None:
                _check_count("cursor", tie, 0)
            # Counted where there is nothing else to tell rows apart, and only there.
            self.skip = _check_count(
                "cursor", seen, *((1, LARGEST_OFFSET) if tie is None else (0, 0))
            )
        except (ValueError, TypeError, OverflowError, RecursionError, InvalidRequestError):
            raise InvalidRequestError("cursor", "is not a next_cursor of this method") from None
        if belongs_to != self._belongs_to:
            raise InvalidRequestError("cursor", "belongs to another user or method")
        self.moment = moment
        after = None if tie is None else {"$lt": tie}
        earlier = [{"createdAt": {"$lt": moment}}, {"createdAt": moment, self.tie_breaker: after}]
        if isinstance(tie, int):
            earlier.append({"createdAt": moment, self.tie_breaker: None})
        self.filter["$or"] = earlier
        # Says what the $or implies, so that the index is entered at the right place.
        self.filter.setdefault("createdAt", {})["$lte"] = moment


class History:
    """What the ledger's collections hold, read as a majority has acknowledged it."""

    def __init__(self, database: AsyncDatabase[Raw], names: CollectionNames) -> None:
        self._database = database.with_options(
            codec_options=CODEC_OPTIONS,
            read_concern=MAJORITY,
            write_concern=JOURNALED_MAJORITY,
        )
        self._names = names

    async def account(self, user_id: str, session: AsyncClientSession | None) -> Account:
        """A user's account. Raises UserNotFoundError and AccountDataError."""
        users = self._database[self._names.users]
        document = await users.find_one({"_id": user_id}, ACCOUNT_FIELDS, session=session)
        if document is None:
            raise UserNotFoundError(user_id)
        return account_from(document)

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
        session: AsyncClientSession | None,
    ) -> HistoryPage:
        """A page of a user's transactions. Raises InvalidRequestError and UserNotFoundError."""
        query = _Query(
            "transactions",
            user_id,
            tie_breaker="seq",
            limit=limit,
            offset=offset,
            cursor=cursor,
            start_date=start_date,
            end_date=end_date,
        )
        if action is not None:
            query.filter["action"] = check_identifier("action", action)
        page = HistoryPage(
            *await self._page(self._names.transactions, query, transaction_from, session)
        )
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
        session: AsyncClientSession | None,
    ) -> AuditPage:
        """A page of the attempts on a user, of one that does not exist, too."""
        query = _Query(
            "audit_logs",
            user_id,
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
        return AuditPage(*await self._page(self._names.audit_logs, query, audit_log_from, session))

    async def _page(
        self,
        collection: str,
        query: _Query,
        row_from: Callable[[Mapping[str, Any]], Row],
        session: AsyncClientSession | None,
    ) -> tuple[list[Row], str | None]:
        found = self._database[collection].find(
            query.filter,
            sort=query.sort,
            skip=query.skip,
            # One more than asked for tells whether there is a next page.
            limit=query.limit + 1,
            session=session,
        )
        documents = await found.to_list(None)
        more = len(documents) > query.limit
        documents = documents[: query.limit]
        next_cursor = query.write_cursor(documents) if more else None
        try:
            return [row_from(document) for document in documents], next_cursor
        except (KeyError, TypeError, ValueError) as error:
            raise AccountDataError(
                query.user_id, collection, "have a row of no known kind"
            ) from error


def _check_count(field: str, value: object, least: int, most: int = LARGEST_BALANCE) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(field, f"must be an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidRequestError(field, f"must be from {least} to {most}")
    return int(value)

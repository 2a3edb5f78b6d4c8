"""Pages of a user's rows, and the cursors that go from one to the next."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Generic, TypeVar, overload

from bson import ObjectId

from credit_mongo.core.results import AuditLog, Transaction
from credit_mongo.core.values import (
    LARGEST_BALANCE,
    check_identifier,
    check_moment,
    check_whole_number,
)
from credit_mongo.errors import InvalidRequestError
from credit_mongo.storage.erasures import after
from credit_mongo.storage.fields import exact_whole, milliseconds
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.rows import Raw

__all__ = ["AuditPage", "HistoryPage", "Page", "PageQuery"]

LARGEST_LIMIT: Final = 1000
# An offset is walked row by row; a cursor is not.
LARGEST_OFFSET: Final = 100_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Page(Sequence[Row], Generic[Row]):
    """Rows, newest first; ``next_cursor`` continues after the last, None at the end.

    It is a sequence of its ``items``. As JSON it is an object of both fields.
    """

    items: tuple[Row, ...]
    next_cursor: str | None

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}, next_cursor={self.next_cursor!r}>"


# Each names the type of its items again: pydantic does not see through the type variable.


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HistoryPage(Page[Transaction]):
    """A page of transactions."""

    items: tuple[Transaction, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AuditPage(Page[AuditLog]):
    """A page of audit logs."""

    items: tuple[AuditLog, ...]


class PageQuery:
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
        self.user_id: str = check_identifier("user_id", user_id)
        self.limit: int = check_whole_number("limit", limit, 1, LARGEST_LIMIT)
        self.skip: int = check_whole_number("offset", offset, 0, LARGEST_OFFSET)
        self.tie_breaker: str = tie_breaker
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

    def continue_after_row(self, row: Mapping[str, Any]) -> None:
        """Leave out this row and all before it."""
        tie = row.get(self.tie_breaker)
        self.skip = 0
        if tie is not None:
            self._take_place(milliseconds(row["createdAt"]), _as_json(tie))

    def leave_out_until(self, moment: datetime) -> None:
        """Leave out what is not later."""
        self.filter["createdAt"] = {**after(moment), **self.filter.get("createdAt", {})}

    def write_cursor(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The place after these rows: the last one's moment and tie-breaker.

        Rows of the Credit SDK have no ``seq``. Those of one moment are counted instead, and if that
        moment began before the first page, all rows.
        """
        last = rows[-1]
        tie = last.get(self.tie_breaker)
        place: list[Any] = [self._belongs_to, milliseconds(last["createdAt"])]
        if tie is not None:
            place.append(_as_json(tie))
        else:
            alike = [
                row["createdAt"] == last["createdAt"] and row.get(self.tie_breaker) is None
                for row in rows
            ]
            goes_on = all(alike) and self.skip > 0
            if goes_on and self.moment is None:
                place = [self._belongs_to, None]
            goes_on = goes_on and self.moment in (None, last["createdAt"])
            place += [None, sum(alike) + self.skip * goes_on]
        return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")

    def _continue_after(self, cursor: object) -> None:
        text = check_identifier("cursor", cursor)
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            belongs_to, *place = json.loads(base64.b64decode(padded, b"-_", validate=True))
            self._take_place(*place)
        except (ValueError, TypeError, OverflowError, RecursionError, InvalidRequestError):
            raise InvalidRequestError("cursor", "is not a next_cursor of this method") from None
        if belongs_to != self._belongs_to:
            raise InvalidRequestError("cursor", "belongs to another user or method")

    def _take_place(self, milliseconds: object, tie: object, *seen: object) -> None:
        if tie is None:
            # Counted where there is nothing else to tell rows apart, and only there.
            [count] = seen
            self.skip = check_whole_number("cursor", count, 1, LARGEST_OFFSET)
            if milliseconds is None:
                return
        elif seen:
            raise ValueError
        moment = _EPOCH + timedelta(
            milliseconds=check_whole_number(
                "cursor", milliseconds, -LARGEST_BALANCE, LARGEST_BALANCE
            )
        )
        # Not "less than": what is no date comes after all dates, and would never come.
        rest: list[Raw] = [{"createdAt": {"$not": {"$gte": moment}}}]
        if tie is None:
            rest.append({"createdAt": moment, self.tie_breaker: None})
        elif self.tie_breaker == "_id":
            rest += _rows_before_id(moment, tie)
        else:
            seq = check_whole_number("cursor", tie, 0, LARGEST_BALANCE)
            rest.append({"createdAt": moment, "seq": {"$lt": seq}})
            rest.append({"createdAt": moment, "seq": None})
        self.moment = moment
        self.filter["$or"] = rest
        # Says what the $or implies, so that the index is entered at the right place.
        self.filter.setdefault("createdAt", {})["$not"] = {"$gt": moment}


def _rows_before_id(moment: datetime, tie: object) -> list[Raw]:
    if isinstance(tie, list):
        [text] = tie
        return [{"createdAt": moment, "_id": {"$lt": check_identifier("cursor", text)}}]
    row_id = to_object_id(check_identifier("cursor", tie))
    if not isinstance(row_id, ObjectId):
        raise TypeError
    # Not "less than", which compares values of one type: strings come after all ObjectIds.
    return [{"createdAt": moment, "_id": {"$not": {"$gte": row_id}}}]


def _as_json(tie: Any) -> Any:
    # In a list if it is a string, for an ObjectId is written as one.
    if isinstance(tie, ObjectId):
        return str(tie)
    return [tie] if isinstance(tie, str) else exact_whole(tie)

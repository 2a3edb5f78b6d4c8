"""Lists across all users, page by page, for people who look for something.

Each page goes through an index, and ends after so many documents whatever it has found: a filter
that few documents pass must keep no server busy. The page then says where the search goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from credit_mongo.core.advance import as_of
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import (
    LARGEST_BALANCE,
    Account,
    check_identifier,
    check_whole_number,
)
from credit_mongo.errors import AccountDataError, InvalidRequestError
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.users import text_after

__all__ = [
    "MOST_EXAMINED",
    "MOST_MILLISECONDS",
    "ListedUser",
    "Order",
    "UserFilter",
    "UserListing",
    "UsersPage",
]

MOST_EXAMINED: Final = 10_000
"""How many documents one page of a filtered list looks at."""
_FEW: Final = 1000
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
MOST_MILLISECONDS: Final = 5000
"""How long the server may work on one page."""


@dataclass(frozen=True, slots=True)
class ListedUser:
    """A user in a list. One whose document the ledger can't read has a ``problem`` instead."""

    user_id: str
    account: Account | None
    problem: str = ""
    found_by: str = ""
    """The value of the field by which the user was searched."""


@dataclass(frozen=True, slots=True)
class UsersPage:
    """Users in order, and where the list goes on."""

    users: tuple[ListedUser, ...]
    next_cursor: str | None
    examined: int | None = None
    """How many users were looked at, if the page ends because these are enough for one page."""
    too_many_to_sort: bool = False
    """Whether more users would have to be sorted than one page looks at. Then it lists none."""


Order: TypeAlias = Literal["highest", "lowest"]


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which users to list. Balances are in smallest units.

    ``beginning``, ``field`` and a ``tier`` that few users have go through an index. All else, and
    the order by balance, is worked out among so many users as one page looks at.
    """

    beginning: str | None = None
    """How their ids begin, or the texts in ``field``."""
    field: str | None = None
    """A field of theirs that has an index, to search by instead of the id."""
    tier: str | None = None
    least: int | None = None
    most: int | None = None
    active_since: datetime | None = None
    order: Order | None = None
    """By balance. None: by id, or by the field."""


class UserListing:
    """The users of a ledger."""

    def __init__(self, database: LedgerDatabase, policy: Policy) -> None:
        self._database = database
        self._users = database.users
        self._collection = database[database.names.users]
        self._policy = policy

    async def page(
        self, wanted: UserFilter, *, limit: int, cursor: str | None, now: datetime
    ) -> UsersPage:
        """A page of users. Its cursor goes on with the same filter and order."""
        if wanted.field is not None or wanted.order is not None:
            return await self._sorted_page(wanted, limit, cursor, now)
        by_index: Raw = {"$and": self._ids(wanted.beginning, cursor)}
        tier, is_indexed = await self._tier(wanted, _FEW)
        rest = self._conditions(wanted)
        if is_indexed:
            # Few enough to be sorted by id.
            by_index = {**tier, **by_index}
        else:
            rest = {**tier, **rest}
        pipeline: list[Raw] = [{"$match": by_index}, {"$sort": {"_id": 1}}]
        if rest:
            pipeline += [{"$limit": MOST_EXAMINED}, {"$match": rest}]
        documents = await self._read(pipeline, limit)
        users = self._listed_of(documents[:limit], wanted, now)
        if len(documents) > limit:
            return UsersPage(users, self._users.user_id_of(documents[limit - 1]))
        end = await self._end(by_index) if rest else None
        return UsersPage(users, end, MOST_EXAMINED if end else None)

    async def _sorted_page(
        self, wanted: UserFilter, limit: int, cursor: str | None, now: datetime
    ) -> UsersPage:
        """Users by a text in a field, or by balance, of so many as one page looks at."""
        balance, field = self._users.names.credits, wanted.field
        tier, is_indexed = await self._tier(wanted, MOST_EXAMINED if field is None else 0)
        by_index: Raw = {"$and": self._ids(wanted.beginning, None)}
        first: list[Raw] = []
        if field is not None:
            by_index, first = {field: _beginning(wanted.beginning)}, [{"$sort": {field: 1}}]
        elif is_indexed:
            by_index, tier = {**tier, **by_index}, {}
        are_more = await self._collection.count_documents(by_index, limit=MOST_EXAMINED + 1)
        if wanted.order is not None and are_more > MOST_EXAMINED:
            return UsersPage((), None, MOST_EXAMINED, too_many_to_sort=True)
        key = balance if field is None or wanted.order is not None else field
        direction = -1 if wanted.order == "highest" else 1
        rest = [self._conditions(wanted), tier, self._after(key, direction, cursor)]
        if key == balance:
            rest.append({balance: {"$type": ["int", "long"]}})
        pipeline: list[Raw] = [
            *({"$match": by_index}, *first, {"$limit": MOST_EXAMINED}),
            *({"$match": {"$and": rest}}, {"$sort": {key: direction, "_id": 1}}),
        ]
        documents = await self._read(pipeline, limit, field)
        users = self._listed_of(documents[:limit], wanted, now)
        if len(documents) > limit:
            last = documents[limit - 1]
            return UsersPage(users, _place(str(last[key]), self._users.user_id_of(last)))
        return UsersPage(users, None, MOST_EXAMINED if are_more > MOST_EXAMINED else None)

    async def _read(self, pipeline: list[Raw], limit: int, field: str | None = None) -> list[Raw]:
        """One document more than asked for, if there are more."""
        shown = self._users.fields if field is None else {**self._users.fields, field: 1}
        stages = [*pipeline, {"$limit": limit + 1}, {"$project": shown}]
        found = await self._collection.aggregate(stages, maxTimeMS=MOST_MILLISECONDS)
        documents: list[Raw] = await found.to_list()
        return documents

    def _after(self, key: str, direction: int, cursor: str | None) -> Raw:
        """The condition on what comes after a place of a sorted list."""
        if cursor is None:
            return {}
        text, user_id = _key_and_id(cursor)
        value: str | int = text
        if key == self._users.names.credits:
            value = check_whole_number("cursor", _number(text), -LARGEST_BALANCE, LARGEST_BALANCE)
        beyond = {key: {"$gt" if direction > 0 else "$lt": value}}
        return {"$or": [beyond, {key: value, "_id": self._users.ids_above(user_id)}]}

    async def _tier(self, wanted: UserFilter, most: int) -> tuple[Raw, bool]:
        """The condition on the tier, and whether so few users are in it that its index serves."""
        if wanted.tier is None:
            return {}, False
        tier = {self._users.names.membership_tier: wanted.tier}
        count = await self._collection.count_documents(tier, limit=most + 1)
        return tier, count <= most

    def _listed_of(
        self, documents: list[Raw], wanted: UserFilter, now: datetime
    ) -> tuple[ListedUser, ...]:
        listed = [
            self._listed(each, now, str(each.get(wanted.field, "")) if wanted.field else "")
            for each in documents
            if self._is_ours(each)
        ]
        # Time may have taken credits, and nobody has written that yet.
        return tuple(each for each in listed if _has_balance(each, wanted))

    async def indexed_fields(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the fields by which an index finds users."""
        if not wanted:
            return ()
        first = {
            next(iter(index["key"]), None)
            for index in await self._collection.list_indexes()
            if not {"collation", "partialFilterExpression"} & index.keys()
        }
        return tuple(field for field in wanted if field in first)

    def _ids(self, beginning: str | None, cursor: str | None) -> list[Raw]:
        ids = [{"_id": self._users.ids_above(cursor and check_identifier("cursor", cursor))}]
        if beginning is not None:
            ids.append({"_id": self._users.ids_beginning(beginning)})
        return ids

    def _conditions(self, wanted: UserFilter) -> Raw:
        names = self._users.names
        conditions: list[Raw] = []
        if self._users.are_the_applications:
            conditions.append(self._users.opened)
        if wanted.least is not None:
            conditions.append({names.credits: {"$gte": wanted.least}})
        if wanted.most is not None:
            # Time may take credits only of accounts that have extras.
            below = {names.credits: {"$lte": wanted.most}}
            conditions.append({"$or": [below, {names.extras: {"$type": "object"}}]})
        if wanted.active_since is not None:
            conditions.append({names.updated_at: {"$gte": wanted.active_since}})
        return {"$and": conditions} if conditions else {}

    async def _end(self, by_index: Raw) -> str | None:
        """The last id that a page has looked at, if it has not looked at all."""
        at_end = await self._collection.find(
            by_index, {"_id": 1}, sort=[("_id", 1)], skip=MOST_EXAMINED - 1, limit=2
        ).to_list()
        return self._users.user_id_of(at_end[0]) if len(at_end) > 1 else None

    def _is_ours(self, document: Mapping[str, Any]) -> bool:
        try:
            self._users.check_id("user_id", self._users.user_id_of(document))
        except (InvalidRequestError, TypeError, ValueError):
            return False  # an id of another type
        return not self._users.is_unopened(document)

    def _listed(self, document: Raw, now: datetime, found_by: str = "") -> ListedUser:
        user_id = self._users.user_id_of(document)
        try:
            account = self._users.account_from(document)
        except AccountDataError as error:
            return ListedUser(user_id, None, f"{error.field} {error.reason}", found_by)
        at = self._policy.time_for(account, now)
        return ListedUser(user_id, as_of(account, at), "", found_by)


def _has_balance(user: ListedUser, wanted: UserFilter) -> bool:
    if user.account is None:
        return True
    balance = user.account.credits
    return (wanted.least is None or balance >= wanted.least) and (
        wanted.most is None or balance <= wanted.most
    )


def _beginning(text: str | None) -> Raw:
    end = text_after(text) if text else None
    return {"$gte": text or ""} if end is None else {"$gte": text, "$lt": end}


# A place in a sorted list: the length of the key, the key, and the id of a user who has it.


def _place(key: str, user_id: str) -> str:
    return f"{len(key)}:{key}{user_id}"


def _key_and_id(cursor: str) -> tuple[str, str]:
    length, _, rest = cursor.partition(":")
    size = _number(length)
    if not 0 <= size <= len(rest):
        raise _no_cursor()
    return rest[:size], check_identifier("cursor", rest[size:])


def _number(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise _no_cursor()
    return int(text)


def _no_cursor() -> InvalidRequestError:
    return InvalidRequestError("cursor", "is not a cursor of this list")

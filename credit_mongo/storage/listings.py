"""Lists across all users, page by page, for people who look for something.

Each page goes through an index, and ends after so many documents whatever it has found: a filter
that few documents pass must keep no server busy. The page then says where the search goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from credit_mongo.core.advance import as_of
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import Account, check_identifier
from credit_mongo.errors import AccountDataError, InvalidRequestError
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.users import text_after

__all__ = [
    "MOST_EXAMINED",
    "MOST_MILLISECONDS",
    "ListedUser",
    "UserFilter",
    "UserListing",
    "UsersPage",
]

MOST_EXAMINED: Final = 10_000
"""How many documents one page of a filtered list looks at."""
_FEW: Final = 1000
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


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which users to list. Balances are in smallest units."""

    beginning: str | None = None
    """How their ids begin."""
    tier: str | None = None
    least: int | None = None
    most: int | None = None
    active_since: datetime | None = None


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
        """Users by id. The cursor is the last id of the page before."""
        by_index: Raw = {"$and": self._ids(wanted.beginning, cursor)}
        rest, tier = self._conditions(wanted), {}
        if wanted.tier is not None:
            tier = {self._users.names.membership_tier: wanted.tier}
            if await self._has_few(tier):
                # Few enough to be sorted by id.
                by_index, tier = {**tier, **by_index}, {}
        rest = {**tier, **rest}
        pipeline: list[Raw] = [{"$match": by_index}, {"$sort": {"_id": 1}}]
        if rest:
            pipeline += [{"$limit": MOST_EXAMINED}, {"$match": rest}]
        pipeline += [{"$limit": limit + 1}, {"$project": self._users.fields}]
        found = await self._collection.aggregate(pipeline, maxTimeMS=MOST_MILLISECONDS)
        documents = await found.to_list()
        listed = [self._listed(each, now) for each in documents[:limit]]
        # Time may have taken credits, and nobody has written that yet.
        users = tuple(each for each in listed if _has_balance(each, wanted))
        if len(documents) > limit:
            return UsersPage(users, listed[-1].user_id)
        end = await self._end(by_index) if rest else None
        return UsersPage(users, end, MOST_EXAMINED if end else None)

    async def found_by(self, field: str, text: str, *, limit: int, now: datetime) -> UsersPage:
        """Users by the beginning of a text in a field that has an index."""
        end = text_after(text)
        condition = {"$gte": text} if end is None else {"$gte": text, "$lt": end}
        documents = await self._collection.find(
            {field: condition}, {**self._users.fields, field: 1}, sort=[(field, 1)], limit=limit
        ).to_list()
        return UsersPage(
            tuple(
                self._listed(each, now, str(each[field]))
                for each in documents
                if self._is_ours(each)
            ),
            None,
        )

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

    async def _has_few(self, tier: Raw) -> bool:
        """Whether so few users are in a tier that its index alone finds a page of them."""
        return await self._collection.count_documents(tier, limit=_FEW + 1) <= _FEW

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

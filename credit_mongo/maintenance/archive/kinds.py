"""Kinds: which of the rows of transactions, and of audit logs, may go to the archive.

Decided in the very database transaction that moves them, from what is there then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.maintenance.archive.borders import Border, border_or_none, follow, settled_by
from credit_mongo.maintenance.archive.places import ArchivePlace
from credit_mongo.maintenance.archive.runs import Tally
from credit_mongo.maintenance.archive.slices import Slice
from credit_mongo.maintenance.archive.spans import Index
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.rows import Raw

__all__ = ["IS_BEING_ERASED", "AuditLogs", "Batch", "Kind", "Transactions"]

_user_of: Final = itemgetter("userId")
IS_BEING_ERASED: Final = "is being erased"


@dataclass(slots=True)
class Batch:
    """What a transaction moves."""

    rows: list[bytes] = field(default_factory=list)
    amount: int = 0
    borders: list[Border] = field(default_factory=list)
    is_new: list[bool] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    more: bool = False
    """Whether the span has more rows after these."""
    last: tuple[str, Any] | None = None
    """The user and the moment of the last row that was looked at."""
    tally: Tally | None = None


class Kind:
    """One kind of rows: where they are, and which of those that were read may go."""

    name: str

    def __init__(self, database: LedgerDatabase) -> None:
        self.database = database
        self.names = database.names
        self.users = database.users

    collection: str
    index: Index

    def goes_in_slices(self, place: ArchivePlace) -> bool:  # noqa: ARG002 - only some ask for it
        """Whether it can be told slice by slice which rows may go."""
        return True

    async def choose(
        self, rows: Sequence[Raw], old: Slice, place: ArchivePlace, session: AsyncClientSession
    ) -> tuple[list[int], Batch]:
        """Which of the rows of a slice go, by number, and what belongs to that."""
        raise NotImplementedError

    async def _by_ids(
        self, collection: str, ids: Sequence[Any], session: AsyncClientSession, *fields: str
    ) -> dict[Any, Raw]:
        found = self.database[collection].find(
            {"_id": {"$in": list(ids)}}, dict.fromkeys(fields, 1) or None, session=session
        )
        return {row["_id"]: row for row in await found.to_list()}

    async def _borders(
        self, user_ids: Sequence[str], session: AsyncClientSession
    ) -> dict[str, Border | None]:
        """The borders of those who have one; None if it can't be read."""
        borders: dict[str, Border | None] = {}
        found = await self._by_ids(self.names.archive_borders, user_ids, session)
        for user_id, row in found.items():
            borders[user_id] = border_or_none(row)
        return borders


class Transactions(Kind):
    """Transactions go in the order of their chain, up to the first that does not follow."""

    name = "transactions"
    index: Index = Index("seq")

    @property
    def collection(self) -> str:  # type: ignore[override]
        return self.names.transactions

    async def choose(
        self, rows: Sequence[Raw], old: Slice, place: ArchivePlace, session: AsyncClientSession
    ) -> tuple[list[int], Batch]:
        batch, chosen, number = Batch(), list[int](), 0
        user_ids = list(dict.fromkeys(map(_user_of, rows)))
        borders = await self._borders(user_ids, session)
        stopped = await self._stopped(user_ids, old, session)
        erased = await erased_until(self.database, user_ids, session)
        found = await self._by_ids(
            self.names.users, self.users.stored_ids(user_ids), session, *self.users.book_fields
        )
        accounts = {
            self.users.user_id_of(row) for row in found.values() if not self.users.is_unopened(row)
        }
        for user_id, group in groupby(rows, _user_of):
            own = list(group)
            border = borders.get(user_id, Border(user_id))
            if border is None:
                count, reason = 0, "has a border of the archive that can't be read"
            elif user_id in erased:
                count, reason = 0, IS_BEING_ERASED
            elif user_id not in accounts:
                count, reason = 0, "has no account"
            elif user_id in stopped:
                count, reason = 0, "has older transactions that stay"
            else:
                count, reason = follow(border, own)
            if border is not None and count:
                moved = own[:count]
                batch.borders.append(border.moved_to(place.kind, moved, settled_by(moved)))
                batch.is_new.append(not border.seq)
                batch.amount += sum(row["amount"] for row in moved)
                chosen += range(number, number + count)
            if reason:
                batch.left.append((user_id, reason))
            number += len(own)
        return chosen, batch

    async def _stopped(
        self, user_ids: Sequence[str], old: Slice, session: AsyncClientSession
    ) -> set[str]:
        """Those of whom a slice before has left something: what goes of a user is its beginning.

        Also where a later row happens to go on from the border, as it does after transactions that
        the ledger did not write, or if the clock went back.
        """
        if old.begin is None:
            return set()
        older: Raw = {"userId": {"$in": list(user_ids)}, "createdAt": {"$lt": old.begin}}
        # One look at the index for each user, however many such rows it has.
        found = await self.database[self.collection].aggregate(
            [{"$match": older}, {"$group": {"_id": "$userId"}}],
            hint=self.index.keys,
            session=session,
        )
        return {row["_id"] async for row in found}


class AuditLogs(Kind):
    """Audit rows follow their transactions: to files only if those are in files as well."""

    name = "auditLogs"
    index: Index = Index("_id")

    @property
    def collection(self) -> str:  # type: ignore[override]
        return self.names.audit_logs

    def goes_in_slices(self, place: ArchivePlace) -> bool:
        # Only the whole tells what is the beginning of a user's log.
        return place.kind == "collection"

    async def choose(
        self,
        rows: Sequence[Raw],
        old: Slice,  # noqa: ARG002 - where it matters it is the whole
        place: ArchivePlace,
        session: AsyncClientSession,
    ) -> tuple[list[int], Batch]:
        batch = Batch()
        user_ids = list(dict.fromkeys(map(_user_of, rows)))
        erased = await erased_until(self.database, user_ids, session)
        batch.left = [(user_id, "") for user_id in erased]
        if place.kind == "collection":
            return [n for n, row in enumerate(rows) if row["userId"] not in erased], batch
        chosen: list[int] = []
        successes = [row for row in rows if row.get("status") == "success"]
        ids = [row["_id"] for row in successes]
        kept: set[Any] = set()
        for collection in (self.names.transactions, self.names.transactions_archive):
            kept |= (await self._by_ids(collection, ids, session, "_id")).keys()
        borders = await self._borders(list(dict.fromkeys(map(_user_of, successes))), session)
        stay: set[str] = set(erased)
        for number, row in enumerate(rows):
            user_id = row["userId"]
            border = borders.get(user_id)
            if row.get("status") == "success" and (
                row["_id"] in kept or border is None or not border.is_filed(row["createdAt"])
            ):
                # What is archived of a user's log is its beginning.
                stay.add(user_id)
            if user_id not in stay:
                chosen.append(number)
        batch.left += [(user_id, "") for user_id in stay - erased.keys()]
        return chosen, batch

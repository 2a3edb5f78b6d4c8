"""Kinds: decide which transactions, audit rows and holds may go to the archive.

The decision is made in the same database transaction that moves the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import CollectionNames
from credit_mongo.maintenance.archive.borders import Border, border_or_none, follow, settled_by
from credit_mongo.maintenance.archive.places import ArchivePlace
from credit_mongo.maintenance.archive.runs import Tally
from credit_mongo.maintenance.archive.slices import Slice
from credit_mongo.maintenance.archive.spans import Index
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.holds import HOLD_STATUSES
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.users import StoredUsers

__all__ = ["IS_BEING_ERASED", "AuditLogs", "Batch", "Holds", "Kind", "Transactions"]

_user_of: Final = itemgetter("userId")
IS_BEING_ERASED: Final = "is being erased"
_ENDED: Final = frozenset(HOLD_STATUSES) - {"active"}


@dataclass(slots=True)
class Batch:
    """The rows that one database transaction moves."""

    rows: list[bytes] = field(default_factory=list)
    amount: int = 0
    borders: list[Border] = field(default_factory=list)
    is_new: list[bool] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    more: bool = False
    """Whether the span has more rows after these."""
    last: tuple[str, Any] | None = None
    """The user and the moment of the last row that was read."""
    tally: Tally | None = None


class Kind:
    """One kind of rows: where they are, and which of them may be moved."""

    name: str
    collection: str
    index: Index

    def __init__(self, database: LedgerDatabase) -> None:
        self.database: LedgerDatabase = database
        self.names: CollectionNames = database.names
        self.users: StoredUsers = database.users

    def goes_in_slices(self, place: ArchivePlace) -> bool:  # noqa: ARG002 - only some ask for it
        """Whether the rows to move can be chosen slice by slice."""
        return True

    async def choose(
        self, rows: Sequence[Raw], old: Slice, place: ArchivePlace, session: AsyncClientSession
    ) -> tuple[list[int], Batch]:
        """Choose the rows to move. Return their positions, and the batch without its rows."""
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
        """Return the borders of users who have one. A border is None if it can't be read."""
        borders: dict[str, Border | None] = {}
        found = await self._by_ids(self.names.archive_borders, user_ids, session)
        for user_id, row in found.items():
            borders[user_id] = border_or_none(row)
        return borders


class Transactions(Kind):
    """Transactions: moved in the order of their chain, up to the first that doesn't follow."""

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
        """Return the users who still have rows of an earlier slice.

        Only the beginning of a user's history may be archived. A later row can go on from the
        border all the same: after transactions that the ledger didn't write, or after a clock was
        set back.
        """
        if old.begin is None:
            return set()
        older: Raw = {"userId": {"$in": list(user_ids)}, "createdAt": {"$lt": old.begin}}
        # The server looks at the index once per user, however many rows the user has.
        found = await self.database[self.collection].aggregate(
            [{"$match": older}, {"$group": {"_id": "$userId"}}],
            hint=self.index.keys,
            session=session,
        )
        return {row["_id"] async for row in found}


class AuditLogs(Kind):
    """Audit rows: moved to files only if their transactions are in files too."""

    name = "auditLogs"
    index: Index = Index("_id")

    @property
    def collection(self) -> str:  # type: ignore[override]
        return self.names.audit_logs

    def goes_in_slices(self, place: ArchivePlace) -> bool:
        # For files, only all old rows together show where a user's log begins.
        return place.kind == "collection"

    async def choose(
        self,
        rows: Sequence[Raw],
        old: Slice,  # noqa: ARG002 - files always get all old rows at once
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
                # Only the beginning of a user's log may be archived.
                stay.add(user_id)
            if user_id not in stay:
                chosen.append(number)
        batch.left += [(user_id, "") for user_id in stay - erased.keys()]
        return chosen, batch


class Holds(Kind):
    """Holds: moved once nobody can capture them and their captures are archived.

    An active hold is never moved. Nothing changes a hold that has ended for so long.
    """

    name = "holds"
    index: Index = Index("_id")

    def __init__(self, database: LedgerDatabase, now: datetime, late: timedelta) -> None:
        super().__init__(database)
        self._now = now
        self._late = late

    @property
    def collection(self) -> str:  # type: ignore[override]
        return self.names.holds

    async def choose(
        self,
        rows: Sequence[Raw],
        old: Slice,
        place: ArchivePlace,  # noqa: ARG002 - there is but one
        session: AsyncClientSession,
    ) -> tuple[list[int], Batch]:
        batch, chosen, number = Batch(), list[int](), 0
        user_ids = list(dict.fromkeys(map(_user_of, rows)))
        erased = await erased_until(self.database, user_ids, session)
        for user_id, group in groupby(rows, _user_of):
            own = list(group)
            ended = [
                each for each, hold in enumerate(own) if self._has_ended(hold, in_utc(old.end))
            ]
            if user_id in erased or not ended:
                ended = []
            else:
                first = await self._first_transaction(user_id, session)
                ended = [each for each in ended if _is_before(own[each]["updatedAt"], first)]
            chosen += [number + each for each in ended]
            if len(ended) < len(own):
                batch.left.append((user_id, ""))
            number += len(own)
        return chosen, batch

    def _has_ended(self, hold: Raw, cut_off: datetime) -> bool:
        """Whether the hold ended before the cut-off, and so long ago that nothing changes it."""
        ended_at, expires_at = in_utc(hold.get("updatedAt")), in_utc(hold.get("expiresAt"))
        if hold.get("status") not in _ENDED or not isinstance(ended_at, datetime):
            return False
        if hold["status"] == "expired" and isinstance(expires_at, datetime):
            ended_at = max(ended_at, expires_at)
        return bool(ended_at < cut_off and ended_at + self._late < self._now)

    async def _first_transaction(self, user_id: str, session: AsyncClientSession) -> Any:
        """Return the date of the user's first transaction that is not archived, or None."""
        found = await self.database[self.names.transactions].find_one(
            {"userId": user_id},
            {"createdAt": 1},
            sort=[("createdAt", 1), ("seq", 1)],
            session=session,
        )
        return None if found is None else found.get("createdAt")


def _is_before(moment: Any, other: Any) -> bool:
    if other is None:
        return True
    return isinstance(other, datetime) and bool(in_utc(moment) < in_utc(other))

"""Moves: a batch of rows goes in one transaction from its collection to its place.

Copied, read back, deleted, counted in the manifest, and the borders moved: all of it or nothing.
The users' accounts are read and never written, so no charge has to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from bson import decode_all
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config import CollectionNames
from credit_mongo.errors import StorageError
from credit_mongo.maintenance.archive_borders import Border, border_or_none, follow, settled_by
from credit_mongo.maintenance.archive_pace import Pace
from credit_mongo.maintenance.archive_places import ArchivePlace, in_session
from credit_mongo.maintenance.archive_runs import Lane, Moved, Tally
from credit_mongo.maintenance.archive_slices import Slice
from credit_mongo.maintenance.archive_spans import Index, Span
from credit_mongo.maintenance.steps import LateStepError, Steps
from credit_mongo.rows import Raw
from credit_mongo.stored_users import StoredUsers

__all__ = ["NAIVE", "AuditLogs", "Kind", "Left", "Mover", "Transactions"]

_MOST_BYTES: Final = 4 << 20
# How often a batch is begun again, each time with the whole time of a step.
_MOST_LATE: Final = 3
# Naive datetimes are made in half the time, and are written back as they were.
NAIVE: Final[CodecOptions[Raw]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
_MOST_NAMED: Final = 1000
_user_of: Final = itemgetter("userId")


class Left:
    """The users who were left alone, from some row on, and why; the first ones by name."""

    def __init__(self) -> None:
        self.total: int = 0
        self.broken: int = 0
        """Of them, those whose books a verification has something to say about."""
        self.named: list[tuple[str, str]] = []

    def add(self, user_id: str, reason: str) -> None:
        """Each user once."""
        self.total += 1
        self.broken += reason != NO_SEQ
        if len(self.named) < _MOST_NAMED:
            self.named.append((user_id, reason))


NO_SEQ: Final = "has no seq"


@dataclass(slots=True)
class _Batch:
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

    def __init__(
        self, database: AsyncDatabase[Raw], names: CollectionNames, users: StoredUsers
    ) -> None:
        self.database = database
        self.names = names
        self.users = users

    collection: str
    index: Index

    def goes_in_slices(self, place: ArchivePlace) -> bool:  # noqa: ARG002 - only some ask for it
        """Whether it can be told slice by slice which rows may go."""
        return True

    async def choose(
        self, rows: Sequence[Raw], old: Slice, place: ArchivePlace, session: AsyncClientSession
    ) -> tuple[list[int], _Batch]:
        """Which of the rows of a slice go, by number, and what belongs to that."""
        raise NotImplementedError

    async def _by_ids(
        self, collection: str, ids: Sequence[Any], session: AsyncClientSession, *fields: str
    ) -> dict[Any, Raw]:
        found = self.database[collection].find(
            {"_id": {"$in": list(ids)}}, dict.fromkeys(fields, 1) or None, session=session
        )
        return {row["_id"]: row for row in await found.to_list(None)}

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
    ) -> tuple[list[int], _Batch]:
        batch, chosen, number = _Batch(), list[int](), 0
        user_ids = list(dict.fromkeys(map(_user_of, rows)))
        borders = await self._borders(user_ids, session)
        stopped = await self._stopped(user_ids, old, session)
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
    ) -> tuple[list[int], _Batch]:
        batch = _Batch()
        if place.kind == "collection":
            return list(range(len(rows))), batch
        chosen: list[int] = []
        successes = [row for row in rows if row.get("status") == "success"]
        ids = [row["_id"] for row in successes]
        kept: set[Any] = set()
        for collection in (self.names.transactions, self.names.transactions_archive):
            kept |= (await self._by_ids(collection, ids, session, "_id")).keys()
        borders = await self._borders(list(dict.fromkeys(map(_user_of, successes))), session)
        stay: set[str] = set()
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
        batch.left = [(user_id, "") for user_id in stay]
        return chosen, batch


class Mover:
    """Moves the rows of one kind and one slice, span by span."""

    def __init__(
        self,
        kind: Kind,
        old: Slice,
        place: ArchivePlace,
        left: Left,
        *,
        steps: Steps,
        pace: Pace,
    ) -> None:
        self._kind = kind
        self._old = old
        self._place = place
        self._steps = steps
        self._pace = pace
        self._left = left

    async def move(self, span: Span, lane: Lane) -> int:
        """All of a span, as far as it goes; how many rows."""
        loop = asyncio.get_running_loop()
        query, moved, more = self._query(span, None, is_left=False), 0, True
        while more:
            begun = loop.time()
            move = _Move(self._kind, self._old, query, self._place, lane=lane, pace=self._pace)
            batch = await self._take(move)
            if batch.tally is not None:
                lane.confirm(self._kind.name, batch.tally)
                await self._place.confirm()
            moved += len(batch.rows)
            for user_id, reason in batch.left:
                if reason and self._old.begin is None:
                    # The last slice meets all of them, each once.
                    self._left.add(user_id, reason)
            if more := batch.more:
                assert batch.last is not None  # noqa: S101 - there were rows
                is_left = batch.last[0] in {user_id for user_id, _ in batch.left}
                query = self._query(span, batch.last, is_left=is_left)
            await self._pace.rest(loop.time() - begun)
        return moved

    async def _take(self, move: _Move) -> _Batch:
        """A batch; one that is late is begun again, and is smaller if it can be."""
        for _ in range(_MOST_LATE):
            try:
                return await self._steps.take(move.make)
            except LateStepError:
                self._pace.slow_down()
        return await self._steps.take(move.make)

    def _query(self, span: Span, last: tuple[str, Any] | None, *, is_left: bool) -> Raw:
        """What a span still has after the last row, which is gone or was left alone."""
        if last is None:
            users: Raw = {"$gte": span.first, "$lte": span.last}
            return {"userId": users, "createdAt": self._old.moments}
        user_id, moment = last
        if is_left:
            users = {"$gte": span.first, "$lt": user_id}
        else:
            users = {"$gte": span.first, "$lte": user_id}
        older = self._old.moments
        if user_id == span.first and not is_left:
            # So that the server need not pass over all that was deleted.
            older["$gte"] = moment
        return {"userId": users, "createdAt": older}


class _Move:
    """One batch, however often its transaction has to be tried."""

    def __init__(
        self,
        kind: Kind,
        old: Slice,
        query: Raw,
        place: ArchivePlace,
        *,
        lane: Lane,
        pace: Pace,
    ) -> None:
        self._kind = kind
        self._old = old
        self._query = query
        self._place = place
        self._lane = lane
        self._pace = pace
        self._most_rows = 0
        self._tries = 0
        self._recorded: tuple[_Batch, Tally] | None = None

    async def make(self, session: AsyncClientSession) -> _Batch:
        kind, lane = self._kind, self._lane
        self._tries += 1
        this_try = self._tries
        if self._recorded is None:
            self._most_rows = self._pace.rows
        else:
            # It may have been committed, or may be yet: so it has to be the same.
            before, tally = self._recorded
            if await lane.was_recorded(kind.name, tally, session):
                return before
        rows = await in_session(
            kind.database,
            kind.collection,
            self._query,
            session,
            # One more tells whether there are more.
            limit=self._most_rows + 1,
            most_bytes=_MOST_BYTES,
            sort=list(kind.index.oldest_first.items()),
            hint=list(kind.index.keys.items()),
        )
        if not rows:
            return _Batch()
        more = len(rows) > self._most_rows or sum(map(len, rows)) >= _MOST_BYTES
        del rows[self._most_rows :]
        read = decode_all(b"".join(rows), NAIVE)
        chosen, batch = await kind.choose(read, self._old, self._place, session)
        batch.more = more
        batch.last = (read[-1]["userId"], read[-1]["createdAt"])
        batch.rows = [rows[number] for number in chosen]
        if chosen:
            ids = [read[number]["_id"] for number in chosen]
            self._check_that_it_is_the_last(this_try)
            tally = await self._write(batch, ids, session)
            self._check_that_it_is_the_last(this_try)
            batch.tally = tally
            self._recorded = (batch, tally)
        return batch

    def _check_that_it_is_the_last(self, this_try: int) -> None:
        # One that was given up must not write to a file in which a smaller one has its rows.
        if this_try != self._tries:
            raise asyncio.CancelledError

    async def _write(self, batch: _Batch, ids: Sequence[Any], session: AsyncClientSession) -> Tally:
        kind = self._kind
        files = await self._place.copy(self._lane, kind.name, batch.rows, ids, session)
        reply = await kind.database.command(
            {
                "delete": kind.collection,
                "deletes": [{"q": {"_id": {"$in": list(ids)}}, "limit": 0}],
            },
            session=session,
        )
        if reply["n"] != len(ids):
            # They were read in this very transaction.
            raise StorageError(f"{reply['n']} of {len(ids)} rows were there to delete")
        await self._write_borders(batch, session)
        moved = Moved(kind.name, len(ids), batch.amount, batch.rows)
        return await self._lane.record(moved, files, session)

    async def _write_borders(self, batch: _Batch, session: AsyncClientSession) -> None:
        borders = self._kind.names.archive_borders
        pairs = list(zip(batch.borders, batch.is_new, strict=True))
        inserts = [border.to_row() for border, is_new in pairs if is_new]
        updates = [_replacement(border.to_row()) for border, is_new in pairs if not is_new]
        commands: list[Raw] = []
        if inserts:
            commands.append({"insert": borders, "documents": inserts})
        if updates:
            commands.append({"update": borders, "updates": updates})
        for command in commands:
            reply = await self._kind.database.command(command, session=session)
            if reply["n"] != len(command.get("documents") or command.get("updates") or ()):
                raise StorageError("a border of the archive could not be written")


def _replacement(row: Mapping[str, Any]) -> Raw:
    return {"q": {"_id": row["_id"]}, "u": dict(row)}

"""Moves: move a batch of rows from its collection to the archive, in one database transaction.

The transaction copies the rows, reads them back, deletes them, counts them in the manifest and
moves the borders: all of this or nothing. It reads the users' accounts but never writes them, so
charges don't wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bson import decode_all
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.errors import JobTimeoutError, StorageError
from credit_mongo.maintenance.archive.kinds import IS_BEING_ERASED, Batch, Kind
from credit_mongo.maintenance.archive.places import ArchivePlace, in_session
from credit_mongo.maintenance.archive.runs import Lane, Moved, Tally
from credit_mongo.maintenance.archive.slices import Slice
from credit_mongo.maintenance.archive.spans import Span
from credit_mongo.maintenance.pace import Pace
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.codecs import NAIVE
from credit_mongo.storage.rows import Raw

__all__ = ["Left", "Mover"]

_MOST_BYTES: Final = 4 << 20
# How often a late batch is started again, each time with the full time of a step.
_MOST_LATE: Final = 3
_MOST_NAMED: Final = 1000
_NO_SEQ: Final = "has no seq"


class Left:
    """The users who keep some old rows. The first ones are named, each with the reason."""

    def __init__(self) -> None:
        self.total: int = 0
        self.broken: int = 0
        """How many of these users have books that a verification finds fault with."""
        self.named: list[tuple[str, str]] = []

    def add(self, user_id: str, reason: str) -> None:
        """Add a user. Call this once for each user."""
        self.total += 1
        self.broken += reason not in (_NO_SEQ, IS_BEING_ERASED)
        if len(self.named) < _MOST_NAMED:
            self.named.append((user_id, reason))


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
        """Move all rows of a span that may go. Return their number."""
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
                    # Count in the last slice only: it meets each of these users once.
                    self._left.add(user_id, reason)
            if more := batch.more:
                assert batch.last is not None  # noqa: S101 - there were rows
                is_left = batch.last[0] in {user_id for user_id, _ in batch.left}
                query = self._query(span, batch.last, is_left=is_left)
            await self._pace.rest(loop.time() - begun)
        return moved

    async def _take(self, move: _Move) -> Batch:
        """Move one batch. If it is late, start it again, with fewer rows if possible."""
        for _ in range(_MOST_LATE):
            try:
                return await self._steps.take(move.make)
            except JobTimeoutError:
                self._pace.slow_down()
        return await self._steps.take(move.make)

    def _query(self, span: Span, last: tuple[str, Any] | None, *, is_left: bool) -> Raw:
        """Query the rest of a span after the last row, which was moved or left."""
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
            # So that the server doesn't step over all deleted index entries.
            older["$gte"] = moment
        return {"userId": users, "createdAt": older}


class _Move:
    """One batch, over all attempts of its transaction."""

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
        self._recorded: tuple[Batch, Tally] | None = None

    async def make(self, session: AsyncClientSession) -> Batch:
        kind, lane = self._kind, self._lane
        self._tries += 1
        this_try = self._tries
        if self._recorded is None:
            self._most_rows = self._pace.rows
        else:
            # An earlier attempt may have committed, or may still commit. Use the same rows.
            before, tally = self._recorded
            if await lane.was_recorded(kind.name, tally, session):
                return before
        rows = await in_session(
            kind.database,
            kind.collection,
            self._query,
            session,
            # One row more shows whether the span has further rows.
            limit=self._most_rows + 1,
            most_bytes=_MOST_BYTES,
            order=list(kind.index.oldest_first.items()),
            index=list(kind.index.keys.items()),
        )
        if not rows:
            return Batch()
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
        # An abandoned attempt must not write to a file after a later, smaller one has written.
        if this_try != self._tries:
            raise asyncio.CancelledError

    async def _write(self, batch: Batch, ids: Sequence[Any], session: AsyncClientSession) -> Tally:
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
            # Impossible unless something is broken: this same transaction read the rows.
            raise StorageError(f"{reply['n']} of {len(ids)} rows were there to delete")
        await self._write_borders(batch, session)
        moved = Moved(kind.name, len(ids), batch.amount, batch.rows)
        return await self._lane.record(moved, files, session)

    async def _write_borders(self, batch: Batch, session: AsyncClientSession) -> None:
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

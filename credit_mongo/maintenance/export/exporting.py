"""The export: a user's or everyone's transactions for a period, in one pass and bounded memory.

They come user by user, newest first, as in the index that they are read by. All is read in one
snapshot for as long as the server keeps it (five minutes unless configured otherwise); then it goes
on in a fresh one, right after the last row. A row never changes, and one that is archived meanwhile
keeps its place in the order: so none is written twice, and none is left out that was there when the
export began. What is written to a user's history meanwhile is newer than what was read of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_moment, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import InvalidRequestError, UserNotFoundError
from credit_mongo.maintenance.export.files import standard_output, whole_file
from credit_mongo.maintenance.export.formats import Format, Write, encoder_of
from credit_mongo.maintenance.progress import OnProgress
from credit_mongo.maintenance.verification.reading import BATCH, Rows
from credit_mongo.storage.codecs import NAIVE
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import is_gone

__all__ = ["Export", "export_transactions"]


_ORDER: Final = [("userId", 1), ("createdAt", -1), ("seq", -1)]
_LATEST: Final = datetime.max  # noqa: DTZ901 - naive, as the rows have it
_MOST_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Export:
    """How many transactions were written, and whether files have more of the same users."""

    transactions: int
    has_files: bool
    """Transactions that were archived to files are in no export."""


async def export_transactions(
    database: AnyDatabase,
    destination: Path | None,
    *,
    format: Format,  # noqa: A002 - the word of the field
    user_id: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    include_archived: bool = False,
    overwrite: bool = False,
    guard_cells: bool = True,
    byte_order_mark: bool = False,
    decimal_places: int = 0,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    on_progress: OnProgress | None = None,
) -> Export:
    """Write a user's (None: everyone's) transactions from ``start`` on, and before ``end``.

    ``destination`` None is the standard output. A file is there as a whole or not at all, readable
    by its owner alone; one that is there already stays, unless ``overwrite``. ``guard_cells``: in
    CSV, a text that a spreadsheet would run as a formula gets an apostrophe before it.
    ``byte_order_mark``: CSV begins with one, by which Excel knows UTF-8. With ``decimal_places``
    (the configuration's), amounts are in credits as well, in columns of their own.

    It needs the ledger's indexes, and a role that can read. Raises InvalidRequestError,
    UserNotFoundError, OSError, and StorageError or PyMongoError if the database can't be read.
    """
    ledger = LedgerDatabase.of(database, collections, users).read_as(NAIVE)
    selection = _Selection(
        ledger,
        *_check_period(start, end),
        user_id=check_optional(ledger.users.check_id, "user_id", user_id),
        include_archived=check_flag("include_archived", include_archived),
    )
    done = 0
    has_files = await selection.check()
    with _opened(destination, overwrite=overwrite) as write:
        encoder = encoder_of(
            format,
            write,
            guard_cells=guard_cells,
            byte_order_mark=byte_order_mark,
            decimal_places=decimal_places,
        )
        async for rows in selection.rows():
            encoder.add(rows)
            done += len(rows)
            if on_progress is not None:
                on_progress(done, None)
        encoder.end()
    return Export(done, has_files)


def _opened(destination: Path | None, *, overwrite: bool) -> AbstractContextManager[Write]:
    if destination is None:
        return standard_output()
    return whole_file(destination, overwrite=overwrite)


def _check_period(start: object, end: object) -> tuple[datetime | None, datetime | None]:
    begin = check_optional(check_moment, "start", start)
    until = check_optional(check_moment, "end", end)
    if begin is not None and until is not None and begin >= until:
        raise InvalidRequestError("end", "must be later than the start")
    return begin, until


class _Selection:
    """The transactions that are asked for."""

    def __init__(
        self,
        database: LedgerDatabase,
        start: datetime | None,
        end: datetime | None,
        *,
        user_id: str | None,
        include_archived: bool,
    ) -> None:
        self._database = database
        self._names = names = database.names
        self._user_id = user_id
        bounds = {"$gte": start, "$lt": end}
        self._period = {name: moment for name, moment in bounds.items() if moment is not None}
        self._collections = [names.transactions]
        if include_archived:
            self._collections.append(names.transactions_archive)
        # The last row's user and moment, and the ids of all of his that have this moment.
        self._place: tuple[str, Any] | None = None
        self._at_place: set[Any] = set()

    async def check(self) -> bool:
        """Whether files have more. Raises UserNotFoundError."""
        database, names, user_id = self._database, self._names, self._user_id
        if user_id is not None:
            looks = {names.users: database.users.query_of(user_id)}
            for transactions in (names.transactions, names.transactions_archive):
                looks[transactions] = {"userId": user_id}
            for collection, query in looks.items():
                if await database[collection].find_one(query, {"_id": 1}) is not None:
                    break
            else:
                raise UserNotFoundError(user_id)
        filed: Raw = {"segments.place": "files"}
        if user_id is not None:
            filed["_id"] = user_id
        return await database[names.archive_borders].find_one(filed, {"_id": 1}) is not None

    async def rows(self) -> AsyncIterator[list[Raw]]:
        """Some at a time, in order, each once."""
        tries = 0
        while True:
            place = self._place
            try:
                async with self._database.client.start_session(snapshot=True) as session:
                    async for rows in self._in_snapshot(session):
                        yield self._go_on(rows)
                    return
            except PyMongoError as error:
                tries = tries + 1 if self._place == place else 1
                if not is_gone(error) or tries > _MOST_TRIES:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS if tries > 1 else 0)

    def _go_on(self, rows: list[Raw]) -> list[Raw]:
        """Move the place to the end of these rows."""
        last = rows[-1]
        place = (last["userId"], last.get("createdAt"))
        if place != self._place:
            self._at_place.clear()
        self._place = place
        for row in reversed(rows):
            if (row["userId"], row.get("createdAt")) != place:
                break
            self._at_place.add(row["_id"])
        return rows

    async def _in_snapshot(self, session: AsyncClientSession) -> AsyncIterator[list[Raw]]:
        """All that are left, as one moment has them."""
        seen = frozenset(self._at_place)
        # One after the other: the first command makes the moment.
        streams = []
        try:
            for collection in self._collections:
                streams.append(self._open(collection, session))
                await streams[-1].fill()
            while full := [stream for stream in streams if stream.rows]:
                rows = full[0].rows if len(full) == 1 else None
                if rows is not None:
                    full[0].rows = []
                else:
                    until = min(_key(stream.rows[-1]) for stream in full)
                    rows = sorted([row for s in full for row in s.take(until)], key=_key)
                if seen:
                    rows = [row for row in rows if row["_id"] not in seen]
                if rows:
                    yield rows
                for stream in streams:
                    await stream.fill()
        finally:
            for stream in streams:
                await stream.close()

    def _open(self, collection: str, session: AsyncClientSession) -> _Stream:
        # All fields: to leave one out would cost the server more than to send it.
        found = self._database[collection].find(
            self._query(),
            sort=_ORDER,
            hint=_ORDER if collection == self._names.transactions else None,
            allow_disk_use=True,
            batch_size=BATCH,
            session=session,
        )
        return _Stream(Rows(found))

    def _query(self) -> Raw:
        users: Raw = {"userId": {"$gte": ""} if self._user_id is None else self._user_id}
        if self._period:
            users["createdAt"] = self._period
        if self._place is None:
            return users
        user_id, moment = self._place
        rest: Raw = {"userId": user_id, "createdAt": {**self._period, "$lte": moment}}
        if self._user_id is not None:
            return rest
        return {"$or": [rest, {**users, "userId": {"$gt": user_id}}]}


class _Stream:
    """The rows of one collection."""

    def __init__(self, source: Rows) -> None:
        self._source = source
        self.rows: list[Raw] = []

    async def fill(self) -> None:
        if not self.rows:
            self.rows = await self._source.next()

    def take(self, until: tuple[Any, ...]) -> list[Raw]:
        """Those up to this place in the order."""
        number = 0
        rows = self.rows
        while number < len(rows) and _key(rows[number]) <= until:
            number += 1
        self.rows = rows[number:]
        return rows[:number]

    async def close(self) -> None:
        await self._source.close()


def _key(row: Raw) -> tuple[Any, ...]:
    """The place in the order."""
    moment, seq = row.get("createdAt"), row.get("seq")
    age = _LATEST - moment if type(moment) is datetime else timedelta.max
    return row["userId"], age, -seq if isinstance(seq, int) else 0

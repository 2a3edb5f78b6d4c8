"""The export: one user's or everyone's transactions for a period, in one pass and bounded memory.

The export writes user by user, newest first, in the order of the index that it reads. It reads in
one snapshot for as long as the server keeps it (five minutes unless configured otherwise). It then
goes on in a fresh snapshot, right after the last row. Rows never change, and a row that is archived
during the export keeps its position in the order. So no row is written twice, and every row that
existed when the export began is written. New rows of a user are newer than all rows already read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.price_checks import check_decimal_places
from credit_mongo.core.values import check_flag, check_kind, check_moment, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import InvalidRequestError, UserNotFoundError
from credit_mongo.maintenance.export.files import standard_output, whole_file
from credit_mongo.maintenance.export.formats import FORMATS, Format, Write, encoder_of
from credit_mongo.maintenance.progress import OnProgress, progress_of
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
    """How many transactions were written, and whether archive files hold more of these users."""

    transactions: int
    has_files: bool
    """Whether some transactions were archived to files. Exports never include these."""


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
    """Write transactions to a file or the standard output. Amounts are in smallest units.

    The database needs the ledger's indexes, and the caller a role that can read the rows.

    - ``destination``: the file to write, readable by its owner alone. It appears only when it is
      complete. None means the standard output.
    - ``format``: "csv", "jsonl" or "parquet" (needs pyarrow).
    - ``user_id``: whose transactions to write. None means everyone's.
    - ``start``, ``end``: write transactions from ``start`` up to, but not including, ``end``. Both
      need a time zone. None means no limit.
    - ``include_archived``: also write rows from the archive collection. Rows in archive files are
      never written.
    - ``overwrite``: replace an existing file. Otherwise an existing file is an error.
    - ``guard_cells``: in CSV, put an apostrophe before text that a spreadsheet would run as a
      formula.
    - ``byte_order_mark``: begin CSV with a byte order mark, so that Excel recognizes UTF-8.
    - ``decimal_places``: as in the ledger's configuration. Above 0, each amount also gets a column
      in credits.
    - ``collections``, ``users``: the same values as in the ledger's configuration.
    - ``on_progress``: called with the number of rows written so far, and None as the total.

    Raises:
    - ConfigurationError if ``database`` isn't a database of a supported driver.
    - InvalidRequestError for an argument out of its limits, or if pyarrow is missing.
    - UserNotFoundError if there is no such user and no transaction of that user.
    - OSError if the file can't be written: FileExistsError if it exists and ``overwrite`` is
      False.
    - StorageError or PyMongoError if the database can't be read or an index is missing.
    """
    ledger = LedgerDatabase.of(database, collections, users).read_as(NAIVE)
    selection = _Selection(
        ledger,
        *_check_period(start, end),
        user_id=check_optional(ledger.users.check_id, "user_id", user_id),
        include_archived=check_flag("include_archived", include_archived),
    )
    if format not in FORMATS:
        raise InvalidRequestError("format", f"must be one of {', '.join(FORMATS)}")
    encoding = partial(
        encoder_of,
        format,
        guard_cells=check_flag("guard_cells", guard_cells),
        byte_order_mark=check_flag("byte_order_mark", byte_order_mark),
        decimal_places=check_decimal_places("decimal_places", decimal_places),
    )
    opened = _opened(destination, overwrite=check_flag("overwrite", overwrite))
    tell = progress_of(on_progress)
    done = 0
    has_files = await selection.check()
    with opened as write:
        encoder = encoding(write)
        async for rows in selection.rows():
            encoder.add(rows)
            done += len(rows)
            tell(done, None)
        encoder.end()
    return Export(done, has_files)


def _opened(destination: Path | None, *, overwrite: bool) -> AbstractContextManager[Write]:
    if destination is None:
        return standard_output()
    return whole_file(check_kind("destination", destination, Path), overwrite=overwrite)


def _check_period(start: object, end: object) -> tuple[datetime | None, datetime | None]:
    begin = check_optional(check_moment, "start", start)
    until = check_optional(check_moment, "end", end)
    if begin is not None and until is not None and begin >= until:
        raise InvalidRequestError("end", "must be later than the start")
    return begin, until


class _Selection:
    """The transactions to export."""

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
        # The last row's user and moment, and the ids of the user's rows with the same moment.
        self._place: tuple[str, Any] | None = None
        self._at_place: set[Any] = set()

    async def check(self) -> bool:
        """Whether archive files hold more rows. Raises UserNotFoundError."""
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
        """Yield the rows in batches, in order, each row once."""
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
        """Remember the last of these rows as the place to go on from."""
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
        """Yield all remaining rows from one snapshot."""
        seen = frozenset(self._at_place)
        # Start them one after the other: the first command fixes the snapshot's moment.
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
        # Read all fields: leaving one out would cost the server more than sending it.
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
    """The rows of one collection, read in batches."""

    def __init__(self, source: Rows) -> None:
        self._source = source
        self.rows: list[Raw] = []

    async def fill(self) -> None:
        if not self.rows:
            self.rows = await self._source.next()

    def take(self, until: tuple[Any, ...]) -> list[Raw]:
        """Take the rows up to this sort key."""
        number = 0
        rows = self.rows
        while number < len(rows) and _key(rows[number]) <= until:
            number += 1
        self.rows = rows[number:]
        return rows[:number]

    async def close(self) -> None:
        await self._source.close()


def _key(row: Raw) -> tuple[Any, ...]:
    """The sort key of a row."""
    moment, seq = row.get("createdAt"), row.get("seq")
    age = _LATEST - moment if type(moment) is datetime else timedelta.max
    return row["userId"], age, -seq if isinstance(seq, int) else 0

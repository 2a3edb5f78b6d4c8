"""Streams: users with their transactions and audit rows, sorted by user id.

A user's rows come newest first, so archived rows come after the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.maintenance.verification.reading import (
    BATCH,
    WITHOUT_TRANSACTION,
    Reading,
    Rows,
)
from credit_mongo.storage.rows import Raw

__all__ = ["Streams"]

_BY_ID: Final = {"_id": 1}
# Newest first, in the order of the indexes.
_TRANSACTIONS: Final = {"userId": 1, "createdAt": -1, "seq": -1}
_AUDIT_LOGS: Final = {"userId": 1, "createdAt": -1, "_id": -1}
_TRANSACTION_FIELDS: Final = dict.fromkeys(
    (
        *("userId", "seq", "operation", "action", "amount", "balanceBefore", "balanceAfter"),
        *("idempotencyKey", "keyExpiresAt", "refundOf", "createdAt"),
        *("legs", "holdId", "oldOverdraft", "newOverdraft"),
    ),
    1,
)
_AUDIT_FIELDS: Final = dict.fromkeys(("userId", "operation", "action", "details", "createdAt"), 1)
_SUCCESS: Final = {"status": "success", "$nor": WITHOUT_TRANSACTION}


class _ByUser:
    """Rows sorted by user."""

    def __init__(self, rows: Rows, field: str) -> None:
        self._rows = rows
        self._user_of = itemgetter(field)
        self._batch: list[Raw] = []
        self._position = 0
        self.user_id: str | None = ""
        """The user whose rows come next, or None at the end."""

    async def begin(self) -> None:
        await self._go_to(0)

    async def _go_to(self, position: int) -> None:
        if position == len(self._batch):
            self._batch = await self._rows.next()
            position = 0
        self._position = position
        self.user_id = self._user_of(self._batch[position]) if self._batch else None

    async def take(self) -> list[Raw]:
        """Return the next rows of one user: all of them, or those that are already loaded."""
        batch, begin = self._batch, self._position
        end = bisect_right(batch, self.user_id, begin, key=self._user_of)
        taken = batch[begin:end]
        await self._go_to(end)
        return taken

    async def take_one_of(self, user_id: str) -> Raw | None:
        """Return the only document of a user, or None if there is none."""
        return (await self.take())[0] if self.user_id == user_id else None

    async def close(self) -> None:
        await self._rows.close()


class _WithArchive:
    """Rows of a collection and its archive. A user's archived rows come last."""

    def __init__(self, live: _ByUser, archived: _ByUser) -> None:
        self._live = live
        self._archived = archived

    async def begin(self) -> None:
        await self._live.begin()
        await self._archived.begin()

    @property
    def user_id(self) -> str | None:
        live, archived = self._live.user_id, self._archived.user_id
        if live is None or archived is None:
            return archived if live is None else live
        return min(live, archived)

    @property
    def is_archived(self) -> bool:
        """Whether the rows that come next are archived."""
        return self._live.user_id != self.user_id

    async def take(self) -> list[Raw]:
        return await (self._archived if self.is_archived else self._live).take()

    async def close(self) -> None:
        await self._live.close()
        await self._archived.close()


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams that are read side by side."""

    users: _ByUser
    borders: _ByUser
    transactions: _WithArchive
    audits: _WithArchive | None

    @classmethod
    def open(cls, reading: Reading, place: str | None, session: AsyncClientSession) -> Streams:
        """Open streams from the first user after ``place`` on. Ids must be strings."""
        # The verification counts other ids separately.
        above = {"$gte": ""} if place is None else {"$gt": place}

        def stream(
            collection: str,
            query: Raw,
            fields: Raw,
            order: Mapping[str, int],
            read_as: Callable[[Raw], Raw] | None = None,
        ) -> _ByUser:
            keys = list(order.items())
            found = reading.database[collection].find(
                query, fields or None, sort=keys, hint=keys, batch_size=BATCH, session=session
            )
            return _ByUser(Rows(found, read_as), keys[0][0])

        transactions, audits = (
            [stream(name, {"userId": above, **query}, fields, order) for name in names]
            for names, fields, order, query in (
                (reading.transactions, _TRANSACTION_FIELDS, _TRANSACTIONS, {}),
                (
                    reading.audit_logs if reading.audits else (),
                    _AUDIT_FIELDS,
                    _AUDIT_LOGS,
                    _SUCCESS,
                ),
            )
        )
        users = reading.users
        own_ids = {"_id": users.ids_above(place)}
        return cls(
            stream(reading.names.users, own_ids, users.book_fields, _BY_ID, users.by_own_names),
            stream(reading.names.archive_borders, {"_id": above}, {}, _BY_ID),
            _WithArchive(*transactions),
            _WithArchive(*audits) if audits else None,
        )

    @property
    def user_id(self) -> str | None:
        """The user who comes next, or None at the end."""
        next_ones = (stream.user_id for stream in self._all())
        return min((user_id for user_id in next_ones if user_id is not None), default=None)

    async def begin(self) -> None:
        """Load the first rows of each stream."""
        for stream in self._all():
            await stream.begin()

    async def close(self) -> None:
        """Close all streams, fully read or not."""
        for stream in self._all():
            await stream.close()

    def _all(self) -> tuple[_ByUser | _WithArchive, ...]:
        streams = (self.users, self.borders, self.transactions)
        return streams if self.audits is None else (*streams, self.audits)

"""How a verification reads: rows in bulk, in snapshots that the server keeps for a while."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core import operations
from credit_mongo.core.advance import CAPTURE
from credit_mongo.core.operations import REFUNDABLE
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.errors import StorageError
from credit_mongo.maintenance.archive.borders import NO_BORDER, Border, border_or_none
from credit_mongo.maintenance.verification.findings import Code
from credit_mongo.storage.codecs import NAIVE
from credit_mongo.storage.database import Cursor, LedgerDatabase
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import BAD_HINT
from credit_mongo.storage.users import StoredUsers

__all__ = ["BATCH", "LOOK_UP", "WITHOUT_TRANSACTION", "Reading", "Rows", "check_index"]

LOOK_UP: Final = 1000
"""How many documents one query asks for by their ids."""
BATCH: Final = 2000
WITHOUT_TRANSACTION: Final = (
    {"operation": {"$in": list(operations.WITHOUT_TRANSACTION)}},
    {"operation": CAPTURE, "details.amount": {"$exists": False}},
)
"""Audit rows of successes that moved no credits. A capture may take nothing."""
_SAMPLE: Final = 1000
_LAST_YEAR: Final = 9996
_FIRST: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_PATIENCE_SECONDS: Final = 1.0
_CHARGE: Final = ChargeRequest.operation
# The server removes expired records by its own clock. Processes set the expiry by theirs.
CLOCKS_DIFFER_BY: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Reading:
    """The collections to read, and the settings with which they were written."""

    database: LedgerDatabase
    audits: bool
    """Whether each transaction must have an audit row."""
    key_ttl: timedelta
    """How long the ledger remembers keys of transactions that don't store this themselves."""
    clock_skew: timedelta | None = None
    """How far ahead of the server's clock a row may be dated. None: no limit."""

    @classmethod
    def of(
        cls,
        database: AnyDatabase,
        names: CollectionNames | None,
        *,
        audits: bool,
        key_ttl: timedelta,
        users: UserMapping | None = None,
        clock_skew: timedelta | None = None,
    ) -> Reading:
        """Read ``database`` from the primary."""
        # Naive datetimes are enough: they are only compared with each other.
        ledger = LedgerDatabase.of(database, names, users).read_as(NAIVE)
        return cls(ledger, audits, key_ttl, clock_skew)

    @property
    def names(self) -> CollectionNames:
        """The names of the collections."""
        return self.database.names

    @property
    def users(self) -> StoredUsers:
        """How to read the users' documents."""
        return self.database.users

    async def with_ttl_of_records(self, session: AsyncClientSession) -> Reading:
        """Return a copy with the shortest lifetime in a sample of records, if it is shorter."""
        records = self.database[self.names.idempotency_records]
        fields = {"createdAt": 1, "expiresAt": 1}
        ttl = self.key_ttl
        async for record in records.find({}, fields, limit=_SAMPLE, session=session):
            created_at, expires_at = record.get("createdAt"), record.get("expiresAt")
            if isinstance(created_at, datetime) and isinstance(expires_at, datetime):
                ttl = min(ttl, expires_at - created_at)
        return replace(self, key_ttl=ttl)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncClientSession]:
        """Open a session whose reads all see one moment.

        Once the server drops the snapshot, reads raise an error for which ``is_gone`` holds.

        Several cursors of the session can be read at once: it has no transaction, and after the
        first command nothing that cursors need changes in it.
        """
        async with self.database.client.start_session(snapshot=True) as session:
            # The first command fixes the moment, even if the collection is empty.
            await self.database[self.names.users].find_one({"_id": ""}, session=session)
            yield session

    async def now(self) -> datetime:
        """The time by the server's clock, which also decides when records expire."""
        hello = await self.database.ask({"hello": 1})
        now: datetime = hello["localTime"]
        return now

    def due_by(self, user: Raw | None, now: datetime) -> datetime:
        """The moment by which an account has posted all that was due: its last change.

        A clock may have been wrong, so it is not after the server's, and the skew is left out.
        """
        changed_at = (user or {}).get("updatedAt")
        if not isinstance(changed_at, datetime):
            return _FIRST
        skew = self.clock_skew
        until: datetime = in_utc(changed_at if skew is None else min(changed_at, now) - skew)
        return until

    def latest(self, now: datetime) -> datetime:
        """The latest plausible date of a row. A later date comes from a wrong clock."""
        skew = self.clock_skew
        return now.replace(year=_LAST_YEAR) if skew is None else now + skew

    def key_expires(self, row: Raw) -> datetime:
        """When the ledger forgets a transaction's key. ``createdAt`` must be a date."""
        stored = row.get("keyExpiresAt")
        if isinstance(stored, datetime):
            return stored
        created_at: datetime = row["createdAt"]
        try:
            return created_at + self.key_ttl
        except OverflowError:
            return datetime.max  # noqa: DTZ901 - here, all dates are naive

    def is_remembered(self, row: Raw, now: datetime) -> bool:
        """Whether the record of a transaction's key must still exist."""
        return self.key_expires(row) > now + CLOCKS_DIFFER_BY

    async def by_ids(
        self,
        collection: str,
        ids: Sequence[Any],
        fields: Mapping[str, Any],
        session: AsyncClientSession,
    ) -> dict[Any, Raw]:
        """Return documents by ``_id``. Missing ones are left out."""
        found = await (
            self.database[collection]
            .find({"_id": {"$in": list(ids)}}, fields, session=session, batch_size=LOOK_UP + 1)
            .to_list()
        )
        return {document["_id"]: document for document in found}

    async def by_ids_anywhere(
        self,
        collections: Sequence[str],
        ids: Sequence[Any],
        fields: Mapping[str, Any],
        session: AsyncClientSession,
    ) -> dict[Any, Raw]:
        """Return documents by ``_id``, each from the first collection that has it."""
        found: dict[Any, Raw] = {}
        for collection in collections:
            left = [row_id for row_id in ids if row_id not in found]
            if left:
                found |= await self.by_ids(collection, left, fields, session)
        return found

    @property
    def transactions(self) -> tuple[str, str]:
        """The collections that hold transactions."""
        return self.names.transactions, self.names.transactions_archive

    @property
    def audit_logs(self) -> tuple[str, str]:
        """The collections that hold audit rows."""
        return self.names.audit_logs, self.names.audit_logs_archive

    async def border(self, user_id: str, session: AsyncClientSession) -> Border | None:
        """Return how far the user is archived, or None if the border is malformed."""
        found = await self.database[self.names.archive_borders].find_one(
            {"_id": user_id}, session=session
        )
        return NO_BORDER if found is None else border_or_none(found)

    async def refunded(
        self, charge_ids: Sequence[Any], session: AsyncClientSession
    ) -> dict[Any, RefundedCharge]:
        """Return refunded charges, each with the sum of its refunds."""
        sums: Counter[Any] = Counter()
        for collection in self.transactions:
            refunds = await self.database[collection].aggregate(
                [
                    {"$match": {"refundOf": {"$in": list(charge_ids)}}},
                    {"$group": {"_id": "$refundOf", "refunded": {"$sum": "$amount"}}},
                ],
                session=session,
            )
            sums.update({row["_id"]: row["refunded"] async for row in refunds})
        fields = {"userId": 1, "operation": 1, "amount": 1}
        charges = await self.by_ids_anywhere(self.transactions, charge_ids, fields, session)
        return {
            charge_id: RefundedCharge(charges.get(charge_id), sums[charge_id])
            for charge_id in charge_ids
        }


class RefundedCharge(NamedTuple):
    """A charge as stored (None if it is missing), and the sum of its refunds."""

    charge: Raw | None
    refunded: int

    def wrong_for(self, user_id: str) -> Code | None:
        """Return the finding for a refund of this charge to the user, or None."""
        charge = self.charge
        # Rows of the Credit SDK have no operation.
        if charge is None or charge.get("operation", _CHARGE) not in REFUNDABLE:
            return "refund-orphaned"
        if charge.get("userId") != user_id:
            return "refund-foreign"
        amount = charge.get("amount")
        if not isinstance(amount, int) or self.refunded > -amount:
            return "refund-exceeds"
        return None


def check_index(error: OperationFailure) -> None:
    """Raises StorageError with advice if the server reports a missing index."""
    if error.code == BAD_HINT:
        # Without the cause: its code would say less.
        raise StorageError("an index is missing: run credit-mongo init first") from None


class Rows:
    """Documents in order, in batches. Fetches the next batch while the caller uses this one."""

    def __init__(self, cursor: Cursor, read_as: Callable[[Raw], Raw] | None = None) -> None:
        self._cursor = cursor
        self._read_as = read_as
        self._next: asyncio.Task[list[Raw]] | None = tasks.start(self._fetch())

    async def _fetch(self) -> list[Raw]:
        rows = await self._cursor.to_list(BATCH)
        return rows if self._read_as is None else [self._read_as(row) for row in rows]

    async def next(self) -> list[Raw]:
        """Return the next batch, empty at the end. Raises StorageError if an index is missing."""
        if self._next is None:
            return []
        try:
            rows = await self._next
        except OperationFailure as error:
            check_index(error)
            raise
        if rows:
            self._next = tasks.start(self._fetch())
            # Let the task send its request now: the caller may not await anything for a while.
            await asyncio.sleep(0)
        else:
            self._next = None
        return rows

    async def close(self) -> None:
        """Close the cursor, even before its end."""
        if self._next is not None:
            # Wait first: if cancelled during a request, the driver drops the connection.
            await asyncio.wait({self._next}, timeout=_PATIENCE_SECONDS)
            await tasks.stop(self._next)
        try:
            await self._cursor.close()
        except PyMongoError:
            return  # the server ends the cursor by itself

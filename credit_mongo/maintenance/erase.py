"""Erases a user: the account with all its rows, archived rows too. A record of the erasure stays.

An erasure works in steps. Each step is one transaction and keeps its own counts. So the process can
die at any point: the next call continues, and the counts stay right.

The first step removes the account. It also stores in the collection ``erasures`` whose erasure has
begun, and the date of the user's newest row. From then on, no operation finds the user, and rows up
to that date no longer count (``storage/erasures.py``). The last step leaves a record: how many rows
of each kind were erased, when, and who asked for it, but not whose rows they were.

Meanwhile, somebody may open a new account with the same id. It begins after the stored date, and no
step deletes later rows.

Copies outside the database stay: archive files, exports, backups, the oplog. Audit rows of later
attempts on this user id stay too, as for any unknown user.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.collection import ReturnDocument

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.results import Erasure
from credit_mongo.core.values import check_identifier, check_number, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import InvalidRequestError, UserNotFoundError
from credit_mongo.maintenance.erased_rows import History, RowsToErase, in_files
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Step, Steps
from credit_mongo.storage.codecs import LENIENT
from credit_mongo.storage.collations import check_collations
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import NEVER, not_after, place_of
from credit_mongo.storage.rows import Raw

__all__ = ["erase", "erase_user"]

# With their audit rows, and with the account, below 1,000 documents.
_TRANSACTIONS: Final = 440
_BATCH: Final = 900
_STEP_SECONDS: Final = (0.001, 3600)
_COUNTS: Final = {
    "users": "users",
    "transactions": "transactions",
    "auditLogs": "audit_logs",
    "idempotencyRecords": "idempotency_records",
    "archivedTransactions": "archived_transactions",
    "archivedAuditLogs": "archived_audit_logs",
    "transactionsInFiles": "transactions_in_files",
    "paidRequests": "paid_requests",
    "holds": "holds",
}
"""What is counted, as the record has it and as the result has it."""
_ROWS: Final = ("transactions", "auditLogs", "archivedTransactions", "archivedAuditLogs")


async def erase_user(
    database: AnyDatabase,
    user_id: str,
    *,
    requested_by: str | None = None,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    step_seconds: float = 10.0,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    on_progress: OnProgress | None = None,
) -> Erasure:
    """Erase a user with all rows, or complete an erasure that has begun.

    Each transaction erases at most 1,000 rows and must end within ``step_seconds`` (0.001 to 3600).
    The whole erasure has no time limit. ``requested_by`` (1 to 255 characters) stays in the record.

    An account that exists when the function is called is erased. An account opened after that
    stays. If other software has removed the user's document, the rest of the account is erased.

    ``users`` is the mapping of the configuration. With it, a document that has other fields of the
    application stays with these, and only loses the fields of the account.

    Raises InvalidRequestError, JobTimeoutError and StorageError. Raises UserNotFoundError if there
    is no account, no transaction, no idempotency record and no unfinished erasure of the user.
    After JobTimeoutError or StorageError, call the function again to complete the erasure.
    """
    if not callable(clock):
        raise InvalidRequestError("clock", f"must be a function, not {type(clock).__name__}")
    return await erase(
        LedgerDatabase.of(database, collections, users),
        user_id,
        requested_by=requested_by,
        step_seconds=check_number("step_seconds", step_seconds, *_STEP_SECONDS),
        clock=clock,
        on_progress=on_progress,
    )


async def erase(
    database: LedgerDatabase,
    user_id: str,
    *,
    requested_by: str | None,
    step_seconds: float,
    clock: Callable[[], datetime],
    on_progress: OnProgress | None = None,
) -> Erasure:
    """Do the work of ``erase_user`` for a ledger."""
    erasing = _Erasing(
        database,
        database.users.check_id("user_id", user_id),
        requested_by=check_optional(check_identifier, "requested_by", requested_by),
        clock=clock,
        on_progress=progress_of(on_progress),
    )
    await check_collations(database)
    total = await erasing.count() if on_progress is not None else None
    async with Steps(database.client, step_seconds) as steps:
        return await erasing.run(steps, total)


class _Erasing:
    """A running erasure."""

    def __init__(
        self,
        database: LedgerDatabase,
        user_id: str,
        *,
        requested_by: str | None,
        clock: Callable[[], datetime],
        on_progress: OnProgress,
    ) -> None:
        # Whatever a document has beside the account, it can be erased.
        self._database = database.read_as(LENIENT)
        self._names = database.names
        self._users = database.users
        self._user_id = user_id
        self._place = {"_id": place_of(user_id)}
        self._requested_by = requested_by
        self._clock = clock
        self._on_progress = on_progress
        self._id = ObjectId()
        self._rows = RowsToErase(self._database, user_id)
        # For each collection, the moment down to which this pass has erased the user's rows, newest
        # first. Deleted rows stay in the server's indexes for minutes, and each step that began at
        # the newest again would go over all of them.
        self._erased_to: dict[str, datetime] = {}
        self._erased_by_attempt: dict[str, datetime] = {}

    async def count(self) -> int:
        """Return about how many rows there are, without the idempotency records."""
        return await self._rows.count()

    async def run(self, steps: Steps, total: int | None) -> Erasure:
        """Take all steps, from the first to the last."""
        record = await self._take(steps, self._begin)
        self._id = record["erasure"]
        closed: Erasure | None = None
        while closed is None:
            for history in self._rows.histories:
                for some in (self._erase_transactions, self._erase_audit_logs):
                    while record := await self._take(steps, partial(some, history)):
                        self._tell(record, total)
            rest: list[Step[Raw]] = [self._erase_records, self._erase_paid_requests]
            rest += [partial(self._erase_holds, each) for each in self._rows.holds]
            for others in rest:
                while await self._take(steps, others):
                    pass
            closed = await steps.take(self._end)
            # If there still are rows, the next pass begins at the newest.
            self._erased_to.clear()
        return closed

    async def _take(self, steps: Steps, step: Step[Raw]) -> Raw:
        """Take a step that erases some rows. The next one goes on from there."""
        self._erased_by_attempt.clear()
        record = await steps.take(step)
        self._erased_to |= self._erased_by_attempt
        return record

    def _tell(self, record: Raw, total: int | None) -> None:
        self._on_progress(sum(record.get(name, 0) for name in _ROWS), total)

    # The steps

    async def _begin(self, session: AsyncClientSession) -> Raw:
        """Remove the account and its newest rows together. For a small account, that is all."""
        names, database = self._names, self._database
        # This comes first: a charge after the transaction's first read would cause a conflict.
        has_gone = await self._erase_account(session)
        record = await database[names.erasures].find_one(self._place, session=session)
        if not has_gone and record is not None:
            return record
        if not has_gone and not await self._rows.has_history(session):
            raise UserNotFoundError(self._user_id)
        # A new account of this id must not continue the old archive.
        border = await database[names.archive_borders].find_one_and_delete(
            {"_id": self._user_id}, session=session
        )
        until = await self._rows.newest(border, session)
        requests = await self._rows.newest_in(names.paid_requests, session, "startedAt")
        counts = await self._erase_some(
            self._rows.histories[0], {"createdAt": not_after(until)}, session
        )
        return await self._keep(
            {"users": int(has_gone), "transactionsInFiles": in_files(border), **counts},
            session,
            {
                # The latest of all accounts that this erasure takes.
                "$max": {"until": until, "requestsUntil": requests},
                "$setOnInsert": {
                    "erasure": self._id,
                    "requestedBy": self._requested_by,
                    "startedAt": self._clock(),
                },
            },
        )

    async def _erase_transactions(self, history: History, session: AsyncClientSession) -> Raw:
        """Erase some transactions with their audit rows. Return {} if there are none left."""
        scope = await self._rest_of(history.transactions, session)
        counts = await self._erase_some(history, scope, session)
        return await self._keep(counts, session) if counts else {}

    async def _erase_audit_logs(self, history: History, session: AsyncClientSession) -> Raw:
        """Erase some audit rows without a transaction, which refused attempts have left."""
        collection = history.audit_logs
        query = {"userId": self._user_id, **await self._rest_of(collection, session)}
        return await self._erase_batch(collection, query, history.audits_counted, session)

    async def _erase_records(self, session: AsyncClientSession) -> Raw:
        """Erase some idempotency records, of live and archived transactions."""
        collection = self._names.idempotency_records
        query = {"userId": self._user_id, **await self._rest_of(collection, session)}
        return await self._erase_batch(collection, query, "idempotencyRecords", session)

    async def _erase_paid_requests(self, session: AsyncClientSession) -> Raw:
        """Erase some requests of the FastAPI integration, but none begun after the erasure."""
        begun = await self._database[self._names.erasures].find_one(self._place, session=session)
        asked = {"$lte": (begun or {}).get("requestsUntil") or NEVER}
        query, collection = {"userId": self._user_id, "startedAt": asked}, self._names.paid_requests
        return await self._erase_batch(collection, query, "paidRequests", session)

    async def _erase_holds(self, collection: str, session: AsyncClientSession) -> Raw:
        """Erase some holds, active or not: the account that kept credits for them is gone."""
        query = {"userId": self._user_id, **await self._rest_of(collection, session)}
        return await self._erase_batch(collection, query, "holds", session)

    async def _end(self, session: AsyncClientSession) -> Erasure | None:
        """Leave a record without the user's id. Return None if there still are rows."""
        erasures = self._database[self._names.erasures]
        record = await erasures.find_one({"_id": self._id}, session=session)
        if record is None:
            scope = await self._rows.scope(session)
            if await self._rows.has_rows(self._rows.collections, scope, session):
                return None
            # A running archive may have written a border after the account was removed.
            border = await self._database[self._names.archive_borders].find_one_and_delete(
                {"_id": self._user_id, **scope}, session=session
            )
            begun: Raw = await erasures.find_one_and_delete(self._place, session=session) or {}
            record = {
                "_id": begun["erasure"],
                "requestedBy": begun["requestedBy"],
                "startedAt": begun["startedAt"],
                "finishedAt": self._clock(),
                **{name: begun.get(name, 0) for name in _COUNTS},
            }
            record["transactionsInFiles"] += in_files(border)
            await erasures.insert_one(record, session=session)
        return Erasure(
            erasure_id=str(record["_id"]),
            user_id=self._user_id,
            erased_at=record["finishedAt"],
            # An older version has not counted all of them.
            **{field: int(record.get(name, 0)) for name, field in _COUNTS.items()},
        )

    # What they are made of

    async def _erase_account(self, session: AsyncClientSession) -> bool:
        """Return whether there was an account. A document with other fields stays without it."""
        users, collection = self._users, self._database[self._names.users]
        query = users.query_of(self._user_id)
        # A single command: a charge between a read and a write would cause conflict after conflict.
        if not users.are_the_applications:
            return (await collection.delete_one(query, session=session)).deleted_count > 0
        document = await collection.find_one_and_update(
            {**query, **users.opened}, users.removal, session=session
        )
        if document is None:
            return False
        if document.keys() <= {"_id", *users.fields}:
            await collection.delete_one(query, session=session)
        return True

    async def _rest_of(self, collection: str, session: AsyncClientSession) -> Raw:
        """Return the scope, without the part that this pass has erased from the collection."""
        scope, reached = await self._rows.scope(session), self._erased_to.get(collection)
        return scope if reached is None else {**scope, "$and": [{"createdAt": not_after(reached)}]}

    async def _erase_some(
        self, history: History, older: Raw, session: AsyncClientSession
    ) -> dict[str, int]:
        """Erase some transactions, newest first, with their audit rows."""
        database, mine = self._database, {"userId": self._user_id, **older}
        found = await (
            database[history.transactions]
            .find(
                mine,
                {"createdAt": 1},
                sort=[("createdAt", -1), ("seq", -1)],
                limit=_TRANSACTIONS,
                session=session,
            )
            .to_list()
        )
        if not found:
            return {}
        self._note(history.transactions, found[-1])
        ids = [row["_id"] for row in found]
        erased = await database[history.transactions].delete_by_ids(ids, session=session)
        audits = await database[history.audit_logs].delete_by_ids(ids, mine, session=session)
        return {
            history.counted: erased.deleted_count,
            history.audits_counted: audits.deleted_count,
        }

    async def _erase_batch(
        self, collection: str, query: Raw, counted: str, session: AsyncClientSession
    ) -> Raw:
        rows = self._database[collection]
        newest_first = [("createdAt", -1)]
        found = await rows.find(
            query, {"createdAt": 1}, sort=newest_first, session=session, limit=_BATCH
        ).to_list()
        if not found:
            return {}
        self._note(collection, found[-1])
        deleted = await rows.delete_by_ids([row["_id"] for row in found], session=session)
        return await self._keep({counted: deleted.deleted_count}, session)

    def _note(self, collection: str, oldest: Raw) -> None:
        """Note where this attempt to take a step ends. Rows without a date come after all dates."""
        moment = oldest.get("createdAt")
        if isinstance(moment, datetime):
            self._erased_by_attempt[collection] = moment

    async def _keep(
        self, counts: dict[str, int], session: AsyncClientSession, more: Raw | None = None
    ) -> Raw:
        """Add counts to the record. Only the first step passes ``more``, which creates it."""
        erasures = self._database[self._names.erasures]
        record = await erasures.find_one_and_update(
            self._place,
            {"$inc": counts, **(more or {})},
            upsert=more is not None,
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        return record or {}

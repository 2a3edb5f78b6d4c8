"""The erasure of a user: the account with all its rows, archived ones too; a record of it stays.

It goes in steps, a transaction each, and each keeps its own count, so that it can be killed at any
point and goes on, with the right counts, when it is asked for again. The first step removes the
account and says in the collection ``erasures`` whose erasure is under way, and of which moment the
newest of its rows is: from then on there is no such user for any operation, and no row that is not
later counts (``erasures.py``). What the last step leaves there says how many rows of each kind
went, when, and who asked for it; not whose they were.

An account may be opened anew under the same id in between. It begins after that moment, and a step
deletes nothing that is later.

What has been copied out of the database before stays: archive files, exports, backups, the oplog.
So do the audit rows of what is tried with that name later, as with any name that is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.collection import ReturnDocument

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.results import Erasure
from credit_mongo.core.values import check_identifier, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import StorageError, UserNotFoundError
from credit_mongo.maintenance.archive.borders import NO_BORDER, border_or_none
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.codecs import LENIENT
from credit_mongo.storage.collations import check_collations
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import NEVER, after, not_after, place_of
from credit_mongo.storage.rows import Raw

__all__ = ["OnProgress", "erase", "erase_user", "in_files"]

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of rows that have gone, and about how many there were."""

# With their audit rows, and with the account, below 1,000 documents.
_TRANSACTIONS: Final = 440
_BATCH: Final = 900
_COUNTS: Final = {
    "users": "users",
    "transactions": "transactions",
    "auditLogs": "audit_logs",
    "idempotencyRecords": "idempotency_records",
    "archivedTransactions": "archived_transactions",
    "archivedAuditLogs": "archived_audit_logs",
    "transactionsInFiles": "transactions_in_files",
    "paidRequests": "paid_requests",
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
    """Erase a user with all its rows, or complete an erasure that was begun.

    Rows go by at most 1,000 in a transaction, each within ``step_seconds``; there is no limit to
    all of them together. ``requested_by`` (1 to 255 characters) stays in the record. An account
    that is opened anew while this is under way stays; one that is there when this is called goes.
    ``users`` is the configuration's: with it, a document that has fields of the application's stays
    with those, and only what makes it an account goes.

    What is left of an account whose document was removed by somebody else goes as well. Raises
    InvalidRequestError, UserNotFoundError if there is no such account, no transaction or
    idempotency record of one and no erasure of it under way, JobTimeoutError, and StorageError:
    then call it again to complete it.
    """
    return await erase(
        LedgerDatabase.of(database, collections, users),
        user_id,
        requested_by=requested_by,
        step_seconds=step_seconds,
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
    """The same for a ledger."""
    erasing = _Erasing(
        database,
        database.users.check_id("user_id", user_id),
        requested_by=check_optional(check_identifier, "requested_by", requested_by),
        clock=clock,
        on_progress=on_progress or (lambda _done, _total: None),
    )
    await check_collations(database)
    total = await erasing.count() if on_progress is not None else None
    async with Steps(database.client, step_seconds) as steps:
        return await erasing.run(steps, total)


def in_files(border: Raw | None) -> int:
    """How many of a user's transactions were archived to files, where nothing here reaches them."""
    found = (None if border is None else border_or_none(border)) or NO_BORDER
    return sum(
        segment.seq - found.opening_of(segment)[0]
        for segment in found.segments
        if segment.place == "files"
    )


class _History(NamedTuple):
    """Where transactions are with their audit rows, and how they are counted."""

    transactions: str
    audit_logs: str
    counted: str
    audits_counted: str


class _Erasing:
    """An erasure under way."""

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
        self._names = names = database.names
        self._users = database.users
        self._user_id = user_id
        self._place = {"_id": place_of(user_id)}
        self._requested_by = requested_by
        self._clock = clock
        self._on_progress = on_progress
        self._id = ObjectId()
        live = _History(names.transactions, names.audit_logs, "transactions", "auditLogs")
        # Rows only ever move from here to there: what is not in the first any more is in the other.
        archived = _History(
            names.transactions_archive,
            names.audit_logs_archive,
            "archivedTransactions",
            "archivedAuditLogs",
        )
        self._histories = (live, archived)
        self._collections = (*live[:2], *archived[:2], names.idempotency_records)

    async def count(self) -> int:
        """About how many rows there are, without the idempotency records."""
        return sum(
            [
                await self._database[collection].count_documents({"userId": self._user_id})
                for history in self._histories
                for collection in history[:2]
            ]
        )

    async def run(self, steps: Steps, total: int | None) -> Erasure:
        """From the first step to the last."""
        record = await steps.take(self._begin)
        self._id = record["erasure"]
        closed: Erasure | None = None
        while closed is None:
            for history in self._histories:
                for some in (self._erase_transactions, self._erase_audit_logs):
                    while record := await steps.take(partial(some, history)):
                        self._tell(record, total)
            for others in (self._erase_records, self._erase_paid_requests):
                while await steps.take(others):
                    pass
            closed = await steps.take(self._end)
        return closed

    def _tell(self, record: Raw, total: int | None) -> None:
        self._on_progress(sum(record.get(name, 0) for name in _ROWS), total)

    # The steps

    async def _begin(self, session: AsyncClientSession) -> Raw:
        """Remove the account and the newest of its history, as one; small ones are gone by that."""
        names, database = self._names, self._database
        # First of all: what is charged after the transaction's first look would be a conflict.
        has_gone = await self._erase_account(session)
        record = await database[names.erasures].find_one(self._place, session=session)
        if not has_gone and record is not None:
            return record
        if not has_gone and not await self._has_history(session):
            raise UserNotFoundError(self._user_id)
        # An account to come begins with nothing.
        border = await database[names.archive_borders].find_one_and_delete(
            {"_id": self._user_id}, session=session
        )
        until = await self._newest(border, session)
        requests = await self._newest_in(names.paid_requests, session, "startedAt")
        counts = await self._erase_some(
            self._histories[0], {"createdAt": not_after(until)}, session
        )
        return await self._keep(
            {"users": int(has_gone), "transactionsInFiles": in_files(border), **counts},
            session,
            {
                # Of all accounts that this erasure takes.
                "$max": {"until": until, "requestsUntil": requests},
                "$setOnInsert": {
                    "erasure": self._id,
                    "requestedBy": self._requested_by,
                    "startedAt": self._clock(),
                },
            },
        )

    async def _erase_transactions(self, history: _History, session: AsyncClientSession) -> Raw:
        """Some transactions with what belongs to them; an empty record if there are none."""
        counts = await self._erase_some(history, await self._scope(session), session)
        return await self._keep(counts, session) if counts else {}

    async def _erase_audit_logs(self, history: _History, session: AsyncClientSession) -> Raw:
        """Some audit rows that have no transaction: those of refused attempts."""
        query = {"userId": self._user_id, **await self._scope(session)}
        return await self._erase_batch(history.audit_logs, query, history.audits_counted, session)

    async def _erase_records(self, session: AsyncClientSession) -> Raw:
        """Some idempotency records: of all transactions, wherever those are."""
        query = {"userId": self._user_id, **await self._scope(session)}
        collection = self._names.idempotency_records
        return await self._erase_batch(collection, query, "idempotencyRecords", session)

    async def _erase_paid_requests(self, session: AsyncClientSession) -> Raw:
        """Some of what the FastAPI integration keeps; nothing of what was asked for since."""
        begun = await self._database[self._names.erasures].find_one(self._place, session=session)
        asked = {"$lte": (begun or {}).get("requestsUntil") or NEVER}
        query, collection = {"userId": self._user_id, "startedAt": asked}, self._names.paid_requests
        return await self._erase_batch(collection, query, "paidRequests", session)

    async def _end(self, session: AsyncClientSession) -> Erasure | None:
        """Leave a record that tells nobody's name; None if there still are rows."""
        erasures = self._database[self._names.erasures]
        record = await erasures.find_one({"_id": self._id}, session=session)
        if record is None:
            scope = await self._scope(session)
            if await self._has_rows(self._collections, scope, session):
                return None
            # An archive that had begun before may have made it after the account had gone.
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
            **{field: int(record[name]) for name, field in _COUNTS.items()},
        )

    # What they are made of

    async def _erase_account(self, session: AsyncClientSession) -> bool:
        """Whether there was one. A document that has other purposes stays without it."""
        users, collection = self._users, self._database[self._names.users]
        query = users.query_of(self._user_id)
        # One command, for what is charged after a look would be a conflict, again and again.
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

    async def _has_history(self, session: AsyncClientSession) -> bool:
        """Whether something is left of an account whose document somebody else has removed.

        Audit rows are not: attempts on somebody unknown have them.
        """
        collections = [history.transactions for history in self._histories]
        if await self._has_rows([*collections, self._names.idempotency_records], {}, session):
            return True
        borders = self._database[self._names.archive_borders]
        return await borders.find_one({"_id": self._user_id}, session=session) is not None

    async def _has_rows(
        self, collections: Iterable[str], query: Raw, session: AsyncClientSession
    ) -> bool:
        own = {"userId": self._user_id, **query}
        for collection in collections:
            if await self._database[collection].find_one(own, {"_id": 1}, session=session):
                return True
        return False

    async def _scope(self, session: AsyncClientSession) -> Raw:
        """The part of a query that tells which rows are to go.

        No row of an account that was opened since is among them, and no audit row of what was tried
        since: there may be more of those all the time.
        """
        record = await self._database[self._names.erasures].find_one(self._place, session=session)
        if record is None:
            # Whoever else was at it has come to the end; an account there may be is another.
            return {"_id": {"$in": []}}
        until: datetime = record.get("until", NEVER)
        scope = {"createdAt": not_after(until)}
        users, collection = self._users, self._database[self._names.users]
        query = users.query_of(self._user_id)
        account = await collection.find_one(query, users.fields, session=session)
        if account is None or (users.are_the_applications and users.is_unopened(account)):
            return scope
        if users.are_the_applications:
            # The document may be older than its account.
            places = [history.transactions for history in self._histories]
            firsts = [await self._newest_in(each, session, seq=1) for each in places]
            opened: Any = max(firsts)
        else:
            opened = account.get(users.names.created_at)
        if not isinstance(opened, datetime) or opened <= until:
            # Other software has made it, or a ledger that did not know of the erasure.
            raise StorageError(
                "the account was opened anew, and is not dated after the former one: what is left "
                "of the former can't be told from it. Erase the user again: both go then"
            )
        return scope

    async def _newest(self, border: Raw | None, session: AsyncClientSession) -> datetime:
        """The moment of the newest of the user's rows, also of those that are in files."""
        moments = [await self._newest_in(each, session) for each in self._collections]
        archived = None if border is None else border.get("createdAt")
        return max([*moments, archived] if isinstance(archived, datetime) else moments)

    async def _newest_in(
        self,
        collection: str,
        session: AsyncClientSession,
        field: str = "createdAt",
        **query: Any,
    ) -> datetime:
        found: Raw | None = await self._database[collection].find_one(
            {"userId": self._user_id, field: after(NEVER), **query},
            {field: 1},
            sort=[(field, -1)],
            session=session,
        )
        return NEVER if found is None else found[field]

    async def _erase_some(
        self, history: _History, older: Raw, session: AsyncClientSession
    ) -> dict[str, int]:
        """Some transactions, newest first, with their audit rows."""
        database, mine = self._database, {"userId": self._user_id, **older}
        found = await (
            database[history.transactions]
            .find(
                mine,
                {"_id": 1},
                sort=[("createdAt", -1), ("seq", -1)],
                limit=_TRANSACTIONS,
                session=session,
            )
            .to_list()
        )
        if not found:
            return {}
        ids = {"_id": {"$in": [row["_id"] for row in found]}}
        deletions = {
            history.counted: (history.transactions, ids),
            history.audits_counted: (history.audit_logs, {**ids, **mine}),
        }
        counts: dict[str, int] = {}
        for name, (collection, query) in deletions.items():
            deleted = await database[collection].delete_many(query, session=session)
            counts[name] = deleted.deleted_count
        return counts

    async def _erase_batch(
        self, collection: str, query: Raw, counted: str, session: AsyncClientSession
    ) -> Raw:
        rows = self._database[collection]
        found = rows.find(query, {"_id": 1}, session=session, limit=_BATCH)
        ids = [row["_id"] for row in await found.to_list()]
        if not ids:
            return {}
        deleted = await rows.delete_many({"_id": {"$in": ids}}, session=session)
        return await self._keep({counted: deleted.deleted_count}, session)

    async def _keep(
        self, counts: dict[str, int], session: AsyncClientSession, more: Raw | None = None
    ) -> Raw:
        """Add to the record; it is begun by what goes with the account."""
        erasures = self._database[self._names.erasures]
        record = await erasures.find_one_and_update(
            self._place,
            {"$inc": counts, **(more or {})},
            upsert=more is not None,
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        return record or {}

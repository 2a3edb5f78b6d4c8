"""Read users in the ledger, and write what was planned for them.

Each batch is one database transaction. It looks whether the users are still as they were when the
batch was planned, and leaves out those that the ledger has changed meanwhile. Users come before
their rows, so a conflict with a charge shows before any other work is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from credit_mongo.core.values import Account, Unopened
from credit_mongo.errors import AccountDataError
from credit_mongo.maintenance.imports.history import Trouble
from credit_mongo.maintenance.imports.jobs import Job
from credit_mongo.maintenance.imports.planning import (
    IMPORTED_ID,
    ROWS_PER_PIECE,
    Found,
    Piece,
    Target,
)
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.unit_of_work import command_in

__all__ = ["Batch", "Writer", "batches_of"]

_KEPT: Final = ("idempotencyKey", "keyExpiresAt")
_CHANGED: Final = "the ledger has changed the account meanwhile"
_ERASED: Final = "the user is being erased in the ledger"
_EXISTS: Final = (
    "the ledger has a row of this user already, of another user or in another form. If the "
    "deployment moved it from another user, import once more"
)


class Batch:
    """Pieces that are written together. Without a ``repr`` of the rows."""

    __slots__ = ("batch_id", "pieces", "place")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.batch_id: ObjectId = ObjectId()
        self.pieces: Sequence[Piece] = pieces
        self.place: Raw = {}
        """What to store in the job's document: how far the import is."""


def batches_of(pieces: Iterable[Piece]) -> Iterator[Batch]:
    """Put pieces together, up to some thousand rows. A user's pieces stay in their order."""
    batch: list[Piece] = []
    rows = 0
    for piece in pieces:
        size = max(len(piece.transactions), len(piece.audit_logs), 1)
        # Each user once: the pieces of one user build on each other.
        if batch and (rows + size > ROWS_PER_PIECE or batch[-1].user_id == piece.user_id):
            yield Batch(batch)
            batch, rows = [], 0
        batch.append(piece)
        rows += size
    if batch:
        yield Batch(batch)


class _RowExistsError(Exception):
    """The ledger has a row with the id of one that was to be inserted."""


class Writer:
    """Reads and writes the ledger's side of an import."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self._names = database.names
        self._users = database.users

    # Reading

    async def finds_no_rows(self) -> bool:
        """Whether the ledger has no transaction at all."""
        for name in (self._names.transactions, self._names.transactions_archive):
            if await self._database[name].find_one({}, {"_id": 1}) is not None:
                return False
        return True

    async def targets(self, user_ids: Collection[str]) -> dict[str, Target]:
        """Return the users that the ledger has a document of."""
        found = await self._find_users(user_ids, None)
        opened = [user_id for user_id, each in found.items() if isinstance(each, Account)]
        targets = {
            user_id: Target(error=str(each)) if isinstance(each, AccountDataError) else Target(each)
            for user_id, each in found.items()
        }
        if opened:
            histories = {row["_id"]: row for row in await self._histories(opened)}
            for user_id in opened:
                targets[user_id] = _with_history(targets[user_id], histories.get(user_id))
            await self._add_failed(opened, targets)
        return targets

    async def _find_users(
        self, user_ids: Collection[str], session: AsyncClientSession | None
    ) -> dict[str, Account | Unopened | AccountDataError]:
        ids = self._users.stored_ids(user_ids)
        documents = await (
            self._database[self._names.users]
            .find({"_id": {"$in": ids}}, self._users.fields, session=session)
            .to_list()
        )
        found: dict[str, Account | Unopened | AccountDataError] = {}
        for document in documents:
            user_id = self._users.user_id_of(document)
            try:
                unopened = self._users.unopened_from(document)
                found[user_id] = unopened or self._users.account_from(document)
            except AccountDataError as error:
                found[user_id] = error
        return found

    async def _histories(self, user_ids: Sequence[str]) -> list[Raw]:
        is_source = {"$eq": [{"$type": f"${IMPORTED_ID}"}, "string"]}
        is_other = {"$eq": [{"$type": f"${IMPORTED_ID}"}, "missing"]}
        last = {"$cond": [is_source, {"seq": "$seq", "id": f"${IMPORTED_ID}"}, {}]}
        found = await self._database[self._names.transactions].aggregate(
            [
                {"$match": {"userId": {"$in": list(user_ids)}}},
                {
                    "$group": {
                        "_id": "$userId",
                        "rows": {"$sum": 1},
                        "imported": {"$sum": {"$cond": [is_source, 1, 0]}},
                        "others": {"$sum": {"$cond": [is_other, 1, 0]}},
                        "last": {"$max": last},
                    }
                },
            ],
            hint=_BY_TIME_HINT,
        )
        return await found.to_list()

    async def keys_of(self, user_ids: Sequence[str]) -> dict[str, dict[ObjectId, Raw]]:
        """Return the keys of imported transactions, by user and transaction."""
        query = {"userId": {"$in": list(user_ids)}, "idempotencyKey": {"$type": "string"}}
        fields = dict.fromkeys(("userId", *_KEPT), 1)
        keys: dict[str, dict[ObjectId, Raw]] = {user_id: {} for user_id in user_ids}
        async for row in self._database[self._names.transactions].find(query, fields):
            kept = {name: row[name] for name in _KEPT if name in row}
            keys[row["userId"]][row["_id"]] = kept
        return keys

    async def known_attempts(self, row_ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Return which of these audit rows there are."""
        query = {"_id": {"$in": list(row_ids)}}
        rows = self._database[self._names.audit_logs].find(query, {"_id": 1})
        return {row["_id"] async for row in rows}

    async def _add_failed(self, user_ids: Sequence[str], targets: dict[str, Target]) -> None:
        query = {
            "status": "failed",
            "userId": {"$in": list(user_ids)},
            IMPORTED_ID: {"$type": "string"},
        }
        failed: dict[str, set[ObjectId]] = {}
        async for row in self._database[self._names.audit_logs].find(query, {"userId": 1}):
            failed.setdefault(row["userId"], set()).add(row["_id"])
        for user_id, own in failed.items():
            targets[user_id] = targets[user_id]._replace(failed=frozenset(own))

    # Writing

    async def write(self, batch: Batch, job: Job, steps: Steps) -> list[Trouble]:
        """Write a batch, and return the users who were left out.

        Raises LedgerImportError if another run took over, and what ``Steps.take`` raises.
        """

        async def step(session: AsyncClientSession) -> list[Trouble]:
            if await job.is_done(batch.batch_id, session):
                return left  # an earlier attempt was committed
            left[:] = await self._write(batch.pieces, session)
            await job.enter(batch.batch_id, batch.place, session)
            return left

        left: list[Trouble] = []
        try:
            return await steps.take(step)
        except _RowExistsError:
            if len(batch.pieces) == 1:
                return [Trouble(batch.pieces[0].user_id, "transactions", None, _EXISTS)]
        return await self._write_apart(batch, job, steps)

    async def _write_apart(self, batch: Batch, job: Job, steps: Steps) -> list[Trouble]:
        """Write each piece in a transaction of its own, so that only its user is left."""
        left: list[Trouble] = []
        for number, piece in enumerate(batch.pieces, 1):
            own = Batch([piece])
            own.place = batch.place if number == len(batch.pieces) else {}
            left += await self.write(own, job, steps)
        return left

    async def _write(self, pieces: Sequence[Piece], session: AsyncClientSession) -> list[Trouble]:
        user_ids = [piece.user_id for piece in pieces]
        found = await self._find_users(user_ids, session)
        erased = await erased_until(self._database, user_ids, session)
        left: list[Trouble] = []
        written: list[Piece] = []
        for piece in pieces:
            if piece.user_id in erased:
                left.append(Trouble(piece.user_id, "users", None, _ERASED))
            elif not _is_as_planned(piece.before, found.get(piece.user_id)):
                left.append(Trouble(piece.user_id, "users", None, _CHANGED))
            else:
                written.append(piece)
        try:
            await self._write_users(written, session)
            for collection in (self._names.transactions, self._names.audit_logs):
                gone = [piece.user_id for piece in written if piece.erases]
                if gone:
                    await self._delete_imported(collection, gone, session)
            for collection, rows in (
                (self._names.transactions, [r for p in written for r in p.transactions]),
                (self._names.audit_logs, [r for p in written for r in p.audit_logs]),
            ):
                if rows:
                    command = {"insert": collection, "documents": rows}
                    await command_in(self._database, command, session)
        except DuplicateKeyError:
            raise _RowExistsError from None
        return left

    async def _write_users(self, pieces: Sequence[Piece], session: AsyncClientSession) -> None:
        users = self._names.users
        inserts = [
            self._users.row(piece.after)
            for piece in pieces
            if piece.before is None and piece.after is not None
        ]
        updates = [
            update
            for piece in pieces
            if piece.before is not None and piece.after is not None
            for update in self._users.updates(piece.before, piece.after)
        ]
        if updates:
            await command_in(self._database, {"update": users, "updates": updates}, session)
        if inserts:
            await command_in(self._database, {"insert": users, "documents": inserts}, session)

    async def _delete_imported(
        self, collection: str, user_ids: Sequence[str], session: AsyncClientSession
    ) -> None:
        query = {"userId": {"$in": list(user_ids)}, IMPORTED_ID: {"$exists": True}}
        command = {"delete": collection, "deletes": [{"q": query, "limit": 0}]}
        await command_in(self._database, command, session)


_BY_TIME_HINT: Final[Any] = {"userId": 1, "createdAt": -1, "seq": -1}


def _with_history(target: Target, history: Raw | None) -> Target:
    account = target.account
    if account is None or (not account.seq and history is None):
        return target._replace(error="the account has a balance, but no history")
    if history is None or history["rows"] != account.seq:
        # The archive has rows, or somebody has removed some.
        return target._replace(error="the account has transactions that are not where they were")
    return target._replace(
        imported=history["imported"], others=history["others"], last_id=history["last"].get("id")
    )


def _is_as_planned(before: Found, found: Account | Unopened | AccountDataError | None) -> bool:
    if isinstance(before, Account):
        return isinstance(found, Account) and (found.seq, found.credits, found.extras) == (
            before.seq,
            before.credits,
            before.extras,
        )
    return before == found

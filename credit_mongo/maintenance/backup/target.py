"""The database that a backup is restored into, and how far the restore is.

In place of the ledger's settings, a document says what is being restored. No ledger opens on it:
this version says why, and older ones are refused as by the settings of a newer version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.config import (
    BACKUPS_COLLECTION,
    IMPORTS_COLLECTION,
    MIGRATIONS_COLLECTION,
    SETTINGS_COLLECTION,
)
from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.documents import Value, elements_of, to_document
from credit_mongo.maintenance.backup.manifest import Manifest
from credit_mongo.maintenance.backup.metadata import Metadata
from credit_mongo.storage.codecs import UNDECODED, Raw
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import NAMESPACE_NOT_FOUND, is_gone
from credit_mongo.storage.settings import RESTORING, ensure_settings_index, stored_settings

__all__ = ["Progress", "Target", "TooLargeError"]

_T = TypeVar("_T")
_MAJORITY: Final[Raw] = {"w": "majority", "j": True}
_DUPLICATE_KEY: Final = 11000
_NAMESPACE_EXISTS: Final = 48
_MOST_TRIES: Final = 60
_PAUSE_SECONDS: Final = 1.0
# Above any form that there will be, so that versions that don't know of restores refuse it, too.
_NO_WRITER: Final = 2**31 - 1
_TAKEN_OVER: Final = "another run has ended this restore, goes on with it, or has begun another"
# One command replaces the documents, and may have 48 MB. What comes after so many is up to 16 MB.
_MOST_FETCHED_BYTES: Final = 8 << 20
_VALIDATION: Final = ("validator", "validationLevel", "validationAction")


class TooLargeError(Exception):
    """The documents are too large to be changed in one transaction: take fewer."""


class Progress:
    """How far a restore is: kept in the database, so that another run can go on."""

    def __init__(self, row: Raw) -> None:
        found = row[RESTORING]
        self.goal: Raw = found["goal"]
        self.collections: int = found["collections"]
        """How many collections are loaded completely."""
        self.documents: int = found["documents"]
        """How many documents of the next one are certainly there."""
        self.changes: dict[str, int] = dict(found["changes"])
        """By backup, how many of its changes have been applied."""
        self.is_proven: bool = found["isProven"]
        """Whether the books have been compared with the backup, and verified."""
        self.is_cleared: bool = found["isCleared"]
        """Whether what was there before is gone."""
        self.has_failed: bool = found["hasFailed"]
        """Whether what was restored differs from the backup, so that going on is of no use."""

    @staticmethod
    def begin(goal: Raw, run: ObjectId) -> Raw:
        """Return the progress of a restore that has only begun. Only notes of ``run`` count."""
        return {
            "goal": goal,
            "run": run,
            "isCleared": False,
            "hasFailed": False,
            "collections": 0,
            "documents": 0,
            "changes": {},
            "isProven": False,
        }


class Target:
    """The database, and what is written to it."""

    def __init__(self, database: LedgerDatabase) -> None:
        self.database = database
        self._raw = database.read_as(UNDECODED)
        self._own = {"_id": database.names.transactions}
        self._run = ObjectId()
        self._own_run = {**self._own, f"{RESTORING}.run": self._run}

    @property
    def collections(self) -> list[str]:
        """The collections that a restore fills."""
        names = self.database.names.model_dump().values()
        return [*names, MIGRATIONS_COLLECTION, IMPORTS_COLLECTION]

    # The beginning and the end

    async def progress(self) -> Progress | None:
        """Return how far a restore is, or None if none is going on."""
        row = await self.database[SETTINGS_COLLECTION].find_one(self._own)
        return None if row is None or RESTORING not in row else Progress(row)

    async def begin(self, manifest: Manifest, goal: Raw, *, replace: bool) -> Progress:
        """Begin a restore, or go on with one. Raises BackupError if that would overwrite a ledger.

        With ``replace``, what is there is dropped.
        """
        found = await self.progress()
        if found is not None and found.goal == goal and not found.has_failed:
            await self._take_over()
            if not found.is_cleared:
                await self._clear()
            return found
        if not replace:
            if found is not None and found.has_failed:
                raise BackupError(
                    "",
                    f"what was restored into {self.database.name} differs from the backup: restore "
                    "it again by --replace, with nothing else at work on the database",
                )
            if found is not None:
                raise BackupError(
                    "",
                    f"another restore into {self.database.name} has not ended, of "
                    f"{found.goal['chain'][-1]}: run it again, or replace what is there by "
                    "--replace",
                )
            await self._check_that_it_is_empty()
        for row in await stored_settings(self.database):
            taken = set(row.get("names", ())) & set(self.database.names.model_dump().values())
            if row["_id"] != self._own["_id"] and taken:
                raise BackupError(
                    "",
                    f"{min(taken)!r} is a collection of another ledger in "
                    f"{self.database.name}: restore into another database",
                )
        await ensure_settings_index(self.database)
        names = manifest.collections
        row = {
            "version": manifest.stored_form["version"],
            "lowestWriter": _NO_WRITER,
            "decimalPlaces": 0,
            "collections": names,
            "names": sorted(names.values()),
            "users": manifest.users,
            RESTORING: Progress.begin(goal, self._run),
        }
        await self._write(
            {
                "update": SETTINGS_COLLECTION,
                "updates": [{"q": self._own, "u": row, "upsert": True}],
            }
        )
        await self._clear()
        return Progress(row)

    async def _take_over(self) -> None:
        """Stop the run before, should it still be at work: its next note is refused."""
        restored = {**self._own, RESTORING: {"$exists": True}}
        update = {"q": restored, "u": {"$set": {f"{RESTORING}.run": self._run}}}
        await self._write({"update": SETTINGS_COLLECTION, "updates": [update]})

    async def _clear(self) -> None:
        for name in self.collections:
            await self._drop(name)
        # Its backups begin anew: those before don't show what follows.
        await self._write({"delete": BACKUPS_COLLECTION, "deletes": [{"q": self._own, "limit": 1}]})
        await self.note({"isCleared": True})

    async def _check_that_it_is_empty(self) -> None:
        for name in self.collections:
            if await self.database[name].find_one({}, {"_id": 1}) is not None:
                raise BackupError(
                    "",
                    f"{self.database.name} is not empty: {name} has documents. Restore into "
                    "another database, or replace what is there by --replace",
                )

    async def _drop(self, name: str) -> None:
        try:
            await self.database.ensure({"drop": name, "writeConcern": _MAJORITY})
        except OperationFailure as error:
            if error.code != NAMESPACE_NOT_FOUND:
                raise

    async def note(self, facts: Raw, session: AsyncClientSession | None = None) -> None:
        """Note how far the restore is; ``facts`` are fields of the progress."""
        update = {"$set": {f"{RESTORING}.{name}": value for name, value in facts.items()}}
        command = {"update": SETTINGS_COLLECTION, "updates": [{"q": self._own_run, "u": update}]}
        if session is None:
            reply = await self._write(command)
        else:
            reply = await self.database.command(command, session=session)
        if reply["n"] != 1:
            raise BackupError("", _TAKEN_OVER)

    async def end(self, settings: bytes) -> None:
        """Put the ledger's settings in their place. From then on the ledger is there."""
        update = {"q": self._own_run, "u": RawBSONDocument(settings)}
        reply = await self._write({"update": SETTINGS_COLLECTION, "updates": [update]})
        if reply["n"] != 1:
            # A first try whose answer was lost may have done it.
            row = await self.database[SETTINGS_COLLECTION].find_one(self._own)
            if row is None or RESTORING in row:
                raise BackupError("", _TAKEN_OVER)

    # Collections and indexes

    async def create(self, described: Metadata) -> None:
        """Create a collection without its indexes and validator."""
        options = {
            name: value for name, value in described.options.items() if name not in _VALIDATION
        }
        try:
            await self.database.ensure({"create": described.collection, **options})
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise

    async def complete(self, described: Metadata, *, ttl: bool) -> None:
        """Create a collection's indexes: either all but the TTL ones, or (``ttl``) only these."""
        indexes = [
            {name: value for name, value in index.items() if name != "ns"}
            for index in described.indexes
            if ("expireAfterSeconds" in index) is ttl and index["name"] != "_id_"
        ]
        if indexes:
            command = {"createIndexes": described.collection, "indexes": indexes}
            await self._again(lambda: self.database.ensure(command))

    async def validate(self, described: Metadata) -> None:
        """Set a collection's validator."""
        rules = {name: value for name, value in described.options.items() if name in _VALIDATION}
        if rules:
            command = {"collMod": described.collection, **rules}
            await self._again(lambda: self.database.ensure(command))

    # Documents

    async def insert(self, collection: str, documents: Sequence[bytes]) -> None:
        """Insert documents. One that is already there stays, as another run has inserted it."""
        command = {
            "insert": collection,
            "documents": [RawBSONDocument(each) for each in documents],
            "ordered": False,
        }
        await self._write(command)

    async def fetch(
        self, collection: str, ids: Sequence[Value], session: AsyncClientSession
    ) -> dict[Value, bytes]:
        """Return documents by their ids, in the transaction of a session.

        Raises TooLargeError for more than one document, if together they are too large.
        """
        wanted = to_document({b"%d" % number: each for number, each in enumerate(ids)})
        query = to_document({b"_id": b"\x03" + to_document({b"$in": b"\x04" + wanted})})
        command: Raw = {"find": collection, "filter": RawBSONDocument(query)}
        cursor = (await self._raw.command(command, session=session))["cursor"]
        documents = list(cursor["firstBatch"])
        while cursor["id"]:
            if len(ids) > 1 and sum(len(each.raw) for each in documents) > _MOST_FETCHED_BYTES:
                raise TooLargeError
            more = {"getMore": cursor["id"], "collection": collection}
            cursor = (await self._raw.command(more, session=session))["cursor"]
            documents += cursor["nextBatch"]
        return {dict(elements_of(each.raw))[b"_id"]: each.raw for each in documents}

    async def store(
        self,
        collection: str,
        documents: dict[Value, bytes | None],
        session: AsyncClientSession,
    ) -> None:
        """Replace or (None) delete documents by their ids, in the transaction of a session."""
        updates, deletes = [], []
        for value, document in documents.items():
            query = RawBSONDocument(to_document({b"_id": value}))
            if document is None:
                deletes.append({"q": query, "limit": 1})
            else:
                updates.append({"q": query, "u": RawBSONDocument(document), "upsert": True})
        for command in (
            {"update": collection, "updates": updates},
            {"delete": collection, "deletes": deletes},
        ):
            if updates if "update" in command else deletes:
                _check(await self.database.command(command, session=session))

    async def _write(self, command: Raw) -> Raw:
        """Run a write that can be repeated, for a minute if no server takes it."""
        reply = await self._again(
            lambda: self.database.command({**command, "writeConcern": _MAJORITY})
        )
        _check(reply)
        return reply

    async def _again(self, run: Callable[[], Awaitable[_T]]) -> _T:
        for number in range(1, _MOST_TRIES + 1):
            try:
                return await run()
            except (ConnectionFailure, OperationFailure) as error:
                if number == _MOST_TRIES or not is_gone(error):
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError


def _check(reply: Raw) -> None:
    """Raise the first error of a write but that a document is already there."""
    errors: list[Any] = [
        each for each in reply.get("writeErrors", ()) if each["code"] != _DUPLICATE_KEY
    ]
    if "writeConcernError" in reply:
        errors.append(reply["writeConcernError"])
    if errors:
        # The server's text may quote the document.
        raise OperationFailure(
            f"the server refused a document (code {errors[0]['code']})", errors[0]["code"]
        )

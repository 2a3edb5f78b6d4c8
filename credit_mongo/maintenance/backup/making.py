"""Makes a backup: a full one, or an incremental one that follows the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import PyMongoError

from credit_mongo.config import (
    BACKUPS_COLLECTION,
    IMPORTS_COLLECTION,
    MIGRATIONS_COLLECTION,
    SETTINGS_COLLECTION,
    CollectionNames,
)
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_number, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.errors import BackupError, BackupRunningError
from credit_mongo.maintenance.archive.cut_off import parse_cut_off
from credit_mongo.maintenance.backup.chains import Backups
from credit_mongo.maintenance.backup.changes import (
    Mark,
    begin_history,
    changes_after,
    write_mark,
)
from credit_mongo.maintenance.backup.documents import Change
from credit_mongo.maintenance.backup.dumping import Reading, balances_at, count_documents
from credit_mongo.maintenance.backup.encryption import Encryption, Key
from credit_mongo.maintenance.backup.files import FileFacts, FileWriter
from credit_mongo.maintenance.backup.manifest import Manifest, Segment, Time
from credit_mongo.maintenance.backup.metadata import (
    Metadata,
    bson_path,
    describe,
    metadata_path,
)
from credit_mongo.maintenance.backup.past_runs import BackupRun, note_run
from credit_mongo.maintenance.backup.places import Place, Writing, place_of
from credit_mongo.maintenance.backup.segments import Segments
from credit_mongo.maintenance.job_leases import JobLease
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Steps
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.settings import LedgerSettings, stored_settings

__all__ = ["CHANGES_PATH", "Backup", "make_backup"]

LEASE_SECONDS: Final = 30.0
CHANGES_PATH: Final = "changes.bson.gz"
_TIMES: Final = (0.05, 3600)
_STEP_SECONDS: Final = 60.0
_DIGITS_OF_ID: Final = 8


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made."""

    name: str
    kind: str
    """"full" or "incremental"."""
    moment: datetime
    """The second that it shows."""
    documents: int
    """How many documents it holds; of an incremental backup: how many changes."""
    bytes: int
    """How large its files are."""
    removed: tuple[str, ...]
    """Older backups that were removed, as ``keep`` says."""
    broken: tuple[str, ...]
    """Other backups in the place that can't be restored: a line each, with the name and why.

    An incremental backup without ``keep`` looks only at those since the last full one.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {**asdict(self), "moment": moment_to_milliseconds(self.moment)}


async def make_backup(
    database: AnyDatabase,
    place: object,
    *,
    incremental: bool = False,
    keep: str | None = None,
    key_file: object = None,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    on_progress: OnProgress | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Backup:
    """Back up a ledger, while it is being used.

    - ``place``: a directory, or a URL that fsspec knows (needs the extra ``remote``). It holds
      backups of one database.
    - ``incremental``: only back up what was committed since the last backup in the place.
    - ``keep``: afterwards remove chains that are not needed to restore any moment since then: an
      age ("30d", "12w", "6mo") or a date. A chain is removed as a whole, and the newest one stays.
    - ``key_file``: encrypt the files with the key in this file: 64 hexadecimal digits (needs the
      extra ``encryption``).
    - ``collections``, ``users``: the same values as in the ledger's configuration.
    - ``on_progress``: called with the number of documents or changes so far, and about how many
      documents there are.
    - ``lease_seconds``: for how many seconds a crashed run keeps others out (0.05 to 3600).

    The backup shows everything that was committed up to one cluster time, and nothing else. It
    appears in the place when it is whole.

    Raises:
    - InvalidRequestError for an argument out of its limits, or a directory that others can change.
    - BackupError if there is nothing to follow, if the changes since the last backup are no longer
      known, or if the place holds something else. A damaged backup in the place is no error: see
      `Backup.broken`.
    - BackupRunningError if another backup of the database is being made.
    - OSError if a file can't be written, for example because the disk is full.
    - StorageError or PyMongoError if the database fails.
    """
    ledger = LedgerDatabase.of(database, collections, users)
    where = await tasks.in_thread(place_of, "place", place)
    key = check_optional(Key.read, "key_file", key_file)
    check_number("lease_seconds", lease_seconds, *_TIMES)
    incremental = check_flag("incremental", incremental)
    now = datetime.now(timezone.utc)
    if keep is not None:
        parse_cut_off(keep, now, field="keep")
    run = ObjectId()
    async with _lease(ledger, run, lease_seconds) as lease:
        work = _Making(ledger, where, key, progress_of(on_progress), run=run, lease=lease)
        await tasks.in_thread(where.remove_unfinished)
        recent = incremental and keep is None
        existing = await tasks.in_thread(partial(Backups.of, where, recent=recent))
        manifest = await (work.incremental(existing) if incremental else work.full(existing))
        noted = _run_of(manifest, where)
        # The backup is whole. Nobody must think otherwise because a note of it is missing.
        with contextlib.suppress(PyMongoError):
            await note_run(ledger, noted)
        removed = []
        if keep is not None:
            # By the server's clock: one here that is ahead would remove everything.
            before = parse_cut_off(keep, min(now, manifest.moment), field="keep")
            for old in existing.and_(manifest).old(before):
                await lease.check()
                await tasks.in_thread(where.remove, old.name)
                removed.append(old.name)
    return Backup(
        manifest.name,
        manifest.kind,
        manifest.moment,
        noted.documents,
        noted.bytes,
        tuple(removed),
        tuple(str(each) for each in existing.broken),
    )


def _run_of(manifest: Manifest, place: Place) -> BackupRun:
    return BackupRun(
        name=manifest.name,
        kind=manifest.kind,
        ended_at=datetime.now(timezone.utc),
        moment=manifest.moment,
        documents=sum(file.documents for file in manifest.files if file.path.endswith(".bson.gz")),
        bytes=sum(file.bytes for file in manifest.files),
        place=place.text,
    )


class _Lease(JobLease):
    """The right to back up a database."""

    def refusal(self, lease: Raw) -> BackupRunningError:
        return BackupRunningError(lease["aliveUntil"])

    async def take_over(self, session: AsyncClientSession) -> None:
        """Do nothing: what a run before has left is no backup."""


@asynccontextmanager
async def _lease(
    database: LedgerDatabase, run: ObjectId, seconds: float
) -> AsyncIterator[JobLease]:
    lease = _Lease(database[BACKUPS_COLLECTION], run, seconds)
    try:
        async with Steps(database.client, _STEP_SECONDS) as steps:
            await lease.take(steps)
        yield lease
    finally:
        await lease.release()


class _Making:
    """One run."""

    def __init__(
        self,
        database: LedgerDatabase,
        place: Place,
        key: Key | None,
        on_progress: OnProgress,
        *,
        run: ObjectId,
        lease: JobLease,
    ) -> None:
        self.id = run
        self._lease = lease
        self._database = database
        self._place = place
        self._key = key
        self._on_progress = on_progress
        self._started = datetime.now(timezone.utc)
        self._done = 0
        self._total: int | None = None
        self._files: list[FileFacts] = []

    @property
    def _collections(self) -> list[str]:
        names = self._database.names.model_dump().values()
        return [*names, MIGRATIONS_COLLECTION, IMPORTS_COLLECTION, SETTINGS_COLLECTION]

    async def full(self, existing: Backups) -> Manifest:
        """Make a full backup."""
        mark = await write_mark(self._database, self.id)
        if _was_set_back(existing.manifests, mark):
            await begin_history(self._database)
            mark = await write_mark(self._database, self.id)
        self._check_that_it_is_one_database(existing)
        form = await self._stored_form()
        reading = Reading(self._database)
        await reading.begin(self._database.names.users)
        # After that: what has come before belongs to the backup, and so do its collections.
        described = await self._describe()
        self._total = sum(
            [await self._database[each.collection].estimated_document_count() for each in described]
        )
        balances = await balances_at(self._database, reading.times[0])
        name = self._name("full")
        async with self._written(name) as writing:
            counts = {}
            for each in described:
                counts[each.collection] = await self._dump(name, writing, reading, each)
            end, segments = reading.times[0], {}
            if len(reading.times) > 1:
                segments = {name: tuple(each) for name, each in reading.segments.items()}
                end, counts = await self._catch_up(name, writing, end, counts, segments=segments)
                balances = await balances_at(self._database, end)
                known = {each.collection for each in described}
                for each in await self._describe():
                    if each.collection not in known:
                        await self._write_metadata(name, writing, each)
            manifest = Manifest(
                **self._facts(name, "full", mark, form),
                predecessor=None,
                start=None,
                end=end,
                counts=counts,
                balances=balances,
                segments=segments,
            )
            await self._finish(writing, manifest)
        return manifest

    async def incremental(self, existing: Backups) -> Manifest:
        """Make an incremental backup, which follows the newest one that can be restored."""
        last = existing.newest
        if last is None:
            broken = "".join(f" ({each})" for each in existing.broken[:1])
            raise BackupError(
                "",
                f"there is no backup in {self._place.text} to follow{broken}: make a full backup "
                "first",
            )
        if last.collections != self._database.names.model_dump():
            raise BackupError(
                last.name, "has other collections than the ledger has now: make a full backup"
            )
        await tasks.in_thread(self._check_key, last.name)
        mark = await write_mark(self._database, self.id)
        if _was_set_back([last], mark):
            await begin_history(self._database)
        self._check_that_it_is_one_database(existing)
        _check_that_it_continues(last, mark)
        form = await self._stored_form()
        name = self._name("incremental")
        async with self._written(name) as writing:
            end, counts = await self._write_changes(
                name, writing, last.end, last.counts, segments=Segments({}), mark=self.id
            )
            for each in await self._describe():
                await self._write_metadata(name, writing, each)
            manifest = Manifest(
                **self._facts(name, "incremental", mark, form),
                predecessor=(last.name, last.sha256),
                start=last.end,
                end=end,
                counts=counts,
                balances=await balances_at(self._database, end),
            )
            await self._finish(writing, manifest)
        return manifest

    # The parts of both

    def _name(self, kind: str) -> str:
        digits = str(self.id)[-_DIGITS_OF_ID:]
        return f"{self._started:%Y%m%dT%H%M%SZ}-{kind}-{digits}"

    def _check_key(self, name: str) -> None:
        Manifest.check_seal(name, self._place.manifest_of(name), self._key)

    def _check_that_it_is_one_database(self, existing: Backups) -> None:
        for each in existing.manifests:
            same_name = each.database == self._database.name
            same_ledger = each.collections["transactions"] == self._database.names.transactions
            if not (same_name and same_ledger):
                raise BackupError(
                    each.name,
                    f"is a backup of {each.database!r}, with transactions in "
                    f"{each.collections['transactions']!r}: give each ledger a place of its own",
                )

    async def _stored_form(self) -> Raw:
        rows = await stored_settings(self._database)
        own = self._database.names.transactions
        row = next((row for row in rows if row["_id"] == own), None)
        if row is None:
            raise BackupError(
                "",
                f"{self._database.name} has no settings of this ledger: run credit-mongo init "
                "--config first",
            )
        LedgerSettings.from_row(row)
        return {name: int(row[name]) for name in ("version", "lowestWriter")}

    async def _describe(self) -> list[Metadata]:
        found = [await describe(self._database, name) for name in self._collections]
        return [each for each in found if each is not None]

    def _facts(self, name: str, kind: str, mark: Mark, form: Raw) -> dict[str, Any]:
        mapping = self._database.mapping
        return {
            "name": name,
            "kind": kind,
            "database": self._database.name,
            "history": mark.history,
            "number": mark.number,
            "started_at": self._started.isoformat(timespec="seconds"),
            "ended_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "stored_form": form,
            "collections": self._database.names.model_dump(),
            "users": None if mapping is None else mapping.model_dump(),
            "files": tuple(self._files),
        }

    async def _finish(self, writing: Writing, manifest: Manifest) -> None:
        # Another run removes what it finds unfinished, and may have taken this for it.
        await self._lease.check()
        await tasks.in_thread(writing.finish, manifest.to_bytes(self._key))

    @asynccontextmanager
    async def _written(self, name: str) -> AsyncIterator[Writing]:
        writing = await tasks.in_thread(self._place.begin, name)
        try:
            yield writing
        except BaseException:
            await tasks.in_thread(writing.abandon)
            raise

    # Files

    @asynccontextmanager
    async def _file(self, backup: str, writing: Writing, path: str) -> AsyncIterator[FileWriter]:
        created = writing.create(path)
        sink = await tasks.in_thread(created.__enter__)
        encryption = None if self._key is None else Encryption(self._key, f"{backup}/{path}")
        writer = FileWriter(path, sink, encryption)
        try:
            yield writer
            self._files.append(await tasks.in_thread(writer.end))
        except BaseException as error:
            await tasks.in_thread(created.__exit__, type(error), error, error.__traceback__)
            raise
        await tasks.in_thread(created.__exit__, None, None, None)

    async def _write_metadata(self, backup: str, writing: Writing, described: Metadata) -> None:
        path = metadata_path(self._database.name, described.collection)
        async with self._file(backup, writing, path) as file:
            await tasks.in_thread(file.add, described.to_bytes(), 1)

    async def _dump(
        self, backup: str, writing: Writing, reading: Reading, described: Metadata
    ) -> int:
        """Write one collection. Return the number of its documents."""
        await self._write_metadata(backup, writing, described)
        name = described.collection
        query = None
        if name == SETTINGS_COLLECTION:
            query = {"_id": self._database.names.transactions}
        count = 0
        async with (
            self._file(backup, writing, bson_path(self._database.name, name)) as file,
            aclosing(reading.batches(name, query)) as batches,
        ):
            working: asyncio.Task[None] | None = None
            try:
                async for batch in batches:
                    # The next batch is fetched while this one is compressed.
                    if working is not None:
                        await tasks.result_of(working)
                    number = count_documents(batch)
                    working = tasks.start(tasks.in_thread(file.add, batch, number))
                    count += number
                    self._advance(number)
            finally:
                if working is not None:
                    await tasks.result_of(working)
        return count

    def _advance(self, number: int) -> None:
        self._done += number
        self._on_progress(self._done, self._total)

    async def _catch_up(
        self,
        backup: str,
        writing: Writing,
        start: Time,
        counts: dict[str, int],
        *,
        segments: Mapping[str, Sequence[Segment]],
    ) -> tuple[Time, dict[str, int]]:
        """After several snapshots, add what was committed since the first."""
        mark = ObjectId()
        await write_mark(self._database, mark)
        return await self._write_changes(
            backup, writing, start, counts, segments=Segments(segments), mark=mark
        )

    async def _write_changes(
        self,
        backup: str,
        writing: Writing,
        start: Time,
        counts: dict[str, int],
        *,
        segments: Segments,
        mark: ObjectId,
    ) -> tuple[Time, dict[str, int]]:
        counts = dict(counts)
        end: Time | None = None
        own_settings = _id_of(self._database.names.transactions)
        async with self._file(backup, writing, CHANGES_PATH) as file:
            found = changes_after(self._database, self._collections, start, mark)
            async with aclosing(found) as batches:
                async for batch, reached in batches:
                    end = reached
                    own = [
                        each
                        for each in batch
                        if (each.collection != SETTINGS_COLLECTION or each.id == own_settings)
                        and segments.is_later(each)
                    ]
                    _count(own, counts)
                    data = await tasks.in_thread(_joined, own)
                    await tasks.in_thread(file.add, data, len(own))
                    self._advance(len(own))
        assert end is not None  # noqa: S101 - the stream ends with the mark
        return end, counts


def _was_set_back(existing: Sequence[Manifest], mark: Mark) -> bool:
    return any(each.history == mark.history and each.number >= mark.number for each in existing)


def _check_that_it_continues(last: Manifest, mark: Mark) -> None:
    """Raise BackupError if the database has not gone on from a backup."""
    if last.history != mark.history:
        raise BackupError(
            last.name,
            "is from before this database was restored or made anew: make a full backup",
        )
    if _was_set_back([last], mark):
        raise BackupError(
            last.name, "is newer than this database, which was set back: make a full backup"
        )


def _id_of(text: str) -> bytes:
    encoded = text.encode() + b"\x00"
    return b"\x02" + len(encoded).to_bytes(4, "little") + encoded


def _count(changes: Sequence[Change], counts: dict[str, int]) -> None:
    for change in changes:
        step = {"insert": 1, "delete": -1}.get(change.operation, 0)
        counts[change.collection] = counts.get(change.collection, 0) + step


def _joined(changes: Sequence[Change]) -> bytes:
    return b"".join([change.to_bytes() for change in changes])

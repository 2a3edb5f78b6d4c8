"""Restores a ledger: loads a full backup, applies the changes of the others, and proves the books.

The order makes sure that a ledger never looks whole when it isn't:

1. Everything that is to be read is checked.
2. A document in place of the settings says what is being restored. No ledger opens from then on.
3. The collections are loaded, without indexes. Then the changes are applied, each batch in a
   transaction that also notes how far it is.
4. Indexes are built, but not those by which the server deletes rows.
5. The books are compared with the backup, and verified.
6. The other indexes are built. The settings take the place of the document.

A run that is killed is repeated with the same command, and goes on from what is noted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import SETTINGS_COLLECTION, CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_moment, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.errors import BackupError, InvalidRequestError
from credit_mongo.maintenance.backup.chains import Backups, Chain, check_chain
from credit_mongo.maintenance.backup.documents import Change, Value, apply_change
from credit_mongo.maintenance.backup.dumping import balances_now
from credit_mongo.maintenance.backup.encryption import Key
from credit_mongo.maintenance.backup.files import documents_of, read_file
from credit_mongo.maintenance.backup.making import CHANGES_PATH
from credit_mongo.maintenance.backup.manifest import Manifest
from credit_mongo.maintenance.backup.metadata import Metadata, bson_path, metadata_path
from credit_mongo.maintenance.backup.places import Place, place_of
from credit_mongo.maintenance.backup.segments import Segments
from credit_mongo.maintenance.backup.target import Progress, Target, TooLargeError
from credit_mongo.maintenance.moments import parse_moment
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Steps
from credit_mongo.maintenance.verification.findings import Verification
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.printing import moment_to_milliseconds, moment_to_seconds
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["Restored", "restore"]

_BYTES_PER_INSERT: Final = 4 << 20
_DOCUMENTS_PER_INSERT: Final = 4000
_INSERTS_AT_ONCE: Final = 3
_BYTES_PER_STEP: Final = 4 << 20
_CHANGES_PER_STEP: Final = 4000
_DOCUMENTS_PER_STEP: Final = 500
_STEP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Restored:
    """A ledger that was restored."""

    backups: tuple[str, ...]
    """The names of the backups that were used, in order."""
    moment: datetime
    """The second up to which everything was restored, that second included."""
    documents: int
    changes: int
    lost_at: datetime
    """When the database was lost: as the caller said, or when the restore ended."""
    gap_seconds: float
    """How long the loss came after the moment. What was acknowledged in between is gone."""
    verification: Verification
    broken: tuple[str, ...]
    """Other backups in the place that can't be restored: a line each, with the name and why."""
    collections: CollectionNames
    """The names of the ledger's collections, as they were backed up."""
    users: UserMapping | None
    """The mapping of existing users."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {
            "backups": list(self.backups),
            "moment": moment_to_milliseconds(self.moment),
            "lost_at": moment_to_milliseconds(self.lost_at),
            "documents": self.documents,
            "changes": self.changes,
            "gap_seconds": round(self.gap_seconds, 3),
            "verification": self.verification.to_dict(),
            "broken": list(self.broken),
        }


async def restore(
    database: AnyDatabase,
    place: object,
    *,
    to: str | datetime | None = None,
    lost_at: str | datetime | None = None,
    key_file: object = None,
    replace: bool = False,
    audits: bool = True,
    on_progress: OnProgress | None = None,
) -> Restored:
    """Restore a ledger into an empty database, and verify it.

    - ``place``: where the backups are: a directory, or a URL that fsspec knows.
    - ``to``: restore everything that was committed up to this moment, its whole second included.
      A date or a moment as text (in UTC unless it has an offset), or a datetime with a time zone.
      None: everything that the last backup has. Transactions are restored whole.
    - ``lost_at``: when the database was lost, in the same forms. It only decides which gap is told.
      None: when the restore ends.
    - ``key_file``: the key with which the backups were encrypted.
    - ``replace``: drop what the ledger's collections hold. Stop the application first.
    - ``audits``: False if auditing is disabled, for the verification.
    - ``on_progress``: called with the number of documents and changes so far, and how many there
      are.

    All files are checked before anything is written. Until the restore has ended, no ledger opens
    on the database. After an error or a crash, call it again with the same arguments: it goes on.

    The books may have been wrong when they were backed up: look at ``verification``.

    Raises:
    - InvalidRequestError for an argument out of its limits.
    - BackupError if a backup is missing or was changed, if the key is wrong, if the database is not
      empty, or if what was restored differs from the backup.
    - OSError if a file can't be read; StorageError or PyMongoError if the database fails.
    """
    where = await tasks.in_thread(place_of, "place", place)
    key = check_optional(Key.read, "key_file", key_file)
    until = _check_moment("to", to)
    lost = _check_moment("lost_at", lost_at)
    check_flag("replace", replace)
    backups = await tasks.in_thread(Backups.of, where)
    chain = backups.chain_to(until)
    await tasks.in_thread(check_chain, where, chain, key)
    last = chain[-1]
    moment = last.moment if until is None else min(last.moment, until.replace(microsecond=0))
    _check_loss(lost, moment)
    ledger = LedgerDatabase.of(database, last.names, last.mapping)
    second = None if until is None else int(until.timestamp())
    tell = progress_of(on_progress)
    work = _Restoring(where, key, chain, Target(ledger), until=second, on_progress=tell)
    goal = {"chain": [each.name for each in chain], "until": second}
    await work.run(await work.target.begin(last, goal, replace=replace))
    verification = await verify(database, collections=last.names, users=last.mapping, audits=audits)
    await work.end()
    lost = lost or max(datetime.now(timezone.utc), moment)
    return Restored(
        backups=tuple(each.name for each in chain),
        moment=moment.astimezone(timezone.utc),
        documents=work.documents,
        changes=work.changes,
        lost_at=lost.astimezone(timezone.utc),
        gap_seconds=(lost - moment).total_seconds(),
        verification=verification,
        broken=tuple(str(each) for each in backups.broken),
        collections=last.names,
        users=last.mapping,
    )


def _check_moment(field: str, value: object) -> datetime | None:
    if isinstance(value, str):
        return parse_moment(field, value)
    return check_optional(check_moment, field, value)


def _check_loss(lost: datetime | None, moment: datetime) -> None:
    """Raise InvalidRequestError if nothing can have been lost at the moment that was given."""
    if lost is None:
        return
    if lost < moment:
        raise InvalidRequestError(
            "lost_at", f"must not be before the restored moment, {moment_to_seconds(moment)}"
        )
    if lost > datetime.now(timezone.utc):
        raise InvalidRequestError("lost_at", "must not be in the future")


class _Restoring:
    """One restore."""

    def __init__(
        self,
        place: Place,
        key: Key | None,
        chain: Chain,
        target: Target,
        *,
        until: int | None,
        on_progress: OnProgress,
    ) -> None:
        self._place = place
        self._key = key
        self._chain = chain
        self._until = until
        self.target = target
        self._on_progress = on_progress
        self._total = sum(file.documents for each in chain for file in each.files)
        self._done = 0
        self._settings: bytes | None = None
        self._counts: dict[str, int] = {}
        self.documents = 0
        self.changes = 0
        self._described: dict[str, Metadata] = {}

    async def run(self, progress: Progress) -> None:
        """Restore everything, up to what makes it a ledger."""
        self._described = described = await tasks.in_thread(self._describe)
        for each in described.values():
            if each.collection != SETTINGS_COLLECTION:
                await self.target.create(each)
        await self._load(progress)
        try:
            await self._replay(progress)
            for each in described.values():
                await self.target.complete(each, ttl=False)
            if not progress.is_proven:
                await self._compare()
        except BackupError:
            # To go on would fail again: only --replace helps.
            with suppress(BackupError):
                await self.target.note({"hasFailed": True})
            raise

    async def end(self) -> None:
        """Make it a ledger."""
        # From the next lines on, the server may delete rows.
        await self.target.note({"isProven": True})
        for each in self._described.values():
            await self.target.validate(each)
            await self.target.complete(each, ttl=True)
        if self._settings is None:
            raise BackupError(self._chain[-1].name, "lacks the ledger's settings")
        await self.target.end(self._settings)

    # Reading

    def _pieces(self, manifest: Manifest, path: str) -> Generator[bytes, None, None]:
        with self._place.open(manifest.name, path) as source:
            yield from read_file(manifest.name, path, source, self._key)

    def _describe(self) -> dict[str, Metadata]:
        """Return the collections as they were at the end of the last backup."""
        last = self._chain[-1]
        described = {}
        for name in (*self.target.collections, SETTINGS_COLLECTION):
            path = metadata_path(last.database, name)
            if last.file(path) is not None:
                stored = b"".join(self._pieces(last, path))
                described[name] = Metadata.read(last.name, name, stored)
        return described

    async def _batches(
        self, manifest: Manifest, path: str, most_bytes: int, most_documents: int
    ) -> AsyncGenerator[list[bytes], None]:
        pieces = self._pieces(manifest, path)
        batches = documents_of(manifest.name, path, pieces, most_bytes, most_documents)
        with closing(pieces):
            while (batch := await tasks.in_thread(next, batches, None)) is not None:
                yield batch

    def _advance(self, number: int) -> None:
        self._done += number
        self._on_progress(self._done, self._total)

    # Loading

    async def _load(self, progress: Progress) -> None:
        full = self._chain[0]
        for number, name in enumerate((*self.target.collections, SETTINGS_COLLECTION)):
            path = bson_path(full.database, name)
            facts = full.file(path)
            if facts is None:
                continue
            self._counts[name] = facts.documents
            if name == SETTINGS_COLLECTION:
                await self._load_settings(full, path)
                continue
            self.documents += facts.documents
            if number < progress.collections:
                self._advance(facts.documents)
                continue
            done = progress.documents if number == progress.collections else 0
            await self._load_collection(full, path, name, done)
            await self.target.note({"collections": number + 1, "documents": 0})

    async def _load_settings(self, full: Manifest, path: str) -> None:
        async with aclosing(self._batches(full, path, _BYTES_PER_INSERT, 1)) as batches:
            async for [self._settings] in batches:
                pass

    async def _load_collection(self, full: Manifest, path: str, name: str, done: int) -> None:
        """Insert the documents of a file after the first ``done``, which are there."""
        batches = self._batches(full, path, _BYTES_PER_INSERT, _DOCUMENTS_PER_INSERT)
        inserting: list[Any] = []
        position = 0
        try:
            async with aclosing(batches):
                async for batch in batches:
                    position += len(batch)
                    self._advance(len(batch))
                    if position <= done:
                        continue
                    if len(inserting) == _INSERTS_AT_ONCE:
                        # The oldest one, so that what is noted is there without a gap.
                        work, until = inserting.pop(0)
                        await tasks.result_of(work)
                        await self.target.note({"documents": until})
                    inserting.append((tasks.start(self.target.insert(name, batch)), position))
            for work, _ in inserting:
                await tasks.result_of(work)
            inserting.clear()
        finally:
            for work, _ in inserting:
                work.cancel()
                work.add_done_callback(tasks.seen)

    # Changes

    async def _replay(self, progress: Progress) -> None:
        async with Steps(self.target.database.client, _STEP_SECONDS) as steps:
            for manifest in self._chain:
                if manifest.file(CHANGES_PATH) is not None:
                    await self._replay_one(steps, manifest, progress.changes.get(manifest.name, 0))

    async def _replay_one(self, steps: Steps, manifest: Manifest, done: int) -> None:
        """Apply the changes of a backup after the first ``done``."""
        batches = self._batches(manifest, CHANGES_PATH, _BYTES_PER_STEP, _CHANGES_PER_STEP)
        segments = Segments(manifest.segments)
        position = 0
        async with aclosing(batches):
            async for batch in batches:
                for part in _parts([Change(each) for each in batch], segments, self._until):
                    begin, position = position, position + len(part)
                    self._advance(len(part))
                    self.changes += len(part)
                    self._count(manifest, part)
                    if position > done:
                        fresh = part[max(done - begin, 0) :]
                        await self._apply(steps, manifest, fresh, position)

    def _count(self, manifest: Manifest, changes: Sequence[Change]) -> None:
        """Count documents, and apply changes of the settings, which are kept in memory."""
        for change in changes:
            if change.collection == SETTINGS_COLLECTION:
                self._settings = _applied(manifest, self._settings, change)
            step = {"insert": 1, "delete": -1}.get(change.operation, 0)
            self._counts[change.collection] = self._counts.get(change.collection, 0) + step

    async def _apply(
        self, steps: Steps, manifest: Manifest, changes: Sequence[Change], position: int
    ) -> None:
        by_collection: dict[str, list[Change]] = {}
        for change in changes:
            if change.collection != SETTINGS_COLLECTION:
                by_collection.setdefault(change.collection, []).append(change)

        async def step(session: AsyncClientSession) -> None:
            for collection, own in by_collection.items():
                documents = await self._changed(manifest, collection, own, session)
                await self.target.store(collection, documents, session)
            # A backup's name has no dot and no dollar.
            await self.target.note({f"changes.{manifest.name}": position}, session)

        try:
            await steps.take(step)
        except TooLargeError:
            half = len(changes) // 2
            begin = position - len(changes)
            await self._apply(steps, manifest, changes[:half], begin + half)
            await self._apply(steps, manifest, changes[half:], position)

    async def _changed(
        self,
        manifest: Manifest,
        collection: str,
        changes: Sequence[Change],
        session: AsyncClientSession,
    ) -> dict[Value, bytes | None]:
        """Return documents as they are after the changes."""
        first = {change.id: change.operation for change in reversed(changes)}
        updated = [value for value, operation in first.items() if operation == "update"]
        documents: dict[Value, bytes | None] = {}
        if updated:
            documents.update(await self.target.fetch(collection, updated, session))
        for change in changes:
            documents[change.id] = _applied(manifest, documents.get(change.id), change)
        return documents

    # The proof

    async def _compare(self) -> None:
        """Raise BackupError if the number of documents or the balances differ."""
        last, database = self._chain[-1], self.target.database
        for name in self.target.collections:
            found = await database[name].count_documents({})
            if found != self._counts.get(name, 0):
                raise BackupError(
                    last.name,
                    f"{name} has {found} documents, but should have {self._counts.get(name, 0)}: "
                    "restore it again by --replace, with nothing else at work on the database",
                )
        is_whole = self._until is None or self._until >= last.end[0]
        if is_whole and last.balances is not None:
            balances = await balances_now(database)
            if balances != last.balances:
                raise BackupError(
                    last.name,
                    f"the accounts come to {balances.to_dict()}, but should come to "
                    f"{last.balances.to_dict()}: restore it again by --replace",
                )


def _applied(manifest: Manifest, document: bytes | None, change: Change) -> bytes | None:
    try:
        return apply_change(document, change)
    except ValueError as error:
        raise BackupError(
            manifest.name, f"doesn't follow from what was restored: {error}"
        ) from None


def _parts(
    changes: Sequence[Change], segments: Segments, until: int | None
) -> Iterator[list[Change]]:
    """Cut changes into parts of at most so many documents. Leave out those that don't belong."""
    part: list[Change] = []
    ids: set[tuple[str, Value]] = set()
    for change in changes:
        if until is not None and change.time[0] > until:
            break
        if not segments.is_later(change):
            continue
        ids.add((change.collection, change.id))
        part.append(change)
        if len(ids) == _DOCUMENTS_PER_STEP:
            yield part
            part, ids = [], set()
    if part:
        yield part

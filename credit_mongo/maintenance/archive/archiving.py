"""The archive: move old transactions and audit logs away, and keep the books provable.

The archive always takes the beginning of a user's history. It moves rows in batches. Each batch is
one database transaction that copies the rows, reads the copies back, deletes the originals and
moves the user's border (``archive_borders``): the last archived ``seq`` and the balance after it.
So the promises hold at every moment, across the border too. A killed run leaves nothing to repair,
and the next run goes on from there. Rows go to the archive collections or to files, one run at a
time.

Rows in the archive collections remain usable: refunds of archived charges, ``get_history`` with
``include_archived`` and the verification read them there. Rows in files are gone from the database,
and only the borders remain. A charge in a file can no longer be refunded by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, TypeAlias

from bson import ObjectId

from credit_mongo.config import MAX_CLOCK_SKEW_SECONDS, CollectionNames, HoldsConfig
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_number
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine import tasks
from credit_mongo.errors import (
    ArchiveCopyError,
    ArchiveLostError,
    ArchiveRunningError,
    InvalidRequestError,
)
from credit_mongo.maintenance.archive.cut_off import check_cut_off
from credit_mongo.maintenance.archive.files import (
    FILE_FORMATS,
    FileFormat,
    Files,
    check_directory,
)
from credit_mongo.maintenance.archive.kinds import AuditLogs, Holds, Kind, Transactions
from credit_mongo.maintenance.archive.moves import Left, Mover
from credit_mongo.maintenance.archive.places import ArchivePlace, Collections
from credit_mongo.maintenance.archive.runs import Lane, Lease
from credit_mongo.maintenance.archive.slices import Slice, slices_of
from credit_mongo.maintenance.archive.spans import Span, Spans
from credit_mongo.maintenance.pace import Pace
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Steps
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.codecs import NAIVE
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = [
    "Archive",
    "ArchiveCopyError",
    "ArchiveLostError",
    "ArchiveRunningError",
    "Kinds",
    "archive",
]

Kinds: TypeAlias = Literal["all", "transactions", "audit_logs", "holds"]

LEASE_SECONDS: Final = 30.0
_KINDS: Final = ("all", "transactions", "audit_logs", "holds")
_STEP_SECONDS: Final = 60.0
_ROWS_PER_SPAN: Final = 1000
_ROWS_PER_SLICE: Final = 100_000
# Each user in a slice costs a border to write and a position in the index to look up.
_ROWS_OF_A_USER: Final = 50
_TIMES: Final = (0.05, 3600)
_HOLD_LATE_SECONDS: Final = HoldsConfig().late_seconds
_LONGEST_LATE_SECONDS: Final = 366 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Archive:
    """What was moved. In a dry run: everything old enough, even if it can't be moved."""

    cut_off: datetime
    dry_run: bool
    transactions: int
    amount: int
    """The sum of the moved transactions' amounts, in smallest units. 0 in a dry run."""
    audit_logs: int
    holds: int
    """Holds that had ended. They only go to the archive collection, never to files."""
    users_left: int
    """How many users keep old transactions that couldn't be moved."""
    users_broken: int
    """How many of these users have books that ``verify`` finds fault with."""
    left: tuple[tuple[str, str], ...]
    """Up to 1000 of these users, each with the reason why the first remaining row stays."""
    manifests: tuple[str, ...]
    """The ids of this run's manifests."""
    files: tuple[str, ...]
    """The names of the files written to the directory."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        facts = asdict(self)
        facts["cut_off"] = moment_to_milliseconds(self.cut_off)
        facts["left"] = [{"user_id": user_id, "reason": why} for user_id, why in self.left]
        return facts


async def archive(
    database: AnyDatabase,
    *,
    older_than: str | datetime,
    directory: object = None,
    file_format: FileFormat = "bson",
    kinds: Kinds = "all",
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    hold_late_seconds: float = _HOLD_LATE_SECONDS,
    full_speed: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Archive:
    """Move old transactions and audit logs to the archive collections or to files.

    The database needs the ledger's indexes.

    - ``older_than``: move rows older than this. Either an age ("36h", "90d", "12w", "6mo", "2y"),
      a date or a moment as text (in UTC unless it has an offset), or a datetime with a time zone.
      It must not lie in the future.
    - ``directory``: where to write files. None means the archive collections of the same database.
    - ``file_format``: "bson" (as mongodump writes it, gzipped) or "parquet" (needs pyarrow).
    - ``kinds``: "all", "transactions", "audit_logs" or "holds".
    - ``hold_late_seconds`` (0 to 366 days): ``holds.late_seconds`` of the ledger's configuration.
      A hold goes to the archive collection when it ended longer ago than this (and a minute, for
      clocks that differ), and all of the user's transactions up to its end are archived. Active
      holds stay, and holds never go to files.
    - ``collections``, ``users``: the same values as in the ledger's configuration.
    - ``full_speed``: don't slow down. Otherwise the archive works in small batches with pauses
      while users are being charged.
    - ``dry_run``: only count the old rows, write nothing.
    - ``on_progress``: called with the number of rows moved so far, and about how many there are.
    - ``lease_seconds``: for how many seconds a crashed run keeps others out (0.05 to 3600).

    The archive stops at a user's first transaction that doesn't follow from the one before, for
    example at a row of the Credit SDK, which has no ``seq``. The result names these users.

    Only move rows to a ``directory`` if they are older than every call in progress. A charge
    without an idempotency key looks for its row in the database when the outcome of its commit is
    unknown. If that row is already in a file, the user is charged again.

    Raises:
    - ConfigurationError if ``database`` isn't a database of a supported driver.
    - InvalidRequestError for an argument out of its limits, or if the directory is unsafe or holds
      other files.
    - ArchiveRunningError if another run is at work, ArchiveLostError if another run took over.
    - ArchiveCopyError if a copy differs, ArchiveManifestError if a manifest was changed.
    - OSError if a file can't be written, for example because the disk is full.
    - JobTimeoutError if a step doesn't finish in time; StorageError or PyMongoError if the database
      fails.

    After an error, moved rows stay moved. The next run goes on from there.
    """
    now = datetime.now(timezone.utc)
    cut_off = check_cut_off(older_than, now)
    _check(file_format, kinds, lease_seconds)
    if kinds == "holds" and directory is not None:
        raise InvalidRequestError("kinds", "cannot be holds with a directory: they go to no files")
    late = check_number("hold_late_seconds", hold_late_seconds, 0, _LONGEST_LATE_SECONDS)
    ledger = LedgerDatabase.of(database, collections, users)
    place = _place(ledger, directory, file_format)
    # By the clocks of the ledgers, which may be behind.
    no_later = timedelta(seconds=late + MAX_CLOCK_SKEW_SECONDS)
    holds = Holds(ledger.read_as(NAIVE), now, no_later)
    work = _Archiving(ledger, cut_off, place, holds, kinds=kinds, on_progress=on_progress)
    full_speed, dry_run = check_flag("full_speed", full_speed), check_flag("dry_run", dry_run)
    if isinstance(place, Files):
        await place.check()
    if dry_run:
        return await work.dry()
    pace = Pace(ledger[ledger.names.transactions], lanes=place.lanes, full_speed=full_speed)
    async with Steps(ledger.client, _STEP_SECONDS) as steps:
        return await work.run(steps, pace, lease_seconds)


def _check(file_format: object, kinds: object, lease_seconds: object) -> None:
    if file_format not in FILE_FORMATS:
        raise InvalidRequestError("file_format", f"must be one of {', '.join(FILE_FORMATS)}")
    if kinds not in _KINDS:
        raise InvalidRequestError("kinds", f"must be one of {', '.join(_KINDS)}")
    check_number("lease_seconds", lease_seconds, *_TIMES)


def _place(database: LedgerDatabase, directory: object, file_format: FileFormat) -> ArchivePlace:
    if directory is None:
        return Collections(database)
    return Files(database, check_directory(directory), file_format)


class _Archiving:
    """One run of the archive."""

    def __init__(
        self,
        database: LedgerDatabase,
        cut_off: datetime,
        place: ArchivePlace,
        holds: Holds,
        *,
        kinds: Kinds,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._names = database.names
        self._cut_off = cut_off
        self._place = place
        naive = database.read_as(NAIVE)
        wanted: Sequence[Kind] = (Transactions(naive), AuditLogs(naive), holds)
        self._kinds = [
            kind
            for kind, name in zip(wanted, _KINDS[1:], strict=True)
            if kinds in ("all", name) and (kind is not holds or place.kind == "collection")
        ]
        self._on_progress = progress_of(on_progress)
        self._id = ObjectId()
        self._left = Left()
        self._done = 0
        self._total: int | None = None

    def _spans(self, kind: Kind, old: Slice) -> Spans:
        return Spans(self._database, kind.collection, kind.index, old, _ROWS_PER_SPAN)

    async def _count(self, kind: Kind) -> int:
        return await self._spans(kind, Slice(None, self._cut_off)).count()

    async def dry(self) -> Archive:
        """Count the old rows without moving them."""
        counts = {kind.name: await self._count(kind) for kind in self._kinds}
        return self._result([], counts, dry_run=True)

    async def run(self, steps: Steps, pace: Pace, lease_seconds: float) -> Archive:
        """Take the lease, move the rows, and release the lease."""
        lease = Lease(self._database, self._names.archive_manifests, self._id, lease_seconds)
        lanes: list[Lane] = []
        try:
            await lease.take(steps)
            await self._place.open()
            await self._begin(lanes)
            self._total = sum([await self._count(kind) for kind in self._kinds])
            users = await self._database[self._names.users].estimated_document_count()
            files: Sequence[Raw] | None = None
            for kind in self._kinds:
                for old in await self._slices(kind, users):
                    mover = Mover(kind, old, self._place, self._left, steps=steps, pace=pace)
                    await self._move(self._spans(kind, old), mover, lanes)
                files = await self._place.finish(lanes[0])
            facts: Raw = {"usersLeft": self._left.total}
            for lane in lanes:
                own = facts if files is None else {**facts, "files": list(files)}
                await lane.end(steps, "done", own)
        except BaseException:
            await self._interrupt(lanes, steps)
            raise
        finally:
            await self._place.close()
            await lease.release()
        counts = {
            kind.name: sum(lane.tallies[kind.name].count for lane in lanes) for kind in self._kinds
        }
        return self._result(lanes, counts, files=[file["name"] for file in files or ()])

    async def _begin(self, lanes: list[Lane]) -> None:
        facts = {
            "run": self._id,
            "cutOff": self._cut_off,
            "destination": self._place.describe(),
        }
        for number in range(self._place.lanes):
            manifest_id = ObjectId()
            lane = Lane(self._database, self._names.archive_manifests, manifest_id)
            await lane.begin({**facts, "lane": number})
            lanes.append(lane)

    async def _interrupt(self, lanes: Sequence[Lane], steps: Steps) -> None:
        # If this fails, the run that takes over marks the manifests.
        with contextlib.suppress(Exception):
            for lane in lanes:
                await lane.end(steps, "interrupted", {})

    async def _slices(self, kind: Kind, users: int) -> list[Slice]:
        if not kind.goes_in_slices(self._place):
            return [Slice(None, self._cut_off)]
        rows = max(_ROWS_PER_SLICE, _ROWS_OF_A_USER * users)
        return await slices_of(self._database[kind.collection], self._cut_off, rows)

    async def _move(self, found: Spans, mover: Mover, lanes: Sequence[Lane]) -> None:
        """Move all spans with all lanes. When one lane fails, stop the others."""
        spans = found.all()
        turn = asyncio.Lock()
        workers = [tasks.start(self._work(mover, lane, spans, turn)) for lane in lanes]
        try:
            await asyncio.gather(*workers)
        finally:
            await tasks.stop(*workers)
            await spans.aclose()

    async def _work(
        self, mover: Mover, lane: Lane, spans: AsyncGenerator[Span, None], turn: asyncio.Lock
    ) -> None:
        while True:
            async with turn:
                span = await anext(spans, None)
            if span is None:
                return
            moved = await mover.move(span, lane)
            # A separate statement: during an await in it, another lane could change the count.
            self._done += moved
            self._on_progress(self._done, self._total)

    def _result(
        self,
        lanes: Sequence[Lane],
        counts: dict[str, int],
        *,
        files: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Archive:
        return Archive(
            cut_off=self._cut_off,
            dry_run=dry_run,
            transactions=counts.get(Transactions.name, 0),
            amount=sum(lane.tallies[Transactions.name].amount for lane in lanes),
            audit_logs=counts.get(AuditLogs.name, 0),
            holds=counts.get(Holds.name, 0),
            users_left=self._left.total,
            users_broken=self._left.broken,
            left=tuple(self._left.named),
            manifests=tuple(str(lane.manifest_id) for lane in lanes),
            files=tuple(files),
        )

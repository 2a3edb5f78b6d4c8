"""The archive: old transactions and audit logs move away, and the books stay provable.

What is archived of a user is the beginning of its history. Rows go in batches, each in one database
transaction that copies them, reads the copies back, deletes what was copied, and moves the user's
border (``archive_borders``): the last archived ``seq`` with the balance after it. So the promises
hold at every moment, across the border too, and a run that is killed leaves nothing to repair: the
next one goes on. To the archive collections or to files, one run at a time.

Rows in the archive collections are as good as others: refunds of archived charges, ``get_history``
with ``include_archived``, and the verification read them there. What is in files is gone from the
database but for the borders: a charge in a file can't be refunded by its id any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, TypeAlias

from bson import ObjectId

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag
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
from credit_mongo.maintenance.archive.kinds import AuditLogs, Kind, Transactions
from credit_mongo.maintenance.archive.moves import Left, Mover
from credit_mongo.maintenance.archive.pace import Pace
from credit_mongo.maintenance.archive.places import ArchivePlace, Collections
from credit_mongo.maintenance.archive.runs import Lane, Lease
from credit_mongo.maintenance.archive.slices import Slice, slices_of
from credit_mongo.maintenance.archive.spans import Span, Spans
from credit_mongo.maintenance.progress import OnProgress, no_progress
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

Kinds: TypeAlias = Literal["all", "transactions", "audit_logs"]

LEASE_SECONDS: Final = 30.0
_KINDS: Final = ("all", "transactions", "audit_logs")
_STEP_SECONDS: Final = 60.0
_ROWS_PER_SPAN: Final = 1000
_ROWS_PER_SLICE: Final = 100_000
# In each slice a user costs a border to write, and a place of the index to look for.
_ROWS_OF_A_USER: Final = 50
_TIMES: Final = (0.05, 3600.0)


@dataclass(frozen=True, slots=True)
class Archive:
    """What was moved (in a dry run: what is old enough, whether it can be moved or not)."""

    cut_off: datetime
    dry_run: bool
    transactions: int
    amount: int
    """The sum of the transactions' amounts, in smallest units; 0 in a dry run."""
    audit_logs: int
    users_left: int
    """Users of whom old transactions stay, as they do not follow from those before."""
    users_broken: int
    """Of them, those whose books a verification finds something wrong with."""
    left: tuple[tuple[str, str], ...]
    """The first of them, and what their first remaining transaction is like."""
    manifests: tuple[str, ...]
    """The ids of the run's manifests."""
    files: tuple[str, ...]
    """The names of the files that were written, in the directory."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    full_speed: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Archive:
    """Move what is older than ``older_than`` to archive collections or a ``directory``.

    ``older_than`` is an age ("6mo", "90d"), a date or a moment, not in the future.
    ``file_format`` is "bson" (like mongodump's, gzipped) or "parquet" (needs pyarrow). ``kinds``
    "audit_logs" leaves the transactions. While users are being charged it works slowly, in
    small steps, unless ``full_speed``. A run that has crashed keeps others out for
    ``lease_seconds`` (0.05 to 3600). It needs the ledger's indexes.

    What goes to a ``directory`` is better older than any call at work: a charge without a key whose
    commit's outcome is unknown looks for its row in the database, and would charge again.

    Users whose transactions do not follow from each other (rows of the Credit SDK have no ``seq``)
    are left alone from the first such one on, and named.

    Raises InvalidRequestError, ArchiveRunningError (another run is at work), ArchiveLostError,
    ArchiveCopyError, OSError (of the directory; a full disk), StorageError and PyMongoError. Then
    what was moved is moved, and the next run goes on.
    """
    now = datetime.now(timezone.utc)
    cut_off = check_cut_off(older_than, now)
    _check(file_format, kinds, lease_seconds)
    ledger = LedgerDatabase.of(database, collections, users)
    place = _place(ledger, directory, file_format)
    work = _Archiving(ledger, cut_off, place, kinds=kinds, on_progress=on_progress)
    if isinstance(place, Files):
        await place.check()
    if check_flag("dry_run", dry_run):
        return await work.dry()
    pace = Pace(
        ledger[ledger.names.transactions],
        lanes=place.lanes,
        full_speed=check_flag("full_speed", full_speed),
    )
    async with Steps(ledger.client, _STEP_SECONDS) as steps:
        return await work.run(steps, pace, lease_seconds)


def _check(file_format: object, kinds: object, lease_seconds: object) -> None:
    if file_format not in FILE_FORMATS:
        raise InvalidRequestError("format", f"must be one of {', '.join(FILE_FORMATS)}")
    if kinds not in _KINDS:
        raise InvalidRequestError("kinds", f"must be one of {', '.join(_KINDS)}")
    if isinstance(lease_seconds, bool) or not isinstance(lease_seconds, int | float):
        raise InvalidRequestError("lease_seconds", "must be a number")
    if not _TIMES[0] <= lease_seconds <= _TIMES[1]:
        raise InvalidRequestError("lease_seconds", f"must be from {_TIMES[0]} to {_TIMES[1]:.0f}")


def _place(database: LedgerDatabase, directory: object, file_format: FileFormat) -> ArchivePlace:
    if directory is None:
        return Collections(database)
    return Files(database, check_directory(directory), file_format)


class _Archiving:
    """A run of the archive."""

    def __init__(
        self,
        database: LedgerDatabase,
        cut_off: datetime,
        place: ArchivePlace,
        *,
        kinds: Kinds,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._names = database.names
        self._cut_off = cut_off
        self._place = place
        naive = database.read_as(NAIVE)
        wanted: Sequence[Kind] = (Transactions(naive), AuditLogs(naive))
        self._kinds = [
            kind for kind, name in zip(wanted, _KINDS[1:], strict=True) if kinds in ("all", name)
        ]
        self._on_progress = on_progress or no_progress
        self._id = ObjectId()
        self._left = Left()
        self._done = 0
        self._total: int | None = None

    def _spans(self, kind: Kind, old: Slice) -> Spans:
        return Spans(self._database, kind.collection, kind.index, old, _ROWS_PER_SPAN)

    async def _count(self, kind: Kind) -> int:
        return await self._spans(kind, Slice(None, self._cut_off)).count()

    async def dry(self) -> Archive:
        """Only count."""
        counts = {kind.name: await self._count(kind) for kind in self._kinds}
        return self._result([], counts, dry_run=True)

    async def run(self, steps: Steps, pace: Pace, lease_seconds: float) -> Archive:
        """From the lease to its release."""
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
        # Whoever takes over later says so as well.
        with contextlib.suppress(Exception):
            for lane in lanes:
                await lane.end(steps, "interrupted", {})

    async def _slices(self, kind: Kind, users: int) -> list[Slice]:
        if not kind.goes_in_slices(self._place):
            return [Slice(None, self._cut_off)]
        rows = max(_ROWS_PER_SLICE, _ROWS_OF_A_USER * users)
        return await slices_of(self._database[kind.collection], self._cut_off, rows)

    async def _move(self, found: Spans, mover: Mover, lanes: Sequence[Lane]) -> None:
        """All spans, by as many lanes as there are, and none goes on when one has failed."""
        spans = found.all()
        turn = asyncio.Lock()
        workers = [tasks.start(self._work(mover, lane, spans, turn)) for lane in lanes]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
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
            # Not in one line with the wait, through which another lane adds its own.
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
            users_left=self._left.total,
            users_broken=self._left.broken,
            left=tuple(self._left.named),
            manifests=tuple(str(lane.manifest_id) for lane in lanes),
            files=tuple(files),
        )

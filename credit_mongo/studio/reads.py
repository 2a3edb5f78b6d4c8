"""What pages read: the ledger's own reads, lists across users, and figures that are kept a while.

Each read ends by the ledger's ``operation_timeout_seconds``, and fails as the ledger's reads do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Generic, ParamSpec, TypeVar

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.results import AuditLog, Transaction
from credit_mongo.engine import tasks
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.errors import StorageError
from credit_mongo.ledger import CreditLedger
from credit_mongo.maintenance.archive.past_runs import (
    ArchiveRun,
    Contents,
    archive_runs,
    contents_of,
)
from credit_mongo.maintenance.backup.past_runs import BackupRun, backup_runs
from credit_mongo.maintenance.roles import missing_rights
from credit_mongo.maintenance.usage.activity import Activity, activity_of
from credit_mongo.maintenance.usage.measuring import usage_in
from credit_mongo.maintenance.usage.refusals import refusals_over_time
from credit_mongo.maintenance.usage.results import Usage
from credit_mongo.maintenance.verification.last_result import LastVerification, last_result
from credit_mongo.storage.listings import UserFilter, UserListing, UsersPage
from credit_mongo.storage.records import Records, RowFilter, RowsPage, TransactionRecord
from credit_mongo.studio.failures import lacks_privilege

__all__ = ["Figures", "Reads"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_FIGURES_SECONDS: Final = 60.0
_ACTIVITY_SECONDS: Final = 2.0
_RIGHTS_SECONDS: Final = 30.0
_LONGEST_SUM_SECONDS: Final = 120.0
_PARTS_OF_TIME: Final = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """The sums of a period, and how many attempts were refused in each part of it."""

    usage: Usage
    refused: tuple[int, ...]
    refused_before: int
    at: datetime


class Reads:
    """Reads of one ledger."""

    def __init__(self, ledger: CreditLedger) -> None:
        self.ledger: CreditLedger = ledger
        self._database = ledger._database
        self._users = UserListing(self._database, ledger._policy)
        self._records = Records(self._database, ledger._history)
        self._figures = {
            days: _Kept[Figures](_FIGURES_SECONDS, shows_old=True) for days in (1, 7, 30)
        }
        self._activity = _Kept[Activity](_ACTIVITY_SECONDS)
        self._rights = _Kept[tuple[str, ...]](_RIGHTS_SECONDS)

    def now(self) -> datetime:
        """The ledger's time."""
        return self.ledger._clock()

    async def users(self, wanted: UserFilter, *, limit: int, cursor: str | None) -> UsersPage:
        """A page of users."""
        return await self._in_time(
            self._users.page, wanted, limit=limit, cursor=cursor, now=self.now()
        )

    async def indexed_fields(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the fields by which an index finds users."""
        return await self._in_time(self._users.indexed_fields, wanted)

    async def transaction(self, transaction_id: str) -> TransactionRecord:
        """One transaction, archived or not, with all that belongs to it."""
        return await self._in_time(self._records.transaction, transaction_id)

    async def refused(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[AuditLog]:
        """A page of the refused attempts of all users."""
        return await self._in_time(self._records.refused, wanted, limit=limit, cursor=cursor)

    async def attempts(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[AuditLog]:
        """A page of the audit log of all users."""
        return await self._in_time(self._records.attempts, wanted, limit=limit, cursor=cursor)

    async def holds(
        self, wanted: RowFilter, *, limit: int, cursor: str | None
    ) -> RowsPage[HoldRecord]:
        """A page of the holds of all users, as of now."""
        return await self._in_time(self._records.holds, wanted, limit=limit, cursor=cursor)

    async def hold(self, hold_id: str) -> tuple[HoldRecord, tuple[Transaction, ...]]:
        """A hold, archived or not, and what was captured of it."""
        record = await self._in_time(self.ledger._history.hold, hold_id, None)
        return record, await self._in_time(self._records.captures, record)

    async def archive_runs(self) -> tuple[ArchiveRun, ...]:
        """The last runs of the archive."""
        return await self._in_time(archive_runs, self._database)

    async def backup_runs(self) -> tuple[BackupRun, ...] | None:
        """The last backups. None if the database user may not read what is noted of them."""
        try:
            return await self._in_time(backup_runs, self._database)
        except StorageError as error:
            if lacks_privilege(error):
                return None
            raise

    async def contents(self) -> tuple[Contents, ...]:
        """What the collections of transactions have."""
        return await self._in_time(contents_of, self._database)

    async def last_verification(self) -> LastVerification | None:
        """The result of the last verification."""
        return await self._in_time(last_result, self._database)

    async def figures(self, days: int) -> Figures:
        """The sums of the last 1, 7 or 30 days, at least a minute apart.

        Whoever asks later gets the last sums at once, while new ones are made.
        """
        return await self._figures[days].get(lambda: self._patiently(self._sum_up(days)))

    async def activity(self) -> Activity:
        """What happens right now, at most two seconds old, however many people look."""
        return await self._activity.get(
            lambda: self._in_time(activity_of, self._database, self.now())
        )

    async def missing_rights(self) -> tuple[str, ...]:
        """What the database user lacks to change accounts, at most half a minute old."""
        return await self._rights.get(lambda: self._in_time(missing_rights, self._database))

    async def _sum_up(self, days: int) -> Figures:
        end = datetime.now(timezone.utc)
        usage = await usage_in(self._database, end - timedelta(days=days), end)
        starts = [each.start for each in usage.over_time]
        refused = await refusals_over_time(self._database, [usage.before.start, *starts], end)
        return Figures(usage, tuple(refused[1:]), refused[0], end)

    async def _patiently(self, work: Coroutine[Any, Any, _R]) -> _R:
        """Work that may take longer than an operation of the ledger's."""
        try:
            return await self.ledger._deadlines.keep(work, _LONGEST_SUM_SECONDS)
        except asyncio.TimeoutError as error:
            raise StorageError("the sums took too long: ask for a shorter period") from error
        except (PyMongoError, BSONError) as error:
            raise as_storage_error(error)  # noqa: B904 - with its cause

    async def _in_time(
        self,
        read: Callable[_P, Coroutine[Any, Any, _R]],
        /,
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _R:
        return await self.ledger._read(None, read, *arguments, **options)


class _Kept(Generic[_R]):
    """A result that is kept for some seconds. Requests that come meanwhile wait for one read.

    A result that took long is kept longer: reading takes at most a hundredth of the time. With
    ``shows_old``, an old result is better than waiting.
    """

    def __init__(self, seconds: float, *, shows_old: bool = False) -> None:
        self._seconds = seconds
        self._shows_old = shows_old
        self._result: _R | None = None
        self._until = 0.0
        self._reading: asyncio.Task[_R] | None = None

    async def get(self, read: Callable[[], Coroutine[Any, Any, _R]]) -> _R:
        if self._result is not None and time.monotonic() < self._until:
            return self._result
        if self._reading is None:
            self._reading = tasks.start(self._read(read))
            self._reading.add_done_callback(tasks.seen)
        if self._result is not None and self._shows_old:
            return self._result
        # One that gives up, say because its browser is gone, must not stop the others' read.
        return await tasks.result_of(self._reading)

    async def _read(self, read: Callable[[], Coroutine[Any, Any, _R]]) -> _R:
        began = time.monotonic()
        try:
            result = await read()
            ended = time.monotonic()
            self._until = ended + max(self._seconds, _PARTS_OF_TIME * (ended - began))
            self._result = result
            return result
        finally:
            self._reading = None

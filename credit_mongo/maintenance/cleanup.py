"""The cleanup: removes expired idempotency records and, on request, audit rows of old refusals.

The TTL index also removes expired records. Nothing else limits the audit rows of refusals: each
attempt of a user without credits, or on an unknown user, leaves one.

You can stop the cleanup at any point and run it again, also during normal operation and several
times at once. It removes a record only if it expired, by the server's clock, longer ago than any
operation can take. So no running operation can still count on it. Each deletion checks the expiry
again, so a key that was used again in the meantime stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.core.values import check_flag, check_number, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.documents import FAILED_BY_TIME
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import BAD_HINT, is_gone

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GRACE_SECONDS", "Cleanup", "clean_up"]


# The longest operation_timeout_seconds that a configuration can have.
GRACE_SECONDS: Final = 3600.0
_LONGEST_GRACE_SECONDS: Final = 366 * 24 * 3600
_LONGEST_AGE_SECONDS: Final = 3653 * 24 * 3600
_BATCH: Final = 1000
_MOST_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Cleanup:
    """How many records, expired before ``before``, were removed (in a dry run: would be removed).

    ``refusals_removed`` counts audit rows of refusals from before ``refusals_before``. That is None
    if they were not to be removed.
    """

    removed: int
    before: datetime
    dry_run: bool
    refusals_removed: int = 0
    refusals_before: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        refused = self.refusals_before
        return {
            "removed": self.removed,
            "before": moment_to_milliseconds(self.before),
            "dry_run": self.dry_run,
            "refusals_removed": self.refusals_removed,
            "refusals_before": None if refused is None else moment_to_milliseconds(refused),
        }


async def clean_up(
    database: AnyDatabase,
    *,
    collections: CollectionNames | None = None,
    grace_seconds: float = GRACE_SECONDS,
    refusals_older_than_seconds: float | None = None,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> Cleanup:
    """Remove the idempotency records that expired more than ``grace_seconds`` ago.

    Records whose ``expiresAt`` isn't a date stay. The function removes 1,000 records at a time,
    each time acknowledged by a majority. ``grace_seconds`` (0 to a year) must cover the longest
    operation plus the difference between the clocks of the application's machines.

    With ``refusals_older_than_seconds`` (an hour to ten years), the function also removes older
    audit rows of refused attempts, for good. Archive them first if you want to keep them. Audit
    rows of successful attempts and archived rows stay.

    Needs find and remove on the collections concerned; the role creditEraser has both. Raises
    InvalidRequestError and PyMongoError. After PyMongoError, run it again to complete the cleanup.
    """
    seconds = check_number("grace_seconds", grace_seconds, 0, _LONGEST_GRACE_SECONDS)
    grace = timedelta(seconds=seconds)
    age = check_optional(_check_age, "refusals_older_than_seconds", refusals_older_than_seconds)
    dry_run = check_flag("dry_run", dry_run)
    tell = progress_of(on_progress)
    ledger = LedgerDatabase.of(database, collections)
    names = ledger.names
    hello = await ledger.ask({"hello": 1})
    now: datetime = hello["localTime"]
    before, refused_before = now - grace, None if age is None else now - age
    # MongoDB compares dates only with dates, so other values never match.
    works = [_Cleaning(ledger, names.idempotency_records, {"expiresAt": {"$lt": before}})]
    if refused_before is not None:
        old = {"status": "failed", "createdAt": {"$lt": refused_before}}
        index = list(FAILED_BY_TIME.document["key"].items())
        works.append(await _Cleaning(ledger, names.audit_logs, old).through(index))
    found = [await w.count() for w in works] if dry_run or on_progress is not None else []
    if not dry_run:
        for work in works:
            await work.run(lambda: tell(sum(w.removed for w in works), sum(found)))
        found = [work.removed for work in works]
    return Cleanup(found[0], before, dry_run, sum(found[1:]), refused_before)


def _check_age(field: str, value: object) -> timedelta:
    return timedelta(seconds=check_number(field, value, 3600, _LONGEST_AGE_SECONDS))


class _Cleaning:
    """The running cleanup of one collection."""

    def __init__(self, database: LedgerDatabase, collection: str, old: Raw) -> None:
        self._rows = database[collection]
        self._old = old
        self._index: Sequence[tuple[str, int]] | None = None
        self.removed = 0

    async def through(self, index: Sequence[tuple[str, int]]) -> Self:
        """Find the rows through this index, if it exists: the server might choose another."""
        try:
            await self._rows.find(self._old, {"_id": 1}, hint=index, limit=1).to_list()
        except OperationFailure as error:
            if error.code != BAD_HINT:
                raise
        else:
            self._index = index
        return self

    async def count(self) -> int:
        hint: dict[str, Any] = {} if self._index is None else {"hint": dict(self._index)}
        return await self._rows.count_documents(self._old, **hint)

    async def run(self, on_removed: Callable[[], object]) -> None:
        """Remove everything that is old. Open a new cursor whenever one is lost."""
        tries, removed = 0, 0
        while True:
            try:
                await self._go_through(on_removed)
            except (ConnectionFailure, OperationFailure) as error:
                tries = 1 if self.removed > removed else tries + 1
                if not is_gone(error) or tries == _MOST_TRIES:
                    raise
                removed = self.removed
            else:
                return

    async def _go_through(self, on_removed: Callable[[], object]) -> None:
        # One unsorted cursor: without an index on expiresAt, each new query would read everything.
        async with self._rows.find(
            self._old, {"_id": 1}, hint=self._index, batch_size=_BATCH
        ) as found:
            while records := await found.to_list(_BATCH):
                ids = [record["_id"] for record in records]
                deleted = await self._rows.delete_by_ids(ids, self._old)
                self.removed += deleted.deleted_count
                on_removed()

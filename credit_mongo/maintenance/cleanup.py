"""The cleanup: expired idempotency records go, and if asked for, audit rows of old refusals.

The TTL index removes the records as well. The audit rows of refusals are what somebody without
credits, or an invented name, leaves with each attempt: nothing else bounds their number.

It can be killed at any point and run again, and run beside the ledger and beside itself. A record
goes only if it had expired, by the server's clock, longer ago than any operation can take: nobody
who is still at work can have seen it as valid. Each deletion looks again, so that a key that was
used anew meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from pymongo.errors import ConnectionFailure, OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import InvalidRequestError
from credit_mongo.printing import moment_to_milliseconds
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["GRACE_SECONDS", "Cleanup", "OnProgress", "clean_up"]

OnProgress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of records that have gone, and about how many there were."""

# The longest operation_timeout_seconds that a configuration can have.
GRACE_SECONDS: Final = 3600.0
_LONGEST_GRACE_SECONDS: Final = 366 * 24 * 3600
_LONGEST_AGE_SECONDS: Final = 3653 * 24 * 3600
_BATCH: Final = 1000
_MOST_TRIES: Final = 5
# The cursor of a server that is gone: killed, not found, or of a member that stepped down.
_GONE: Final = frozenset({43, 175, 237, 10107, 11602, 13435})


@dataclass(frozen=True, slots=True)
class Cleanup:
    """How many records had expired before ``before`` and were removed (in a dry run: would be).

    ``refusals_removed`` audit rows were of refusals before ``refusals_before``, which is None if
    those were to stay.
    """

    removed: int
    before: datetime
    dry_run: bool
    refusals_removed: int = 0
    refusals_before: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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

    Only those whose ``expiresAt`` is a date; those go in batches of 1,000, each acknowledged by a
    majority. ``grace_seconds`` (0 to a year) has to cover the longest operation and what the clocks
    of the application's machines differ by. It needs find and remove on the collection.

    With ``refusals_older_than_seconds`` (an hour to ten years), audit rows of refused attempts that
    are older go as well, for good: archive them first if they are to be kept. It then needs find
    and remove on the audit logs, too; the role creditEraser has both. Audit rows of what was done,
    and archived ones, stay.

    Raises InvalidRequestError, and PyMongoError: then run it again to complete it.
    """
    grace = timedelta(seconds=_check_grace(grace_seconds))
    age = None
    if refusals_older_than_seconds is not None:
        age = timedelta(seconds=_check_age(refusals_older_than_seconds))
    ledger = LedgerDatabase.of(database, collections)
    names = ledger.names
    hello = await ledger.command({"hello": 1})
    now: datetime = hello["localTime"]
    before, refused_before = now - grace, None if age is None else now - age
    # Dates are compared with dates alone: what is no date is no match.
    works = [_Cleaning(ledger, names.idempotency_records, {"expiresAt": {"$lt": before}})]
    if refused_before is not None:
        old = {"status": "failed", "createdAt": {"$lt": refused_before}}
        works.append(_Cleaning(ledger, names.audit_logs, old))
    found = [await w.count() for w in works] if dry_run or on_progress is not None else []
    if not dry_run:
        for work in works:
            await work.run(
                lambda: on_progress and on_progress(sum(w.removed for w in works), sum(found))
            )
        found = [work.removed for work in works]
    return Cleanup(found[0], before, dry_run, sum(found[1:]), refused_before)


def _check_grace(value: object) -> float:
    return _check_seconds("grace_seconds", value, 0, _LONGEST_GRACE_SECONDS)


def _check_age(value: object) -> float:
    return _check_seconds("refusals_older_than_seconds", value, 3600, _LONGEST_AGE_SECONDS)


def _check_seconds(field: str, value: object, least: int, most: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(field, f"must be a number, not {type(value).__name__}")
    if not least <= value <= most:
        raise InvalidRequestError(field, f"must be from {least} to {most}")
    return float(value)


class _Cleaning:
    """A cleanup of one collection under way."""

    def __init__(self, database: LedgerDatabase, collection: str, old: Raw) -> None:
        self._rows = database[collection]
        self._old = old
        self.removed = 0

    async def count(self) -> int:
        return await self._rows.count_documents(self._old)

    async def run(self, on_removed: Callable[[], object]) -> None:
        """To the end, with a cursor more for each that is lost on the way."""
        tries, removed = 0, 0
        while True:
            try:
                await self._go_through(on_removed)
            except (ConnectionFailure, OperationFailure) as error:
                is_lost = isinstance(error, ConnectionFailure) or error.code in _GONE
                tries = 1 if self.removed > removed else tries + 1
                if not is_lost or tries == _MOST_TRIES:
                    raise
                removed = self.removed
            else:
                return

    async def _go_through(self, on_removed: Callable[[], object]) -> None:
        # One cursor, and no order: without an index on expiresAt, each would read the collection.
        async with self._rows.find(self._old, {"_id": 1}, batch_size=_BATCH) as found:
            while records := await found.to_list(_BATCH):
                keys = {"_id": {"$in": [record["_id"] for record in records]}}
                deleted = await self._rows.delete_many({**keys, **self._old})
                self.removed += deleted.deleted_count
                on_removed()

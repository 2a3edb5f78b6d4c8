"""The verification: check that the books keep their promises, for all users or some.

- Promise 1: a user's credits are the sum of the user's transactions.
- Promise 2: no balance goes below the user's limit, and what holds keep is there.
- Promise 5: the transactions follow from each other without a gap.
- Promise 6: each transaction has its audit row and its idempotency record, and each of these has
  its transaction.
- Promise 8: no charge was refunded beyond its amount.

The verification reads in one snapshot for as long as the server keeps it (five minutes unless
configured otherwise). It then goes on with the next user in a fresh snapshot, because each promise
is about one user at one moment. It never blocks writers, and concurrent writes cause no false
findings. Its memory use doesn't grow with the number of users or transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final, TypeAlias, TypeVar

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from credit_mongo.config import (
    LONGEST_CLOCK_SKEW_SECONDS,
    LONGEST_TTL_SECONDS,
    MAX_CLOCK_SKEW_SECONDS,
    CollectionNames,
    IdempotencyConfig,
)
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.values import check_flag, check_number, check_optional
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine.failures import as_storage_error
from credit_mongo.errors import InvalidRequestError, StorageError, UserNotFoundError
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.ttl_indexes import find_deleting_indexes
from credit_mongo.maintenance.verification.examination import Examined, examine, examine_records
from credit_mongo.maintenance.verification.findings import Finding, Verification
from credit_mongo.maintenance.verification.holds import HoldSweep
from credit_mongo.maintenance.verification.reading import Reading
from credit_mongo.maintenance.verification.records import RecordsOfUser, RecordSweep
from credit_mongo.maintenance.verification.sweep import Sweep
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.other_types import STRING, of_other_types
from credit_mongo.storage.server_errors import UNAUTHORIZED, is_gone

__all__ = ["Finding", "Verification", "examine_user", "open_reading", "verify"]


_T = TypeVar("_T")
MOST_FINDINGS: Final = 10_000
# How many users with findings are remembered, so that none of them is counted twice.
_MOST_USERS: Final = 100_000
_MOST_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.5


async def verify(
    database: AnyDatabase,
    *,
    user_ids: Iterable[str] | None = None,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    audits: bool = True,
    key_ttl_seconds: float | None = None,
    max_clock_skew_seconds: float | None = MAX_CLOCK_SKEW_SECONDS,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Find everything that is wrong with the books. Write nothing.

    The database needs the ledger's indexes, and the caller needs a role that can read the ledger's
    collections. Without the privilege listIndexes, the check for harmful TTL indexes is left out.

    - ``user_ids``: the users to verify. None means all users.
    - ``collections``, ``users``: the same values as in the ledger's configuration.
    - ``audits``: False if auditing is disabled.
    - ``key_ttl_seconds`` (1 second to 366 days): the lifetime of idempotency keys of transactions
      that don't store an expiry, because an older version wrote them. The default is a day, or the
      shortest lifetime in a sample of the idempotency records if that is shorter.
    - ``max_clock_skew_seconds`` (1 second to ten years): a row dated more than this many seconds
      ahead of the server's clock is a finding. None turns the check off, for tests that move the
      ledger's clock.
    - ``on_progress``: called with the number of transactions verified so far, and about how many
      there are (None if ``user_ids`` are given).

    The result lists up to 10,000 findings. It doesn't list all findings of a user who has more than
    1000. ``findings_total`` counts all of them.

    Raises:
    - ConfigurationError if ``database`` isn't a database of a supported driver.
    - InvalidRequestError for an argument of another type or out of its limits.
    - UserNotFoundError if the database holds no trace of one of ``user_ids``.
    - StorageError or PyMongoError if the database can't be read or an index is missing.
    """
    check_id = LedgerDatabase.of(database, collections, users).users.check_id
    only = None if user_ids is None else _check_user_ids(user_ids, check_id)
    tell = progress_of(on_progress)
    reading = await open_reading(
        database,
        collections,
        users,
        audits=audits,
        key_ttl_seconds=key_ttl_seconds,
        max_clock_skew_seconds=max_clock_skew_seconds,
    )
    work = _Verifying(reading, tell)
    if only is None:
        await work.all_users()
    else:
        await work.some_users(only)
    return work.result()


def _check_user_ids(user_ids: object, check_id: Callable[[str, object], str]) -> list[str]:
    # A str is an iterable of its characters, none of them meant.
    if isinstance(user_ids, str | bytes) or not isinstance(user_ids, Iterable):
        kind = type(user_ids).__name__
        raise InvalidRequestError("user_ids", f"must be several user ids, not {kind}")
    return list(dict.fromkeys(check_id("user_ids", user_id) for user_id in user_ids))


def _check_ttl(field: str, value: object) -> timedelta:
    return timedelta(seconds=check_number(field, value, 1, LONGEST_TTL_SECONDS))


def _check_skew(field: str, value: object) -> timedelta:
    return timedelta(seconds=check_number(field, value, 1, LONGEST_CLOCK_SKEW_SECONDS))


async def open_reading(
    database: AnyDatabase,
    collections: CollectionNames | None,
    users: UserMapping | None,
    *,
    audits: bool,
    key_ttl_seconds: float | None,
    max_clock_skew_seconds: float | None,
) -> Reading:
    """Check the arguments. The default TTL is a day, or that of the records if shorter."""
    key_ttl = check_optional(_check_ttl, "key_ttl_seconds", key_ttl_seconds)
    reading = Reading.of(
        database,
        collections,
        audits=check_flag("audits", audits),
        key_ttl=key_ttl or timedelta(seconds=IdempotencyConfig().ttl_seconds),
        users=users,
        clock_skew=check_optional(_check_skew, "max_clock_skew_seconds", max_clock_skew_seconds),
    )
    if key_ttl is not None:
        return reading
    return await in_snapshot(reading, lambda session, _now: reading.with_ttl_of_records(session))


async def examine_user(reading: Reading, user_id: str) -> Examined:
    """Find everything that is wrong with one user's books, including idempotency records."""
    examined = await in_snapshot(
        reading, lambda session, now: examine(reading, user_id, session, now)
    )

    async def add(owner: str, keys: list[str]) -> None:
        found = await in_snapshot(
            reading, lambda session, now: examine_records(reading, owner, keys, session, now)
        )
        for finding in found.findings:
            if finding.code != "key-in-future" or finding not in examined.findings:
                examined.tell(finding)
        examined.total += found.total - len(found.findings)

    await _go_through(reading, RecordsOfUser(reading, add, user_id))
    return examined


class _Verifying:
    """One run of the verification."""

    def __init__(self, reading: Reading, on_progress: OnProgress) -> None:
        self._reading = reading
        self._on_progress = on_progress
        self._users = 0
        self._transactions = 0
        self._users_off = 0
        self._known_off: set[str] = set()
        self._findings: list[Finding] = []
        self._total = 0

    def result(self) -> Verification:
        return Verification(
            users=self._users,
            transactions=self._transactions,
            users_off=self._users_off,
            findings_total=self._total,
            findings=tuple(self._findings),
        )

    def _add(self, examined: Examined) -> None:
        if not examined.total:
            return
        if examined.user_id not in self._known_off:
            self._users_off += 1
            if len(self._known_off) < _MOST_USERS:
                self._known_off.add(examined.user_id)
        self._total += examined.total
        self._findings += examined.findings[: MOST_FINDINGS - len(self._findings)]

    async def some_users(self, user_ids: Sequence[str]) -> None:
        for user_id in user_ids:
            examined = await examine_user(self._reading, user_id)
            if not (examined.exists or examined.transactions or examined.total):
                raise UserNotFoundError(user_id)
            self._add(examined)
            self._users += examined.exists
            self._transactions += examined.transactions
            self._on_progress(self._transactions, None)

    async def all_users(self) -> None:
        reading = self._reading
        total = sum(
            [
                await reading.database[collection].estimated_document_count()
                for collection in reading.transactions
            ]
        )
        sweep = Sweep(reading, self._examine, lambda done: self._on_progress(done, total))
        await _go_through(reading, sweep)
        self._users, self._transactions = sweep.users, sweep.transactions
        if self._total or not sweep.has_seen_all_records:
            await _go_through(reading, RecordSweep(reading, self._examine_records))
        await _go_through(reading, HoldSweep(reading, self._examine, self._known_off))
        await self._count_unusable()
        await self._find_deleting_indexes()

    async def _examine(self, user_id: str) -> tuple[bool, int]:
        reading = self._reading
        examined = await in_snapshot(reading, lambda s, now: examine(reading, user_id, s, now))
        self._add(examined)
        return examined.exists, examined.transactions

    async def _examine_records(self, user_id: str, keys: list[str]) -> None:
        reading = self._reading
        self._add(
            await in_snapshot(
                reading, lambda session, now: examine_records(reading, user_id, keys, session, now)
            )
        )

    async def _count_unusable(self) -> None:
        """Count documents whose user id has the wrong type. The sweep never meets these."""
        names, database = self._reading.names, self._reading.database
        users = self._reading.users
        no_id = {"_id": {"$not": users.ids_above(None)}, users.names.credits: {"$ne": None}}
        found = 0
        for collection, query in (
            (names.users, no_id),
            (names.transactions, of_other_types("userId", STRING)),
        ):
            found += await database[collection].count_documents(query)
        if found:
            self._total += 1
            self._findings.append(Finding("", "user-unusable", found=found))

    async def _find_deleting_indexes(self) -> None:
        reading = self._reading
        try:
            found = await find_deleting_indexes(reading.database)
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            return  # the role lacks listIndexes, which creditReader includes
        self._total += len(found)
        self._findings += [Finding("", "rows-deleted", index=index) for index in found]


Look: TypeAlias = Callable[[AsyncClientSession, datetime], Awaitable[_T]]


@asynccontextmanager
async def _fresh(reading: Reading) -> AsyncIterator[tuple[AsyncClientSession, datetime]]:
    async with reading.snapshot() as session:
        # Read the time after taking the snapshot: everything expired then is expired now.
        yield session, await reading.now()


async def in_snapshot(reading: Reading, look: Look[_T]) -> _T:
    """Look at something in one snapshot. If it is gone, start over in a fresh one."""
    for number in range(1, _MOST_TRIES + 1):
        try:
            async with _fresh(reading) as (session, now):
                return await look(session, now)
        except PyMongoError as error:
            if not is_gone(error):
                raise
            # Otherwise the sweep would take this for its own lost snapshot and skip the user.
            if number == _MOST_TRIES and isinstance(error, ConnectionFailure):
                raise as_storage_error(error)  # noqa: B904 - with its cause
            if number == _MOST_TRIES:
                raise StorageError(
                    "the server gives up its snapshots before one user's books are read: "
                    "raise its parameter minSnapshotHistoryWindowInSeconds"
                ) from error
            await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError


async def _go_through(
    reading: Reading, walk: Sweep | RecordSweep | RecordsOfUser | HoldSweep
) -> None:
    """Walk to the end. When a snapshot is gone, go on from the same place in a fresh one."""
    tries, place = 0, walk.place
    while True:
        try:
            async with _fresh(reading) as (session, now):
                await walk.run(session, now)
                return
        except PyMongoError as error:
            tries = tries + 1 if walk.place == place else 1
            if not is_gone(error) or tries > _MOST_TRIES:
                raise
            place = walk.place
            await walk.go_on(is_stuck=tries > 1)
            await asyncio.sleep(_PAUSE_SECONDS if tries > 1 else 0)

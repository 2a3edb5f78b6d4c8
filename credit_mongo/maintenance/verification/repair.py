"""The repair: settle findings by adding a record, never by editing the history.

A correction is a transaction of the user. It leaves the balance unchanged. Its amount is the
difference between the balance and the sum of the other amounts, so that they add up again. It names
who added it and why, and lists the findings that it settles. Later verifications skip exactly these
findings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, TypeAlias

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import (
    LONGEST_TTL_SECONDS,
    MAX_CLOCK_SKEW_SECONDS,
    CollectionNames,
    CreditConfig,
)
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.core.operations.correction import CorrectionRequest, CorrectionResult
from credit_mongo.core.values import check_flag, check_identifier, to_milliseconds
from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine.commit import Committer
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.turns import Turns, TurnTaker
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.progress import OnProgress
from credit_mongo.maintenance.steps import Steps
from credit_mongo.maintenance.verification.examination import Examined
from credit_mongo.maintenance.verification.reading import Reading
from credit_mongo.maintenance.verification.settled_holds import settle_holds
from credit_mongo.maintenance.verification.verify import (
    Verification,
    examine_user,
    open_reading,
    verify,
)
from credit_mongo.storage.clocks import CheckedClock
from credit_mongo.storage.codecs import CODEC_OPTIONS, Raw
from credit_mongo.storage.database import Collection
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.unit_of_work import Store

__all__ = ["Correction", "Repair", "repair"]

State: TypeAlias = Literal["added", "would-be-added", "not-possible"]

_TIMEOUT_SECONDS: Final = 10.0
# Another process may charge the user during the verification.
_MOST_TRIES: Final = 5
_BY_HAND: Final = {
    "extras-unusable": "the account's lots and holds cannot be read: set them to what they were",
    "pins-exceed": "holds keep more of a lot than it has: release a hold that keeps some of it",
}
# The account decides on active holds: ends and captures go by it.
_OF_HOLDS: Final = frozenset({"hold-missing", "hold-orphaned", "hold-differs", "hold-unusable"})
# Even with metadata, these fit in a message of a few MB.
_KEYS_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class Correction:
    """What the repair did about one user's findings, or would do in a dry run."""

    user_id: str
    state: State
    amount: int = 0
    """The correction's amount in smallest units: positive, negative or 0."""
    findings: int = 0
    """How many findings the correction settles."""
    transaction_id: str | None = None
    reason: str = ""
    """Why no correction is possible. Empty for the other states."""


@dataclass(frozen=True, slots=True)
class Repair:
    """The findings, and what the repair did about them."""

    verification: Verification
    """The verification before the repair."""
    corrections: tuple[Correction, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all findings are settled. A dry run settles none."""
        listed = len(self.verification.findings) == self.verification.findings_total
        return listed and all(correction.state == "added" for correction in self.corrections)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {
            "is_complete": self.is_complete,
            "corrections": [asdict(correction) for correction in self.corrections],
            "verification": self.verification.to_dict(),
        }


async def repair(
    database: AnyDatabase,
    *,
    operator: str,
    reason: str,
    user_ids: Iterable[str] | None = None,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
    audits: bool = True,
    key_ttl_seconds: float | None = None,
    max_clock_skew_seconds: float | None = MAX_CLOCK_SKEW_SECONDS,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> Repair:
    """Verify the books, and add a correction for each user with findings.

    - ``operator``, ``reason``: who corrects the books and why, stored with each correction (1 to
      255 characters each, without control characters).
    - ``dry_run``: only report the corrections, write nothing.
    - The other arguments are those of ``verify``.

    Some users can't be corrected. The result names them with the state "not-possible" and the
    reason:
    - the user has no account
    - the balance or the ``seq`` is below zero (for the balance: without an overdraft) or not a
      whole number
    - the stored lots and holds can't be read, or holds keep more of a lot than it has
    - the user has more than 1000 findings
    - other processes changed the account at each of five tries

    The correction also brings the history of lots to what the account has in each of them. The
    account decides on active holds as well: their documents are written anew from it, and the
    document of a hold that the account doesn't have becomes released. No credits move. What was due
    in the account (ends of lots and holds) is posted with the correction, as by every operation.

    If a clock was wrong, the correction sets the account's date to the current time. Idempotency
    keys dated in the future then expire after their lifetime, counted from now.

    The repair corrects only users in the list of findings, which ``verify`` limits to 10,000.
    ``is_complete`` is False if any finding remains.

    Raises everything that ``verify`` raises. Adding a correction can also raise StorageError,
    ClockSkewError, JobTimeoutError or another CreditError. The corrections before it stay.
    """
    operator = check_identifier("operator", operator)
    reason = check_identifier("reason", reason)
    dry_run = check_flag("dry_run", dry_run)
    verification = await verify(
        database,
        user_ids=user_ids,
        collections=collections,
        users=users,
        audits=audits,
        key_ttl_seconds=key_ttl_seconds,
        max_clock_skew_seconds=max_clock_skew_seconds,
        on_progress=on_progress,
    )
    reading = await open_reading(
        database,
        collections,
        users,
        audits=audits,
        key_ttl_seconds=key_ttl_seconds,
        max_clock_skew_seconds=max_clock_skew_seconds,
    )
    work = _Repairing(reading, operator, reason, dry_run=dry_run)
    user_ids = dict.fromkeys(finding.user_id for finding in verification.findings)
    try:
        corrections = [await work.of(user_id) for user_id in user_ids]
    finally:
        await work.close()
    return Repair(verification, tuple(found for found in corrections if found is not None))


class _Repairing:
    """One run of the repair."""

    def __init__(
        self,
        reading: Reading,
        operator: str,
        reason: str,
        *,
        dry_run: bool,
    ) -> None:
        config, skew = CreditConfig(costs={}), reading.clock_skew
        ttl = timedelta(seconds=config.idempotency.ttl_seconds)
        self._database = database = reading.database.read_as(CODEC_OPTIONS)
        store = Store(database, audits=reading.audits, remembers_for=ttl)
        deadlines = Deadlines(database.client)
        self._committer = Committer(
            database.client,
            store,
            replace(config.policy, max_lead=None if skew is None else 2 * skew),
            retry=config.retry,
            turn_taker=TurnTaker(Turns(), database),
            latest_write=LatestWrite(database.client),
            deadlines=deadlines,
            reaper=SessionReaper(database.client, deadlines),
            clock=CheckedClock(database, lambda: to_milliseconds(datetime.now(timezone.utc)), skew),
        )
        self._reading = reading
        self._operator = operator
        self._reason = reason
        self._dry_run = dry_run

    async def close(self) -> None:
        """End all open transactions."""
        await self._committer.close(_TIMEOUT_SECONDS)

    async def of(self, user_id: str) -> Correction | None:
        """Correct one user. Return None if nothing is wrong any more."""
        has_shortened_keys = False
        for _ in range(_MOST_TRIES):
            examined = await examine_user(self._reading, user_id)
            if not examined.total:
                return None
            if obstacle := _obstacle(examined):
                return Correction(user_id, "not-possible", reason=obstacle)
            request = self._request(examined)
            amount, findings = request.credits - request.total, len(request.settles)
            if self._dry_run:
                return Correction(user_id, "would-be-added", amount, findings)
            is_ahead = any(finding.code == "key-in-future" for finding in examined.findings)
            if is_ahead and not has_shortened_keys:
                # First shorten the keys: the correction settles the finding.
                await self._shorten_keys(user_id)
                has_shortened_keys = True
            if any(finding.code in _OF_HOLDS for finding in examined.findings):
                await settle_holds(self._database, user_id, _TIMEOUT_SECONDS)
                # What is still to find now that the account and the documents agree.
                later = await examine_user(self._reading, user_id)
                new = [each for each in later.findings if each not in examined.findings]
                later.findings = [*examined.findings, *new]
                request = self._request(later)
            deadline = asyncio.get_running_loop().time() + _TIMEOUT_SECONDS
            [outcome] = await self._committer.commit_patiently([request], deadline)
            if isinstance(outcome, CorrectionResult):
                row_id = outcome.transaction_id
                return Correction(user_id, "added", amount, findings, row_id)
            # The account has changed in between: examine it again.
            if isinstance(outcome, Exception) and not isinstance(outcome, InvalidRequestError):
                raise outcome
        busy = "the account is in use all the time: repair it when it is not"
        return Correction(user_id, "not-possible", reason=busy)

    async def _shorten_keys(self, user_id: str) -> None:
        """Let keys dated by a wrong clock expire after their lifetime, counted from now.

        All get the longest lifetime among them, because a key kept too long does no harm. Once done
        the records don't show their lifetime any more, so this must not be repeated.
        """
        now = (await self._reading.now()).replace(tzinfo=timezone.utc)
        records = self._database[self._reading.names.idempotency_records]
        latest = self._reading.latest(now)
        is_ahead: Raw = {"userId": user_id, "createdAt": {"$gt": latest}}
        lifetime = max(self._reading.key_ttl, await _longest_lifetime(records, is_ahead))
        expires_at = now + min(lifetime, timedelta(seconds=LONGEST_TTL_SECONDS))
        ahead = {**is_ahead, "expiresAt": {"$gt": expires_at}}

        async def replace_some(session: AsyncClientSession) -> int:
            # Delete and insert: the role for repairs can't update records.
            found = await records.find(ahead, session=session, limit=_KEYS_AT_ONCE).to_list()
            if found:
                await records.delete_by_ids([record["_id"] for record in found], session=session)
                rows = [{**record, "expiresAt": expires_at} for record in found]
                await records.insert_many(rows, session=session)
            return len(found)

        async with Steps(self._database.client, _TIMEOUT_SECONDS) as steps:
            while await steps.take(replace_some):
                pass

    def _request(self, examined: Examined) -> CorrectionRequest:
        assert examined.balance is not None  # noqa: S101 - it has no obstacle
        assert examined.seq is not None  # noqa: S101
        return CorrectionRequest(
            user_id=examined.user_id,
            transaction_id=str(ObjectId()),
            credits=examined.balance,
            seq=examined.seq,
            total=examined.sum,
            highest_seq=examined.highest_seq,
            operator=self._operator,
            reason=self._reason,
            settles=tuple(finding.as_record() for finding in examined.findings),
            legs=examined.legs,
        )


async def _longest_lifetime(records: Collection, query: Raw) -> timedelta:
    longest = timedelta()
    dates = {"createdAt": {"$type": "date"}, "expiresAt": {"$type": "date"}}
    async for record in records.find({"$and": [query, dates]}, dict.fromkeys(dates, 1)):
        begin, end = record["createdAt"], record["expiresAt"]
        # Dates outside of Python's calendar are not the ledger's.
        if isinstance(begin, datetime) and isinstance(end, datetime):
            longest = max(longest, end - begin)
    return longest


def _obstacle(examined: Examined) -> str:
    """Why no correction can settle the findings, or "" if one can."""
    if not examined.exists:
        return "there is no such user: restore the account, or erase the rest of it"
    for finding in examined.findings:
        if finding.code in _BY_HAND:
            return f"{_BY_HAND[finding.code]} ({finding.transaction_id or 'creditExtras'})"
    if examined.balance is None or (examined.balance < 0 and not examined.has_extras):
        return "the balance is below zero or no whole number: set it to what it should be first"
    if examined.seq is None or examined.seq < 0:
        return "the account's seq is below zero or no whole number: set it to the highest one first"
    if examined.total > len(examined.findings):
        return f"{examined.total} findings are too many for one record: restore a backup"
    return ""

"""The examination: find everything that is wrong with one user's books, in one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.extras import Extras, Leg
from credit_mongo.core.operations.correction import CorrectionRequest
from credit_mongo.core.operations.set_overdraft import SetOverdraftRequest
from credit_mongo.maintenance.archive.borders import NO_BORDER, Border, Segment
from credit_mongo.maintenance.verification.chain import Chain, whole
from credit_mongo.maintenance.verification.findings import Code, Finding
from credit_mongo.maintenance.verification.holds import (
    Captures,
    check_account,
    examine_holds,
    extras_of,
)
from credit_mongo.maintenance.verification.lots import Replay
from credit_mongo.maintenance.verification.reading import LOOK_UP, WITHOUT_TRANSACTION, Reading
from credit_mongo.maintenance.verification.records import RECORD_FIELDS, find_odd, is_ahead, is_live
from credit_mongo.maintenance.verification.sweep import is_no_account
from credit_mongo.storage.erasures import after, erased_until, is_erased
from credit_mongo.storage.rows import Raw

__all__ = ["MOST_FINDINGS", "Examined", "accepted_by", "examine", "examine_records"]

MOST_FINDINGS: Final = 1000
"""How many findings of one user are kept, and how many one correction can settle."""

_FIELDS: Final = dict.fromkeys(
    (
        *("userId", "seq", "operation", "action", "amount", "balanceBefore", "balanceAfter"),
        *("idempotencyKey", "keyExpiresAt", "refundOf", "createdAt"),
        *("legs", "holdId", "oldOverdraft", "newOverdraft"),
    ),
    1,
)
# The first is the order of the index of a user's transactions, read backwards.
_BY_TIME: Final = (("createdAt", 1), ("seq", 1))
_BY_SEQ: Final = (("seq", 1), ("createdAt", 1), ("_id", 1))
# Successes on holds that moved no credits. A capture that took nothing is one.
_AUDIT_FIELDS: Final = dict.fromkeys(
    ("userId", "operation", "action", "status", "details", "createdAt"), 1
)


class _UnsortedError(Exception):
    """A user's transactions have another order by time than by seq."""


@dataclass(slots=True)
class Examined:
    """One user's books: the first findings and their number, without those already settled."""

    user_id: str
    exists: bool = False
    balance: int | None = None
    seq: int | None = None
    """Balance and seq as stored in the account. None if it isn't a whole number."""
    sum: int = 0
    """The sum of all transactions' amounts, in smallest units."""
    highest_seq: int = 0
    transactions: int = 0
    has_extras: bool = False
    """Whether the account stores lots, holds or an overdraft."""
    legs: tuple[Leg, ...] = ()
    """The legs of a correction by which the transactions agree with the account's lots."""
    findings: list[Finding] = field(default_factory=list)
    total: int = 0

    def tell(self, finding: Finding) -> None:
        """Add a finding."""
        self.total += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


class _Teller:
    """Passes on findings that aren't settled, and each excessive refund once per charge."""

    def __init__(self, examined: Examined, accepted: frozenset[str]) -> None:
        self._examined = examined
        self._accepted = accepted
        self._charges_told: set[str] = set()

    def __call__(self, finding: Finding) -> None:
        if signature(finding.as_record()) in self._accepted:
            return
        if finding.code == "refund-exceeds" and finding.transaction_id is not None:
            if finding.transaction_id in self._charges_told:
                return
            if len(self._charges_told) < MOST_FINDINGS:
                self._charges_told.add(finding.transaction_id)
        self._examined.tell(finding)


def signature(record: Raw) -> str:
    """Return a text that is equal for equal findings."""
    return repr(sorted((name, str(value)) for name, value in record.items()))


async def accepted_by(
    reading: Reading, user_id: str, border: Border, session: AsyncClientSession
) -> frozenset[str]:
    """Return the signatures of the findings that the user's corrections have settled."""
    corrections = reading.database[reading.names.transactions].find(
        {"userId": user_id, "action": CorrectionRequest.operation, "correction": {"$exists": True}},
        {"correction.settles": 1},
        session=session,
    )
    settled = [
        signature(record)
        async for correction in corrections
        for record in correction["correction"].get("settles", ())
    ]
    return frozenset([*settled, *map(signature, border.settles)])


async def examine(
    reading: Reading, user_id: str, session: AsyncClientSession, now: datetime
) -> Examined:
    """Examine a user's account, chain, audit rows, keys and refunds.

    In healthy books, time and seq give transactions the same order, and an index gives them in it.
    Only if they turn out to differ, the server has to sort them.
    """
    try:
        return await _examine(reading, user_id, session, now, order=_BY_TIME)
    except _UnsortedError:
        return await _examine(reading, user_id, session, now, order=_BY_SEQ)


async def _examine(
    reading: Reading,
    user_id: str,
    session: AsyncClientSession,
    now: datetime,
    *,
    order: Sequence[tuple[str, int]],
) -> Examined:
    examined = Examined(user_id)
    users = reading.users
    collection, query = reading.database[reading.names.users], users.query_of(user_id)
    user = await collection.find_one(query, users.book_fields, session=session)
    if user is not None:
        user = users.by_own_names(user)
        examined.exists = True
        examined.balance = whole(user.get("credits"))
        examined.seq = whole(user.get("seq", 0))
    mine = await _rows_that_stay(reading, user_id, session)
    found = await reading.border(user_id, session)
    if "createdAt" in mine:
        first = {**mine, "seq": 1}
        if (
            await reading.database[reading.names.transactions].find_one(first, session=session)
            is None
        ):
            # The ledger has opened no account since. The erasure will remove the remaining rows.
            return examined
        found = NO_BORDER
    border = found or NO_BORDER
    tell = _Teller(examined, await accepted_by(reading, user_id, border, session))
    if found is None:
        tell(Finding(user_id, "border-unusable"))
    look_up = _LookUp(reading, mine, border, session, now=now, tell=tell)
    chain = Chain(user_id, user, reading.key_expires, tell, reading.latest(now))
    extras = extras_of(user)
    overdraft = await _first_overdraft(reading, border, mine, extras, session)
    followed = _Followed(chain, Replay(user_id, overdraft, tell), Captures(user_id, tell))
    await _follow(reading, border, look_up, followed, order)
    if not is_no_account(user, chain.rows + border.seq):
        chain.end()
    if user is None and not chain.rows and border.seq:
        tell(Finding(user_id, "border-orphaned", seq=border.seq))
    examined.has_extras = (user or {}).get("creditExtras") is not None
    await followed.captures.look_up(reading, session, whole=not border.has_files)
    if extras is None:
        tell(Finding(user_id, "extras-unusable"))
    else:
        if user is not None:
            examined.legs = followed.replay.end(extras)
        check_account(user_id, extras, reading.due_by(user, now), tell)
        await examine_holds(reading, mine, extras, session, tell)
    if reading.audits:
        await look_up.orphaned_audits()
    examined.transactions, examined.sum = chain.rows, chain.sum
    examined.highest_seq = max(chain.seq, examined.seq or 0)
    return examined


async def _erased_until(
    reading: Reading, user_id: str, session: AsyncClientSession
) -> dict[str, datetime]:
    return await erased_until(reading.database, [user_id], session)


async def _rows_that_stay(reading: Reading, user_id: str, session: AsyncClientSession) -> Raw:
    """The query for a user's rows. It skips rows of an account that is being erased."""
    until = (await _erased_until(reading, user_id, session)).get(user_id)
    return {"userId": user_id, **({} if until is None else {"createdAt": after(until)})}


async def _first_overdraft(
    reading: Reading, border: Border, mine: Raw, extras: Extras | None, session: AsyncClientSession
) -> int:
    """The overdraft before the first transaction that is not in a file."""
    if not border.has_files:
        return 0
    query = {**mine, "operation": SetOverdraftRequest.operation}
    for collection in reversed(reading.transactions):
        row = await reading.database[collection].find_one(
            query, {"oldOverdraft": 1}, sort=[("createdAt", 1), ("seq", 1)], session=session
        )
        if row is not None:
            return whole(row.get("oldOverdraft")) or 0
    return 0 if extras is None else extras.overdraft


class _Followed(NamedTuple):
    """What follows a user's balance, lots and holds through the transactions."""

    chain: Chain
    replay: Replay
    captures: Captures


async def _follow(
    reading: Reading,
    border: Border,
    look_up: _LookUp,
    followed: _Followed,
    order: Sequence[tuple[str, int]],
) -> None:
    """Add the archived transactions to the chain, then the others, oldest first.

    Raises _UnsortedError if they come by time and this isn't the order of their seq.
    """
    segments, chain = list(border.segments), followed.chain
    for collection in reversed(reading.transactions):
        is_archive = collection == reading.names.transactions_archive
        rows = reading.database[collection].find(
            look_up.mine,
            _FIELDS,
            session=look_up.session,
            batch_size=LOOK_UP,
            allow_disk_use=True,
            sort=order,
        )
        batch: list[Raw] = []
        latest: int | None = None
        async for row in rows:
            if order is _BY_TIME:
                seq = whole(row.get("seq"))
                if seq is None or (latest is not None and seq <= latest):
                    raise _UnsortedError
                latest = seq
            if is_archive and _come_to(row, segments, border, chain):
                followed.replay.skip()
            chain.add(row)
            followed.replay.add(row)
            followed.captures.add(row)
            batch.append(row)
            if len(batch) == LOOK_UP:
                await look_up.all_of(batch)
                batch = []
                if followed.captures.are_many:
                    # More may follow.
                    await followed.captures.look_up(reading, look_up.session, whole=False)
        await look_up.all_of(batch)
        for segment in segments:
            chain.reach(border, segment)
        if any(segment.place == "files" for segment in segments):
            followed.replay.skip()
        segments = []


def _come_to(row: Raw, segments: list[Segment], border: Border, chain: Chain) -> bool:
    """Before an archived transaction, reach the ends of the segments before it.

    Returns whether transactions in files come before it.
    """
    seq, has_files = whole(row.get("seq")), False
    while segments and (segments[0].place == "files" or (seq or 0) > segments[0].seq):
        segment = segments.pop(0)
        has_files = has_files or segment.place == "files"
        chain.reach(border, segment)
    if not segments:
        chain.pass_border(row)
    return has_files


class _LookUp:
    """Looks up audit rows, keys and refunded charges for many transactions at once."""

    def __init__(
        self,
        reading: Reading,
        mine: Raw,
        border: Border,
        session: AsyncClientSession,
        *,
        now: datetime,
        tell: _Teller,
    ) -> None:
        self._reading = reading
        self.mine = mine
        self._user_id: str = mine["userId"]
        self._border = border
        self.session = session
        self._now = now
        self._tell_finding = tell

    def _tell(self, code: Code, row: Raw) -> None:
        seq, row_id = whole(row.get("seq")), str(row["_id"])
        self._tell_finding(Finding(self._user_id, code, seq=seq, transaction_id=row_id))

    async def all_of(self, rows: Sequence[Raw]) -> None:
        """Check the audit rows, keys and refunded charges of some transactions."""
        if self._reading.audits and rows:
            await self._audits_of(rows)
        keyed = {row["idempotencyKey"]: row for row in rows if self._is_remembered(row)}
        if keyed:
            names, session = self._reading.names, self.session
            ids = list(keyed)
            records = await self._reading.by_ids(
                names.idempotency_records, ids, {"_id": 1}, session
            )
            for key, row in keyed.items():
                if key not in records:
                    self._tell("key-missing", row)
        refunds = [row for row in rows if row.get("refundOf") is not None]
        if refunds:
            await self._refunds_of(refunds)

    async def _audits_of(self, rows: Sequence[Raw]) -> None:
        ids = [row["_id"] for row in rows]
        reading = self._reading
        audits = await reading.by_ids_anywhere(reading.audit_logs, ids, _AUDIT_FIELDS, self.session)
        for row in rows:
            audit = audits.get(row["_id"])
            if audit is None:
                self._tell("audit-missing", row)
            elif not _agree(row, audit):
                self._tell("audit-differs", row)

    def _is_remembered(self, row: Raw) -> bool:
        key, moment = row.get("idempotencyKey"), row.get("createdAt")
        if not isinstance(key, str) or not isinstance(moment, datetime):
            return False
        return self._reading.is_remembered(row, self._now)

    async def _refunds_of(self, refunds: Sequence[Raw]) -> None:
        charge_ids = list({row["refundOf"]: None for row in refunds})
        charges = await self._reading.refunded(charge_ids, self.session)
        for row in refunds:
            refunded = charges[row["refundOf"]]
            wrong = refunded.wrong_for(self._user_id)
            if wrong == "refund-exceeds":
                charge = refunded.charge or {}
                amount = whole(charge.get("amount"))
                self._tell_finding(
                    Finding(
                        self._user_id,
                        wrong,
                        seq=whole(charge.get("seq")),
                        transaction_id=str(row["refundOf"]),
                        expected=None if amount is None else -amount,
                        found=refunded.refunded,
                    )
                )
            elif wrong is not None and not (refunded.charge is None and self._border.has_files):
                # A charge in a file can't be checked.
                self._tell(wrong, row)

    async def orphaned_audits(self) -> None:
        """Report audit rows of successes without a transaction of this user."""
        reading = self._reading
        for collection in reading.audit_logs:
            audits = reading.database[collection].find(
                {**self.mine, "status": "success", "$nor": WITHOUT_TRANSACTION},
                {"createdAt": 1},
                session=self.session,
                batch_size=LOOK_UP,
            )
            some: list[Raw] = []
            async for audit in audits:
                some.append(audit)
                if len(some) == LOOK_UP:
                    await self._orphans_of(some)
                    some = []
            if some:
                await self._orphans_of(some)

    async def _orphans_of(self, audits: Sequence[Raw]) -> None:
        reading, ids = self._reading, [audit["_id"] for audit in audits]
        rows = await reading.by_ids_anywhere(reading.transactions, ids, {"userId": 1}, self.session)
        for audit in audits:
            row = rows.get(audit["_id"])
            is_filed = row is None and self._border.is_filed(audit.get("createdAt"))
            if not is_filed and (row or {}).get("userId") != self._user_id:
                self._tell("audit-orphaned", {"_id": audit["_id"]})


def _agree(row: Raw, audit: Raw) -> bool:
    details = audit.get("details")
    return (
        isinstance(details, dict)
        and audit.get("status") == "success"
        and all(
            audit.get(name) == row.get(name)
            for name in ("userId", "operation", "action", "createdAt")
        )
        and all(
            details.get(name) == row.get(name)
            for name in ("amount", "balanceBefore", "balanceAfter")
        )
    )


async def examine_records(
    reading: Reading,
    user_id: str,
    keys: Sequence[str],
    session: AsyncClientSession,
    now: datetime,
) -> Examined:
    """Examine idempotency records of a user that may be wrong."""
    examined = Examined(user_id)
    until = (await _erased_until(reading, user_id, session)).get(user_id)
    border = await reading.border(user_id, session) or NO_BORDER
    tell = _Teller(examined, await accepted_by(reading, user_id, border, session))
    for part in _parts(keys):
        names = reading.names
        records = await reading.by_ids(names.idempotency_records, part, RECORD_FIELDS, session)
        live = [r for r in records.values() if is_live(r, now) and not is_erased(r, until)]
        if any(is_ahead(record, reading.latest(now)) for record in live):
            tell(Finding(user_id, "key-in-future"))
        for record, row in await find_odd(reading, live, session):
            if row is None and border.is_filed(record.get("createdAt")):
                continue
            code: Code = "key-differs"
            if row is None or row.get("userId") != user_id:
                code = "key-orphaned"
            result = record.get("result")
            row_id = result.get("transaction_id") if isinstance(result, dict) else None
            if row_id is None and row is not None:
                row_id = row["_id"]
            tell(Finding(user_id, code, transaction_id=None if row_id is None else str(row_id)))
    return examined


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(keys), LOOK_UP):
        yield keys[begin : begin + LOOK_UP]

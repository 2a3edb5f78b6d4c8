"""The sweep: a fast pass over all users with their transactions and audit rows.

The sweep only finds users whose books need an examination (``examination.py``). It must not miss
any of them, but it may name too many. So it passes on every user with anything odd, and every user
that it can't finish: because the snapshot is gone, or because the rows don't fit in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from bson import Int64
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.maintenance.archive.borders import Border, border_or_none
from credit_mongo.maintenance.streams import Streams
from credit_mongo.maintenance.verification.findings import Finding
from credit_mongo.maintenance.verification.holds import check_account, extras_of
from credit_mongo.maintenance.verification.reading import LOOK_UP, Reading
from credit_mongo.maintenance.verification.records import RECORD_FIELDS, agree, is_live
from credit_mongo.storage.extras import ExtrasError, legs_from
from credit_mongo.storage.rows import Raw

__all__ = ["OnProgress", "OnSuspect", "Sweep", "is_no_account"]

OnSuspect: TypeAlias = Callable[[str], Awaitable[tuple[bool, int]]]
"""Called with a user id. Returns whether the account exists, and how many transactions it has."""
OnProgress: TypeAlias = Callable[[int], None]

# How many rows of one user may wait for their counterpart in the other stream.
_MOST_UNMATCHED: Final = 20_000
_MOST_KEYS: Final = 50_000
_MOST_SUSPECTS: Final = 100
_WHOLE: Final = frozenset({int, Int64})


class _User:
    """Checks one user's chain from its end to its beginning, together with the audit rows."""

    def __init__(self, user_id: str, account: Raw | None, border: Border | None) -> None:
        self.user_id = user_id
        self.is_odd = account is None
        self.rows = 0
        self._account = account or {}
        self._seq: int | None = self._account.get("seq")
        self._balance: int | None = self._account.get("credits")
        if type(self._balance) not in _WHOLE or type(self._seq) not in _WHOLE:
            self.is_odd = True
        self._border = border
        self._is_at_border = False
        self._unmatched: dict[Any, Raw] = {}
        self._unmatched_audits: dict[Any, Raw] = {}
        self._keys: dict[str, datetime] = {}
        self._later_keys: dict[str, datetime] = {}
        extras = extras_of(account)
        # The examination looks at active holds. There are few at any moment.
        self.is_odd = self.is_odd or extras is None or bool(extras.holds)
        self._overdraft = 0 if extras is None else extras.overdraft
        self._lots = {} if extras is None else {lot.lot_id: lot.amount for lot in extras.lots}
        self._in_lots = sum(self._lots.values())
        self._extras = extras

    @property
    def has_files(self) -> bool:
        return self._border is not None and self._border.has_files

    def look_at_what_was_due(self, until: datetime) -> None:
        """Mark the user as odd if the account shows that something has not ended in time."""
        if self._extras is not None and self._extras.lots:
            check_account(self.user_id, self._extras, until, self._mark)

    def _mark(self, finding: Finding) -> None:  # noqa: ARG002
        self.is_odd = True

    def look_at_its_time(self, latest: datetime) -> None:
        """Mark the user as odd if the account is dated in the future. Ignore malformed dates."""
        updated_at = self._account.get("updatedAt")
        if isinstance(updated_at, datetime) and updated_at > latest:
            self.is_odd = True

    def take(self, rows: list[Raw]) -> None:
        """Take the next transactions, newest first."""
        self.rows += len(rows)
        if self.is_odd:
            return
        seq, balance = self._seq, self._balance
        for row in rows:
            amount, before, after = row["amount"], row["balanceBefore"], row["balanceAfter"]
            if row["seq"] != seq:
                seq, balance = self._before_files(seq, balance)
            if (
                after != balance
                or before + amount != after
                or row["seq"] != seq
                or after - self._in_lots < -self._overdraft
                or not {type(amount), type(before), type(after), type(seq)} <= _WHOLE
                or type(row["createdAt"]) is not datetime
            ):
                self.is_odd = True
                return
            if "legs" in row:
                self._undo(row["legs"], amount)
            if "newOverdraft" in row:
                self._undo_overdraft(row)
            balance = before
            seq -= 1  # type: ignore[operator]
        self._seq, self._balance = seq, balance

    def _undo(self, stored: object, amount: int) -> None:
        legs = legs_from(stored)
        for lot, change in legs:
            if lot is not None:
                before = self._lots.get(lot.lot_id, 0) - change
                self._lots[lot.lot_id] = before
                self._in_lots -= change
                self.is_odd = self.is_odd or before < 0
        self.is_odd = self.is_odd or (bool(legs) and sum(leg.amount for leg in legs) != amount)

    def _undo_overdraft(self, row: Raw) -> None:
        self.is_odd = self.is_odd or row["newOverdraft"] != self._overdraft
        self._overdraft = int(row["oldOverdraft"])

    def come_to_border(self) -> None:
        """Note that all transactions that aren't archived were taken."""
        if not self._is_at_border:
            self._is_at_border = True
            border = self._border
            if border is None or (self._seq, self._balance) != (border.seq, border.balance):
                self.is_odd = True

    def _before_files(self, seq: int | None, balance: int | None) -> tuple[int | None, int | None]:
        """Skip transactions in files that end at ``seq``. Return where the chain goes on."""
        border = self._border
        segment = border.filed_up_to(seq) if border is not None and self._is_at_border else None
        if border is None or segment is None or segment.balance != balance:
            return seq, balance
        return border.opening_of(segment)

    def take_key(self, key: str, moment: datetime, expires_at: datetime) -> None:
        """Take a key. The user is odd if a later transaction used it before it expired."""
        later = self._keys.get(key) or self._later_keys.get(key)
        if later is not None and later < expires_at:
            self.is_odd = True
        self._keys[key] = moment
        if len(self._keys) == _MOST_KEYS:
            self._later_keys, self._keys = self._keys, {}

    def match(self, rows: list[Raw]) -> None:
        """Match transactions with audit rows taken before them."""
        audits, unmatched = self._unmatched_audits, self._unmatched
        for row in rows:
            audit = audits.pop(row["_id"], None)
            if audit is None:
                unmatched[row["_id"]] = row
            elif not _agree(row, audit):
                self.is_odd = True
        self._bound()

    def match_audits(self, audits: list[Raw]) -> None:
        """Match audit rows with transactions taken before them."""
        unmatched = self._unmatched
        for audit in audits:
            row = unmatched.pop(audit["_id"], None)
            if row is None:
                self._unmatched_audits[audit["_id"]] = audit
            elif not _agree(row, audit):
                self.is_odd = True
        self._bound()

    def _bound(self) -> None:
        if self.is_odd or len(self._unmatched) + len(self._unmatched_audits) > _MOST_UNMATCHED:
            self.is_odd = True
            self._unmatched.clear()
            self._unmatched_audits.clear()

    def safely(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step. The user is odd if fields are missing or of the wrong type."""
        try:
            step(*arguments)
        except (AttributeError, ExtrasError, KeyError, TypeError, ValueError):
            self.is_odd = True

    def end(self) -> None:
        """Note that all rows of the user were taken."""
        if self._border is not None:
            self.come_to_border()
        beginning = self._before_files(self._seq, self._balance)
        self.is_odd = self.is_odd or bool(
            beginning != (0, 0)
            # What transactions in files did to lots is not known.
            or (not self.has_files and any(self._lots.values()))
            or self._unmatched
            or self._unmatched_audits
            or (self.rows == 0 and self._border is None)
        )


def _agree(row: Raw, audit: Raw) -> bool:
    details = audit["details"]
    return bool(
        details["amount"] == row["amount"]
        and details["balanceAfter"] == row["balanceAfter"]
        and details["balanceBefore"] == row["balanceBefore"]
        and audit["createdAt"] == row["createdAt"]
        and audit["action"] == row["action"]
        and audit["operation"] == row["operation"]
    )


class Sweep:
    """Sweeps all users, and can go on after any of them in a fresh snapshot."""

    def __init__(self, reading: Reading, on_suspect: OnSuspect, on_progress: OnProgress) -> None:
        self._reading = reading
        self._on_suspect = on_suspect
        self._on_progress = on_progress
        self._suspects: dict[str, None] = {}
        # Pending look-ups: the user and the transaction of each key, and the users with refunds
        # of each charge.
        self._keys: dict[str, tuple[str, Raw]] = {}
        self._refunds: dict[Any, set[str]] = {}
        self._captures: dict[Any, _Captured] = {}
        self.place: str | None = None
        """The last user that was finished."""
        self._open_user: str | None = None
        self._passed_over: set[str] = set()
        self.users: int = 0
        self.transactions: int = 0
        self.has_seen_all_records: bool = False
        """Whether the sweep saw that every live idempotency record agrees with its transaction."""
        self._seen_records = 0
        self._is_one_snapshot = True

    async def run(self, session: AsyncClientSession, now: datetime) -> None:
        """Sweep the users after ``place``. After an error, call ``go_on``, then this again."""
        self._session = session
        self._now = now
        self._latest = self._reading.latest(now)
        streams = Streams.open(self._reading, self.place, session)
        try:
            await streams.begin()
            while (user_id := streams.user_id) is not None:
                self._open_user = user_id
                await self._go_through(user_id, streams)
                self.place, self._open_user = user_id, None
                if self._is_time_to_settle():
                    await self._settle()
            await self._settle()
            if self._is_one_snapshot:
                self.has_seen_all_records = await self._count_records() == self._seen_records
        finally:
            await streams.close()

    async def go_on(self, *, is_stuck: bool) -> None:
        """Finish pending work after the snapshot is gone. ``is_stuck``: skip one user."""
        if is_stuck and self._open_user is not None:
            self._suspects[self._open_user] = None
            self._passed_over.add(self._open_user)
            self.place, self._open_user = self._open_user, None
        self._is_one_snapshot = False
        for user_id, _ in self._keys.values():
            self._suspects[user_id] = None
        for user_ids in self._refunds.values():
            self._suspects.update(dict.fromkeys(user_ids))
        for captured in self._captures.values():
            self._suspects[captured.user_id] = None
        self._captures.clear()
        self._keys.clear()
        self._refunds.clear()
        if self._open_user is not None:
            # The next run takes this user again, from the beginning.
            self._suspects.pop(self._open_user, None)
            self._open_user = None
        await self._tell_suspects()

    async def _go_through(self, user_id: str, streams: Streams) -> None:
        transactions, audits = streams.transactions, streams.audits
        account = await streams.users.take_one_of(user_id)
        stored = await streams.borders.take_one_of(user_id)
        user = _User(user_id, account, None if stored is None else border_or_none(stored))
        user.safely(user.look_at_its_time, self._latest)
        user.safely(user.look_at_what_was_due, self._reading.due_by(account, self._now))
        newest: Any = None
        newest_audit: Any = None
        while True:
            has_rows = transactions.user_id == user_id
            if audits is not None and audits.user_id == user_id:
                # Read from the stream that is behind, so that few rows wait for a match.
                if not has_rows or _is_behind(newest_audit, newest):
                    taken = await audits.take()
                    newest_audit = taken[-1].get("createdAt")
                    user.safely(user.match_audits, taken)
                    continue
            elif not has_rows:
                break
            if transactions.is_archived:
                user.come_to_border()
            taken = await transactions.take()
            newest = taken[-1].get("createdAt")
            user.safely(self._take, user, taken)
            self._on_progress(self.transactions + user.rows)
            if len(self._keys) >= 2 * LOOK_UP:
                await self._look_up_keys()
        user.safely(user.end)
        self.users += account is not None
        self.transactions += user.rows
        if user.is_odd and (stored is not None or not is_no_account(account, user.rows)):
            self._suspects[user_id] = None

    def _take(self, user: _User, rows: list[Raw]) -> None:
        if rows[0]["createdAt"] > self._latest:
            user.is_odd = True
        user.take(rows)
        keys = self._keys
        for row in rows:
            key = row.get("idempotencyKey")
            if key is not None:
                expires_at = self._reading.key_expires(row)
                user.take_key(key, row["createdAt"], expires_at)
                if expires_at > self._now:
                    if key in keys:
                        self._suspects[keys[key][0]] = None
                    keys[key] = (user.user_id, row)
            if "refundOf" in row:
                self._refunds.setdefault(row["refundOf"], set()).add(user.user_id)
            if "holdId" in row:
                self._take_capture(user, row)
        if self._reading.audits:
            user.match(rows)

    def _take_capture(self, user: _User, row: Raw) -> None:
        captured = self._captures.get(row["holdId"])
        if captured is None and len(self._captures) < _MOST_KEYS:
            captured = _Captured(user.user_id, 0, is_whole=not user.has_files)
            self._captures[row["holdId"]] = captured
        if captured is None or captured.user_id != user.user_id:
            user.is_odd = True
        else:
            captured.total -= row["amount"]

    # Look-ups for many users at once

    def _is_time_to_settle(self) -> bool:
        waiting = (self._keys, self._refunds, self._captures)
        many = any(len(each) >= LOOK_UP for each in waiting)
        return many or len(self._suspects) >= _MOST_SUSPECTS

    async def _settle(self) -> None:
        await self._look_up_keys()
        await self._look_up_refunds()
        await self._look_up_holds()
        await self._tell_suspects()

    async def _tell_suspects(self) -> None:
        # Report users only after all look-ups, so that none is reported twice.
        suspects, self._suspects = self._suspects, {}
        for user_id in suspects:
            exists, transactions = await self._on_suspect(user_id)
            if user_id in self._passed_over:
                self._passed_over.remove(user_id)
                self.users += exists
                self.transactions += transactions

    async def _look_up_keys(self) -> None:
        names, keys = self._reading.names, self._keys
        records = await self._reading.by_ids(
            names.idempotency_records, list(keys), RECORD_FIELDS, self._session
        )
        for key, (user_id, row) in keys.items():
            record = records.get(key)
            if record is None:
                if self._reading.is_remembered(row, self._now):
                    self._suspects[user_id] = None
            elif not agree(record, row):
                self._suspects[user_id] = None
            elif is_live(record, self._now):
                self._seen_records += 1
        keys.clear()

    async def _count_records(self) -> int:
        records = self._reading.database[self._reading.names.idempotency_records]
        live = {"expiresAt": {"$gt": self._now}}
        return await records.count_documents(live, session=self._session)

    async def _look_up_refunds(self) -> None:
        refunds = self._refunds
        while refunds:
            part = [charge_id for charge_id, _ in zip(refunds, range(LOOK_UP), strict=False)]
            charges = await self._reading.refunded(part, self._session)
            for charge_id in part:
                for user_id in refunds.pop(charge_id):
                    if charges[charge_id].wrong_for(user_id) is not None:
                        self._suspects[user_id] = None

    async def _look_up_holds(self) -> None:
        captures, names = self._captures, self._reading.names
        places, fields = (names.holds, names.holds_archive), {"userId": 1, "captured": 1}
        while captures:
            part = [hold_id for hold_id, _ in zip(captures, range(LOOK_UP), strict=False)]
            found = await self._reading.by_ids_anywhere(places, part, fields, self._session)
            for hold_id in part:
                captured, hold = captures.pop(hold_id), found.get(hold_id, {})
                amount = hold.get("captured")
                is_right = isinstance(amount, int) and (
                    amount == captured.total if captured.is_whole else amount >= captured.total
                )
                if hold.get("userId") != captured.user_id or not is_right:
                    self._suspects[captured.user_id] = None


@dataclass(slots=True)
class _Captured:
    """What a user's transactions took for a hold. ``is_whole``: none of them is in a file."""

    user_id: str
    total: int
    is_whole: bool


def is_no_account(account: Raw | None, rows: int) -> bool:
    """Whether this is a user of the application who has no credits yet."""
    return account is not None and not rows and "credits" not in account and "seq" not in account


def _is_behind(moment: Any, than: Any) -> bool:
    """Whether a stream at ``moment`` is behind: streams run from newest to oldest."""
    if moment is None or than is None:
        return than is not None
    try:
        return bool(moment > than)
    except TypeError:
        return True

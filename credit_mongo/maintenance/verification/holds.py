"""Compare holds: what the account keeps for them, their documents, and what was captured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.extras import ActiveHold, Extras
from credit_mongo.core.holds import HoldRecord
from credit_mongo.maintenance.verification.chain import whole
from credit_mongo.maintenance.verification.findings import Code, Finding
from credit_mongo.maintenance.verification.reading import BATCH, LOOK_UP, Reading, Rows
from credit_mongo.storage.erasures import erased_until, is_erased
from credit_mongo.storage.extras import ExtrasError, extras_from
from credit_mongo.storage.holds import ACTIVE, hold_from
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw

__all__ = ["Captures", "HoldSweep", "check_account", "examine_holds", "extras_of"]

Tell: TypeAlias = Callable[[Finding], None]
OnOddHolds: TypeAlias = Callable[[str], Awaitable[object]]

_MOST_HOLDS: Final = 50_000
_BY_USER: Final = [("userId", 1), ("expiresAt", 1)]


def extras_of(user: Mapping[str, Any] | None) -> Extras | None:
    """Read the extras of a user's document. Returns None if they can't be read."""
    stored = (user or {}).get("creditExtras")
    try:
        return Extras() if stored is None else extras_from(stored)
    except ExtrasError:
        return None


def check_account(user_id: str, extras: Extras, until: datetime, tell: Tell) -> None:
    """Check what the account alone shows: pins, and ends that were due by ``until``."""
    pinned: dict[str | None, int] = {}
    for hold in extras.holds:
        for pin in hold.pins:
            pinned[pin.lot_id] = pinned.get(pin.lot_id, 0) + pin.amount
        if hold.expires_at < until:
            tell(Finding(user_id, "hold-overdue", transaction_id=hold.hold_id))
    amounts = {lot.lot_id: lot.amount for lot in extras.lots}
    for lot_id, amount in pinned.items():
        if lot_id is not None and amount > amounts.get(lot_id, 0):
            there = amounts.get(lot_id, 0)
            code: Code = "pins-exceed"
            tell(Finding(user_id, code, transaction_id=lot_id, expected=there, found=amount))
    for lot in extras.lots:
        free = lot.amount - pinned.get(lot.lot_id, 0)
        if lot.expires_at is not None and lot.expires_at < until and free > 0:
            tell(Finding(user_id, "expiry-missing", transaction_id=lot.lot_id, found=free))


class Captures:
    """What the transactions so far have captured of each hold."""

    def __init__(self, user_id: str, tell: Tell) -> None:
        self._user_id = user_id
        self._tell = tell
        self.of_holds: dict[str, list[Raw]] = {}
        self.sums: dict[str, int] = {}

    def add(self, row: Raw) -> None:
        """Add the next transaction."""
        if row.get("holdId") is None:
            return
        hold_id = str(row["holdId"])
        self.sums[hold_id] = self.sums.get(hold_id, 0) - (whole(row.get("amount")) or 0)
        self.of_holds.setdefault(hold_id, []).append(
            {name: row.get(name) for name in ("_id", "seq", "holdId")}
        )

    @property
    def are_many(self) -> bool:
        """Whether it is time to look up the holds."""
        return len(self.of_holds) >= _MOST_HOLDS

    async def look_up(self, reading: Reading, session: AsyncClientSession, *, whole: bool) -> None:
        """Compare with the holds' documents. ``whole``: no transaction of theirs is missing."""
        ids = [rows[0]["holdId"] for rows in self.of_holds.values()]
        for begin in range(0, len(ids), LOOK_UP):
            some = ids[begin : begin + LOOK_UP]
            places = (reading.names.holds, reading.names.holds_archive)
            found = await reading.by_ids_anywhere(places, some, {}, session)
            for stored_id in some:
                self._compare(str(stored_id), found.get(stored_id), whole=whole)
        self.of_holds.clear()
        self.sums.clear()

    def _compare(self, hold_id: str, document: Raw | None, *, whole: bool) -> None:
        code: Code
        if document is None or document.get("userId") != self._user_id:
            for row in self.of_holds[hold_id]:
                seq, row_id = row["seq"], str(row["_id"])
                seq = int(seq) if isinstance(seq, int) else None
                code = "capture-orphaned"
                self._tell(Finding(self._user_id, code, seq=seq, transaction_id=row_id))
            return
        captured, taken = document.get("captured"), self.sums[hold_id]
        is_right = isinstance(captured, int) and (captured == taken if whole else captured >= taken)
        if not is_right:
            found = captured if isinstance(captured, int) else None
            code = "captured-differs"
            self._tell(
                Finding(self._user_id, code, transaction_id=hold_id, expected=taken, found=found)
            )


async def examine_holds(
    reading: Reading,
    mine: Raw,
    extras: Extras,
    session: AsyncClientSession,
    tell: Tell,
) -> None:
    """Compare the account's active holds with their documents."""
    user_id: str = mine["userId"]
    places = reading.names.holds
    active: dict[str, Raw] = {}
    cursor = reading.database[places].find({**mine, **ACTIVE}, session=session)
    async for document in cursor:
        active[str(document["_id"])] = document
    for hold in extras.holds:
        document = active.pop(hold.hold_id, None)
        if document is None:
            tell(Finding(user_id, "hold-missing", transaction_id=hold.hold_id))
            continue
        record = hold_from(document)
        if not isinstance(record, HoldRecord):
            tell(Finding(user_id, "hold-unusable", transaction_id=hold.hold_id))
        elif not _agree(hold, record):
            # What the document lets the hold keep.
            expected = max(record.amount - record.captured, 0)
            tell(
                Finding(
                    *(user_id, "hold-differs"),
                    transaction_id=hold.hold_id,
                    expected=expected,
                    found=hold.held,
                )
            )
    for hold_id in active:
        tell(Finding(user_id, "hold-orphaned", transaction_id=hold_id))


def _agree(hold: ActiveHold, record: HoldRecord) -> bool:
    kept = max(record.amount - record.captured, 0)
    return (
        (hold.held == kept if not record.uncollected else hold.held <= kept)
        and (hold.captured, hold.uncollected) == (record.captured, record.uncollected)
        and (hold.used, hold.expires_at) == (record.used, in_utc(record.expires_at))
        and (hold.action, hold.overage) == (record.action, record.overage)
        and hold.settles_at_end == (record.on_timeout == "settle")
    )


class HoldSweep:
    """Goes through all active holds, which are few, and finds those that no account has."""

    def __init__(self, reading: Reading, on_odd: OnOddHolds, known: Iterable[str]) -> None:
        self._reading = reading
        self._on_odd = on_odd
        self._known = set(known)
        self.place: str | None = None
        """The last user whose holds were checked."""

    async def run(self, session: AsyncClientSession, now: datetime) -> None:  # noqa: ARG002
        """Check the holds of users after ``place``."""
        reading = self._reading
        above: Raw = {"$gte": ""} if self.place is None else {"$gt": self.place}
        found = reading.database[reading.names.holds].find(
            {"userId": above, **ACTIVE},
            {"userId": 1, "createdAt": 1},
            sort=_BY_USER,
            hint=_BY_USER,
            batch_size=BATCH,
            session=session,
        )
        rows = Rows(found)
        left: list[Raw] = []
        try:
            while batch := await rows.next():
                left += batch
                last = left[-1]["userId"]
                ready = [row for row in left if row["userId"] != last]
                left = [row for row in left if row["userId"] == last]
                await self._check(ready, session)
            await self._check(left, session)
        finally:
            await rows.close()

    async def go_on(self, *, is_stuck: bool) -> None:
        """Do nothing: no work stays open between two users."""

    async def _check(self, holds: Sequence[Raw], session: AsyncClientSession) -> None:
        reading, users = self._reading, self._reading.users
        by_user: dict[str, list[Raw]] = {}
        for row in holds:
            by_user.setdefault(row["userId"], []).append(row)
        everybody = list(by_user)
        for begin in range(0, len(everybody), LOOK_UP):
            user_ids = everybody[begin : begin + LOOK_UP]
            stored = users.stored_ids(user_ids)
            documents = await reading.by_ids(
                reading.names.users, stored, users.book_fields, session
            )
            accounts = {
                user["_id"]: extras_of(user) for user in map(users.by_own_names, documents.values())
            }
            until = await erased_until(reading.database, user_ids, session)
            for user_id in user_ids:
                extras = accounts.get(user_id)
                kept = {hold.hold_id for hold in extras.holds} if extras is not None else set()
                odd = [
                    row
                    for row in by_user[user_id]
                    if str(row["_id"]) not in kept and not is_erased(row, until.get(user_id))
                ]
                if odd and user_id not in self._known:
                    self._known.add(user_id)
                    await self._on_odd(user_id)
        if holds:
            self.place = holds[-1]["userId"]

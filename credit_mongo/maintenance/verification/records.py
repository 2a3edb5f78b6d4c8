"""Compare idempotency records with their transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.advance import CAPTURE
from credit_mongo.core.operations import OPENING, WITHOUT_TRANSACTION
from credit_mongo.maintenance.verification.reading import BATCH, LOOK_UP, Reading, Rows
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.rows import Raw

__all__ = [
    "RECORD_FIELDS",
    "OnOddRecords",
    "RecordSweep",
    "RecordsOfUser",
    "agree",
    "find_odd",
    "is_ahead",
    "is_live",
]

OnOddRecords: TypeAlias = Callable[[str, list[str]], Awaitable[None]]
"""Called with a user id and keys of this user."""

# Leave out the callers' metadata, which may be large.
RECORD_FIELDS: Final[Raw] = {"result.metadata": 0}
_TRANSACTION_FIELDS: Final = dict.fromkeys(
    (
        *("userId", "operation", "action", "amount", "balanceBefore", "balanceAfter"),
        *("idempotencyKey", "createdAt"),
    ),
    1,
)
# The server plans each of these separately.
_CREATIONS: Final = 100
_BY_ID: Final = [("_id", 1)]
_BY_USER: Final = [("userId", 1), ("createdAt", 1)]


class RecordSweep:
    """Goes through all records that haven't expired."""

    def __init__(self, reading: Reading, on_odd: OnOddRecords) -> None:
        self._reading = reading
        self._on_odd = on_odd
        self.place: Any = None
        """The last record that was checked: what ``_rest`` needs to go on after it."""

    async def run(self, session: AsyncClientSession, now: datetime) -> None:
        """Check the records after ``place``. After an error, another call goes on from there."""
        reading = self._reading
        query, order = self._rest()
        found = reading.database[reading.names.idempotency_records].find(
            query,
            RECORD_FIELDS,
            sort=order[-1:],
            hint=order,
            batch_size=BATCH,
            session=session,
        )
        rows = Rows(found)
        try:
            while batch := await rows.next():
                odd: dict[str, list[str]] = {}
                live = [record for record in self._new_in(batch) if is_live(record, now)]
                ahead = [record for record in live if is_ahead(record, reading.latest(now))]
                for record in ahead + [r for r, _ in await find_odd(reading, live, session)]:
                    odd.setdefault(str(record.get("userId")), []).append(record["_id"])
                self._go_past(batch)
                for user_id, keys in odd.items():
                    await self._on_odd(user_id, keys)
        finally:
            await rows.close()

    async def go_on(self, *, is_stuck: bool) -> None:
        """Do nothing: no work stays open between two batches."""

    def _rest(self) -> tuple[Raw, list[tuple[str, int]]]:
        """Return the query for the records after ``place``, and the index that sorts them."""
        return {"_id": {"$gte": ""} if self.place is None else {"$gt": self.place}}, _BY_ID

    def _new_in(self, batch: list[Raw]) -> list[Raw]:
        """Return the records of a batch that were not checked before."""
        return batch

    def _go_past(self, batch: list[Raw]) -> None:
        self._set_place(batch[-1]["_id"])

    def _set_place(self, place: Any) -> None:
        self.place = place


class RecordsOfUser(RecordSweep):
    """Goes through one user's records. It finds them in the index by user and moment."""

    def __init__(self, reading: Reading, on_odd: OnOddRecords, user_id: str) -> None:
        super().__init__(reading, on_odd)
        self._user_id = user_id
        # Of the moment ``place``, because other records may have the same.
        self._checked: set[str] = set()

    def _rest(self) -> tuple[Raw, list[tuple[str, int]]]:
        query: Raw = {"userId": self._user_id}
        if self.place is not None:
            query["createdAt"] = {"$gte": self.place}
        return query, _BY_USER

    def _new_in(self, batch: list[Raw]) -> list[Raw]:
        return [record for record in batch if record["_id"] not in self._checked]

    def _go_past(self, batch: list[Raw]) -> None:
        last = batch[-1].get("createdAt")
        if not isinstance(last, datetime):
            return  # not of the ledger: these come before all dates
        if last != self.place:
            self._set_place(last)
            self._checked = set()
        self._checked |= {r["_id"] for r in batch if r.get("createdAt") == last}


def is_live(record: Raw, now: datetime) -> bool:
    """Whether this is a record of the ledger that hasn't expired."""
    expires_at = record.get("expiresAt")
    return "fingerprint" in record and isinstance(expires_at, datetime) and expires_at > now


def is_ahead(record: Raw, latest: datetime) -> bool:
    """Whether a wrong clock has dated this record in the future."""
    created_at = record.get("createdAt")
    return isinstance(created_at, datetime) and created_at > latest


async def find_odd(
    reading: Reading, records: Sequence[Raw], session: AsyncClientSession
) -> list[tuple[Raw, Raw | None]]:
    """Return records that disagree with their transaction, each with it (None if missing)."""
    by_id: dict[Any, Raw] = {}
    creations: list[Raw] = []
    for record in records:
        if record.get("operation") in WITHOUT_TRANSACTION:
            continue
        if record.get("operation") == CAPTURE and _result(record).get("transaction_id") is None:
            continue  # It took nothing.
        if record.get("operation") in OPENING:
            creations.append(record)
        else:
            by_id[to_object_id(str(_result(record).get("transaction_id")))] = record
    pairs: list[tuple[Raw, Raw | None]] = []
    ids = list(by_id)
    for begin in range(0, len(ids), LOOK_UP):
        part = ids[begin : begin + LOOK_UP]
        found = await reading.by_ids_anywhere(
            reading.transactions, part, _TRANSACTION_FIELDS, session
        )
        pairs += [(by_id[row_id], found.get(row_id)) for row_id in part]
    for begin in range(0, len(creations), _CREATIONS):
        some = creations[begin : begin + _CREATIONS]
        pairs += await _find_creations(reading, some, session)
    return [(record, row) for record, row in pairs if row is None or not agree(record, row)]


async def _find_creations(
    reading: Reading, records: Sequence[Raw], session: AsyncClientSession
) -> list[tuple[Raw, Raw | None]]:
    # Their results don't store the transaction's id. It is the user's first transaction.
    places = [
        {"userId": record.get("userId"), "createdAt": record.get("createdAt"), "seq": 1}
        for record in records
    ]
    rows: dict[Any, Raw] = {}
    for collection in reversed(reading.transactions):
        cursor = reading.database[collection].find(
            {"$or": places}, _TRANSACTION_FIELDS, session=session
        )
        rows |= {row["userId"]: row for row in await cursor.to_list()}
    return [(record, rows.get(record.get("userId"))) for record in records]


def agree(record: Raw, row: Raw) -> bool:
    """Whether a record belongs to this transaction and has the same values."""
    result = _result(record)
    # The result of an account creation has no transaction id.
    row_id = result.get("transaction_id")
    return (
        (row_id is None or row_id == str(row["_id"]))
        and record["_id"] == row.get("idempotencyKey")
        and record.get("userId") == row.get("userId")
        and record.get("operation") == row.get("operation")
        and record.get("createdAt") == row.get("createdAt")
        and _tells(result, row)
    )


def _result(record: Raw) -> Raw:
    result = record.get("result")
    return result if isinstance(result, dict) else {}


def _tells(result: Raw, row: Raw) -> bool:
    """Whether the result has the transaction's numbers. Their names depend on the operation."""
    amount, before, after = row.get("amount"), row.get("balanceBefore"), row.get("balanceAfter")
    if not isinstance(amount, int):
        return False
    told: tuple[Any, ...]
    if "cost" in result:
        cost = result["cost"]
        cost = -cost if isinstance(cost, int) else None
        told = (result.get("balance_before"), cost, _before_expiry(result))
    elif "amount" in result:
        given = result["amount"]
        if "grant_transaction_id" in result and isinstance(given, int):
            given = -given  # a revocation tells what it took
        told = (result.get("balance_before"), given, _before_expiry(result))
    elif "new_limit" in result:
        told = (result.get("balance"), 0, result.get("balance"))
    elif "credits_delta" in result:
        told = (result.get("old_credits"), result["credits_delta"], result.get("new_credits"))
    else:
        told = (0, result.get("credits"), result.get("credits"))
    return told == (before, amount, after)


def _before_expiry(result: Raw) -> Any:
    """Return the balance before what ended at once, in rows of its own: a refund's or capture's."""
    after, expired = result.get("balance_after"), result.get("expired_amount", 0)
    return after + expired if isinstance(after, int) and isinstance(expired, int) else after

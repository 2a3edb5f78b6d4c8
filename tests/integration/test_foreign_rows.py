"""Documents of other software: read exactly, or reported by row and field, and never guessed.

Odd rows, each with one odd field, stand beside those of a ledger. A read must name the row and the
field. A report, a verification or an export may continue, but must report the row.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
import pytest_asyncio
from bson import Decimal128, Int64, ObjectId, encode
from bson.codec_options import DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument

from credit_mongo import AccountDataError, CreditConfig, CreditLedger, StorageError, UserMapping
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Database, Row, count

UTC = timezone.utc
NEVER: Final = 8_640_000_000_000_000
"""JavaScript's largest date, in the year 275760, as many store "never"."""
NOW: Final = datetime.now(UTC).replace(microsecond=0)
MISSING: Final = "(missing)"

ODD_AMOUNTS: Final = (
    *(-13.5, -0.01, -1e300, float("inf"), float("-inf"), float("nan")),
    *(Decimal128("-13"), "-13", None, MISSING, True, [-13], {"$numberLong": "-13"}),
)
ODD_MOMENTS: Final = (
    *(DatetimeMS(NEVER), DatetimeMS(-NEVER), None, MISSING, "2026-01-01", 1.5e12, True),
    [NOW - timedelta(days=9)],
)
ODD_IN_TRANSACTIONS: Final = (
    *[(f, v) for f in ("amount", "balanceBefore", "balanceAfter") for v in ODD_AMOUNTS],
    *[("createdAt", value) for value in ODD_MOMENTS],
    *[("seq", value) for value in ("7", 7.5, -7, DatetimeMS(NEVER))],
    *[("action", value) for value in (None, MISSING, 5)],
    *[("operation", 5), ("idempotencyKey", 5)],
)
ODD_IN_AUDIT_LOGS: Final = (
    *[("createdAt", value) for value in ODD_MOMENTS],
    *[("action", value) for value in (None, MISSING, 5)],
    *[("status", value) for value in (None, MISSING, 5)],
    *[
        ("details", "none"),
        ("details", [{"amount": -5}]),
        ("errorMessage", 5),
        ("operation", 5),
    ],
    ("_id", UUID(int=5).hex.encode()),
)


def transaction(**fields: Any) -> Row:
    """Return a charge as the ledger writes it, except for some fields."""
    row: Row = {
        "_id": ObjectId(),
        "userId": "ann",
        "seq": Int64(2),
        "operation": "charge",
        "action": "translate",
        "amount": Int64(-13),
        "balanceBefore": Int64(100),
        "balanceAfter": Int64(87),
        "metadata": None,
        "idempotencyKey": None,
        "createdAt": NOW,
    }
    return {name: v for name, v in {**row, **fields}.items() if v is not MISSING}


def audit_log(**fields: Any) -> Row:
    """Return its audit row, except for some fields."""
    row: Row = {
        "_id": ObjectId(),
        "userId": "ann",
        "operation": "charge",
        "action": "translate",
        "status": "failed",
        "details": {"code": "X"},
        "metadata": None,
        "errorMessage": "X",
        "createdAt": NOW,
    }
    return {name: v for name, v in {**row, **fields}.items() if v is not MISSING}


@pytest_asyncio.fixture
async def ann(ledger: CreditLedger) -> str:
    """An account for the odd rows."""
    await ledger.create_user("ann", credits=100)
    return "ann"


# --- Pages ----------------------------------------------------------------------------------------


async def all_pages(ledger: CreditLedger, kind: str, **options: Any) -> list[Any]:
    """Return a user's rows, page by page, through cursors."""
    read = ledger.get_history if kind == "transactions" else ledger.get_audit_log
    rows: list[Any] = []
    cursor = None
    while True:
        page = await read("ann", cursor=cursor, **options)
        rows += page
        cursor = page.next_cursor
        if cursor is None:
            return rows


@pytest.mark.parametrize("collection", ["transactions", "audit_logs"])
async def test_a_page_with_an_odd_row_names_the_row_and_its_field(
    ledger: CreditLedger, database: Database, ann: str, collection: str
) -> None:
    """It does so wherever pages are cut, before the row or after it, and in the archive."""
    is_audit = collection == "audit_logs"
    cases = ODD_IN_AUDIT_LOGS if is_audit else ODD_IN_TRANSACTIONS
    make = audit_log if is_audit else transaction
    good = [make(createdAt=NOW - timedelta(seconds=n), seq=Int64(9 + n)) for n in range(2)]
    await database[collection].insert_many(good)
    for field, value in (*cases, ("userId", ["ann"])):
        for place in (collection, f"{collection}_archive"):
            # Archived rows are older than the others.
            is_live = place == collection
            row = make(**{"createdAt": NOW - timedelta(days=not is_live), field: value})
            if value == DatetimeMS(NEVER) and field == "createdAt" and not is_live:
                continue
            await database[place].insert_one(dict(row))
            for limit in (1, 2, 50):
                with pytest.raises(AccountDataError) as caught:
                    await all_pages(ledger, collection, limit=limit, include_archived=True)
                error = caught.value
                found = (error.user_id, error.row_id, error.field)
                assert found == (ann, str(row["_id"]), field), (field, value, limit, found)
                assert field in str(error)
            await database[place].delete_one({"_id": row["_id"]})
    assert len(await all_pages(ledger, collection, limit=1)) == 3


async def test_exact_values_are_read_unchanged(
    ledger: CreditLedger, database: Database, ann: str
) -> None:
    """Integers of any type, other ids, dates before 1970 and any metadata are read exactly."""
    metadata = {"until": DatetimeMS(NEVER), "list": [DatetimeMS(NEVER)]}
    rows = [
        transaction(amount=-13.0, balanceBefore=100.0, seq=3.0, metadata=metadata),
        transaction(_id="in words", seq=MISSING, createdAt=datetime(1969, 1, 1, tzinfo=UTC)),
        transaction(seq=MISSING, createdAt=datetime(1969, 1, 1, tzinfo=UTC)),
        transaction(seq=2**40, createdAt=datetime(1960, 1, 1, tzinfo=UTC)),
    ]
    await database["transactions"].insert_many([dict(row) for row in rows])
    found = await all_pages(ledger, "transactions", limit=1)
    assert len(found) == 5
    by_id = {row.transaction_id: row for row in found}
    first = by_id[str(rows[0]["_id"])]
    assert (first.amount, first.balance_before, first.seq) == (-13, 100, 3)
    assert first.metadata == metadata


# --- Users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NEVER, -NEVER])
async def test_an_impossible_date_matters_only_as_a_membership_end(
    ledger: CreditLedger, database: Database, ann: str, value: int
) -> None:
    """The end of a membership matters. Dates in other fields of the document do not."""
    never = DatetimeMS(value)
    users = database["users"]
    others = {"trialEnds": never, "profile": {"dates": [never]}, "createdAt": never}
    await users.update_one({"_id": ann}, {"$set": others})
    assert (await ledger.get_user(ann)).credits == 100
    assert (await ledger.charge(ann, "translate")).balance_after == 97
    assert (await ledger.quote(ann, "translate")).balance == 97
    assert await ledger.validate_access(ann, "translate")

    await users.update_one({"_id": ann}, {"$set": {"membershipExpiresAt": never}})
    for work in (
        ledger.get_user(ann),
        ledger.get_balance(ann),
        ledger.quote(ann, "translate"),
        ledger.validate_access(ann, "translate"),
        ledger.charge(ann, "translate"),
        ledger.grant(ann, 5, action="gift"),
    ):
        with pytest.raises(AccountDataError, match=str(value)) as caught:
            await work
        assert (caught.value.user_id, caught.value.field) == (ann, "membershipExpiresAt")
    assert not (await verify(database)).findings
    erased = await ledger.delete_user(ann)
    assert (erased.users, erased.transactions) == (1, 2)
    assert await count(database, "users") == 0


async def test_an_erasure_leaves_the_applications_dates_as_they_are(
    database: Database, config: CreditConfig
) -> None:
    """Dates beyond any year and text that is not UTF-8 keep no user from being erased."""
    mapped = config.model_copy(update={"users": UserMapping()})
    never = DatetimeMS(NEVER)
    await database["users"].insert_one(
        {"_id": "ann", "licence": {"ends": never}, "createdAt": never}
    )
    async with CreditLedger(database, mapped) as ledger:
        await ledger.create_user("ann", credits=100)
        await database["transactions"].insert_one(transaction(createdAt=never))
        await database["audit_logs"].insert_one(audit_log(createdAt=never))
        erased = await ledger.delete_user("ann")
    assert (erased.users, erased.transactions, erased.audit_logs) == (1, 2, 2)
    lenient = database["users"].with_options(
        database.codec_options.with_options(datetime_conversion=DatetimeConversion.DATETIME_MS)
    )
    [left] = await lenient.find().to_list(None)
    assert left["licence"] == {"ends": never}
    assert "credits" not in left


async def test_text_that_is_not_utf_8_is_a_typed_error(
    ledger: CreditLedger, database: Database, ann: str
) -> None:
    """It matters in a tier or a row. Elsewhere in the user's document the ledger ignores it."""
    users = database["users"]
    await users.update_one({"_id": ann}, {"$set": not_utf_8("notes")})
    assert (await ledger.charge(ann, "translate")).balance_after == 97
    row = transaction(metadata=not_utf_8("note"))
    await database["transactions"].insert_one(row)
    with pytest.raises(StorageError, match="UTF-8"):
        await ledger.get_history(ann)
    await users.update_one({"_id": ann}, {"$set": not_utf_8("membershipTier")})
    for work in (ledger.get_user(ann), ledger.charge(ann, "translate")):
        with pytest.raises(StorageError, match="UTF-8"):
            await work
    assert (await ledger.delete_user(ann)).transactions == 3


def not_utf_8(field: str) -> RawBSONDocument:
    """Return a document with a string that a decoder refuses, as some software writes."""
    encoded = encode({field: "xx"})
    return RawBSONDocument(encoded.replace(b"xx", b"\xff\xfe"))


# --- Refunds and keys -----------------------------------------------------------------------------


async def test_a_charge_of_an_odd_amount_is_not_refunded(
    ledger: CreditLedger, database: Database, ann: str
) -> None:
    """A charge with an odd refund is not refunded either: what is left of it is unknown."""
    odd = [v for v in ODD_AMOUNTS if isinstance(v, int | float | Decimal128) and v is not True]
    for value in odd:
        row = transaction(amount=value)
        await database["transactions"].insert_one(dict(row))
        refund = ledger.refund(ann, 1, action="x", transaction_id=str(row["_id"]))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - looked at below
            await refund
        # To the server, a row with an amount above zero, or with none, is not a charge.
        assert caught.value.code in ("ACCOUNT_DATA", "TRANSACTION_NOT_FOUND"), repr(caught.value)  # type: ignore[attr-defined]
        if value == -13.5:
            assert caught.value.code == "ACCOUNT_DATA"  # type: ignore[attr-defined]
    charge = await ledger.charge(ann, "translate")
    charge_id = ObjectId(charge.transaction_id)
    for amount in ODD_AMOUNTS:
        row = transaction(operation="refund", refundOf=charge_id, amount=amount)
        await database["transactions"].insert_one(dict(row))
        with pytest.raises(AccountDataError) as error:
            await ledger.refund(ann, 1, action="x", transaction_id=charge.transaction_id)
        found = (error.value.user_id, error.value.field, error.value.row_id)
        assert found == (ann, "amount", charge.transaction_id), amount
        await database["transactions"].delete_one({"_id": row["_id"]})
    assert (
        await ledger.refund(ann, 3, action="x", transaction_id=charge.transaction_id)
    ).amount == 3


@pytest.mark.parametrize(
    "record",
    [
        {"fingerprint": "x", "operation": "charge", "result": {"cost": 5}},
        {"fingerprint": "x", "operation": "charge", "result": None},
        {"fingerprint": "x", "operation": "dance", "result": {}},
        {"fingerprint": "x", "expiresAt": DatetimeMS(NEVER)},
    ],
)
async def test_a_record_that_the_ledger_did_not_write_is_a_typed_error(
    ledger: CreditLedger, database: Database, ann: str, record: Row
) -> None:
    """The caller gets the error, nothing is charged, and no message names the key."""
    expires_at = NOW + timedelta(hours=1)
    row = {"_id": "the-key", "userId": ann, "expiresAt": expires_at, **record}
    await database["idempotency_records"].insert_one(row)
    with pytest.raises(AccountDataError) as caught:
        await ledger.charge(ann, "translate", idempotency_key="the-key")
    assert "the-key" not in str(caught.value)
    assert await ledger.get_balance(ann) == 100


# --- All users at once ----------------------------------------------------------------------------


async def test_reports_verifications_exports_and_archives_report_odd_rows(
    ledger: CreditLedger, database: Database, ann: str, tmp_path: Path
) -> None:
    """They continue, omit nothing silently, and change none of the rows."""
    await ledger.charge(ann, "translate")
    before = await usage_of(database, NOW - timedelta(days=1), NOW + timedelta(days=1))
    assert (before.left_out, before.totals.spent) == (0, 3)
    odd = [transaction(**{field: value}) for field, value in ODD_IN_TRANSACTIONS]
    odd_audits = [audit_log(**{field: value}) for field, value in ODD_IN_AUDIT_LOGS]
    await database["transactions"].insert_many([dict(row) for row in odd])
    await database["audit_logs"].insert_many([dict(row) for row in odd_audits])

    usage = await usage_of(database, NOW - timedelta(days=1), NOW + timedelta(days=1))
    # A list of dates counts in the reports of these dates.
    undated = sum(not isinstance(v, DatetimeMS | list) for v in ODD_MOMENTS)
    assert usage.left_out == len(ODD_AMOUNTS) + undated

    findings = (await verify(database)).findings
    told = {finding.transaction_id for finding in findings}
    unusable = [
        row["_id"]
        for row, (field, _) in zip(odd, ODD_IN_TRANSACTIONS, strict=True)
        if field in ("amount", "balanceBefore", "balanceAfter", "createdAt", "seq")
    ]
    assert told.issuperset(map(str, unusable))

    file = tmp_path / "all.jsonl"
    done = await export_transactions(database, file, format="jsonl")
    assert done.transactions == len(odd) + 2

    await archive(database, older_than=NOW + timedelta(milliseconds=1))
    kept = await count(database, "transactions") + await count(database, "transactions_archive")
    assert kept == len(odd) + 2

"""What settings change: names of collections, audit, keys and decimal places."""

from __future__ import annotations

import asyncio
from datetime import timedelta, timezone
from typing import Any

import pytest
from beanie import init_beanie
from bson import ObjectId

from credit_mongo import (
    CREDIT_DOCUMENTS,
    CollectionNames,
    CreditConfig,
    CreditLedger,
    InsufficientCreditsError,
    MembershipRequiredError,
    credit_documents,
)
from credit_mongo.config import SETTINGS_COLLECTION
from tests.integration.operations.accounts import LATER, prices
from tests.integration.promises import Database, check_promises, count

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")


async def test_collections_can_be_renamed(database: Database) -> None:
    """The ledger writes to the renamed collections and reads from them."""
    names = CollectionNames(
        users="app_users", transactions="t", audit_logs="a.logs", idempotency_records="keys"
    )
    async with CreditLedger(database, prices(collections=names)) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("u", credits=50, idempotency_key="k-1")
        charge = await ledger.charge("u", "post", idempotency_key="k-2")
        await ledger.refund("u", 1, action="post", transaction_id=charge.transaction_id)
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge("u", "post", amount=500)
        assert (await ledger.charge("u", "post", idempotency_key="k-2")).replayed
        assert len(await ledger.get_history("u")) == 3
        assert len(await ledger.get_audit_log("u")) == 4
    assert set(await database.list_collection_names()) <= {
        *names.model_dump().values(),
        SETTINGS_COLLECTION,
    }
    await check_promises(database, names)


@pytest.mark.drivers("pymongo")  # Beanie 2 accepts no other client.
async def test_beanie_documents_read_renamed_collections(database: Database) -> None:
    """The documents read what the ledger wrote to the renamed collections."""
    names = CollectionNames(
        users="app_users", transactions="t", audit_logs="a.logs", idempotency_records="keys"
    )
    async with CreditLedger(database, prices(collections=names)) as ledger:
        await ledger.create_user("u", credits=50, idempotency_key="k-1")
        await ledger.charge("u", "post", idempotency_key="k-2")
    models = credit_documents(names)
    account, transaction, audit_log, record, _hold = models
    await init_beanie(database=database, document_models=[*models], skip_indexes=True)
    assert [await model.find_all().count() for model in (account, transaction)] == [1, 2]
    assert [await model.find_all().count() for model in (audit_log, record)] == [2, 2]
    assert account.model_validate(await database["app_users"].find_one()).id == "u"


async def test_without_audit_only_the_books_are_kept(shared: Database, user: str) -> None:
    """Neither successes nor refusals are audited."""
    async with CreditLedger(shared, prices(audit={"enabled": False})) as ledger:
        await ledger.create_user(user, credits=10)
        await ledger.charge(user, "post")
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(user, "post")
        assert await ledger.get_balance(user) == 0
        assert len(await ledger.get_audit_log(user)) == 0
    assert await count(shared, "audit_logs", userId=user) == 0


async def test_without_idempotency_keys_are_ignored(shared: Database, user: str) -> None:
    """Two calls with one key are two charges, and no key is stored."""
    async with CreditLedger(shared, prices(idempotency={"enabled": False})) as ledger:
        await ledger.create_user(user, credits=50)
        results = await asyncio.gather(
            *[ledger.charge(user, "post", idempotency_key="same") for _ in range(3)]
        )
        assert not any(result.replayed for result in results)
        assert await ledger.get_balance(user) == 20
        assert {row.idempotency_key for row in await ledger.get_history(user)} == {None}
    assert await count(shared, "idempotency_records", userId=user) == 0


async def test_with_two_decimal_places_amounts_are_hundredths(
    database: Database, user: str
) -> None:
    """Prices, caps and formulas are in credits, all else is in units, and rounding happens once."""
    config = CreditConfig(
        costs={"a": {"default": 13.5}, "b": {"default": "{n} * 0.333"}, "c": {"default": 0.005}},
        membership={"tiers": {"basic": 0}, "credits_caps": {"basic": 20.25}},
        decimal_places=2,
    )
    async with CreditLedger(database, config) as ledger:
        await ledger.create_user(user, credits=2000)
        assert (await ledger.charge(user, "a")).balance_after == 650
        assert (await ledger.charge(user, "b", variables={"n": 5})).cost == 167
        assert (await ledger.charge(user, "c")).cost == 1
        assert (await ledger.charge(user, "a", amount=7)).cost == 7
        assert (await ledger.quote(user, "a")).cost == 1350
        assert (await ledger.upgrade_tier(user, "basic")).new_credits == 2025
        assert await ledger.get_balance(user) == 2025


@pytest.mark.drivers("pymongo")  # Beanie 2 accepts no other client.
async def test_beanie_documents_read_what_the_ledger_wrote(
    ledger: CreditLedger, database: Database
) -> None:
    """The application calls ``init_beanie`` once, and reads fields by snake_case names."""
    await ledger.create_user("u", credits=50, membership_tier="premium", metadata={"a": {"b": 1}})
    charge = await ledger.charge("u", "generate-post", idempotency_key="k")
    refund = await ledger.refund("u", 3, action="post", transaction_id=charge.transaction_id)
    await ledger.renew_tier("u", membership_expires_at=LATER, idempotency_key="k-2")
    with pytest.raises(MembershipRequiredError):
        await ledger.charge("u", "view-reports", amount=1)
    await init_beanie(database=database, document_models=[*CREDIT_DOCUMENTS], skip_indexes=True)
    models: tuple[Any, ...] = CREDIT_DOCUMENTS
    accounts, transactions, audit_logs, records, _holds = models

    account = await accounts.get("u")
    assert (account.credits, account.seq, account.membership_tier) == (2000, 4, "premium")
    assert account.membership_expires_at.replace(tzinfo=timezone.utc) == LATER
    found = await transactions.find(transactions.user_id == "u").sort("-seq").to_list()
    assert [row.operation for row in found] == ["renew_tier", "refund", "charge", "create_user"]
    assert (found[1].id, found[1].refund_of) == (
        ObjectId(refund.transaction_id),
        ObjectId(charge.transaction_id),
    )
    assert (found[2].amount, found[2].balance_before, found[2].balance_after) == (-8, 50, 42)
    assert found[2].idempotency_key == "k"
    assert found[3].metadata == {"a": {"b": 1}}
    [failed] = await audit_logs.find(audit_logs.status == "failed").to_list()
    assert failed.details == {"code": "MEMBERSHIP_REQUIRED"}
    assert failed.error_message
    assert await audit_logs.find(audit_logs.status == "success").count() == 4
    record = await records.get("k")
    assert (record.operation, record.user_id) == ("charge", "u")
    assert record.expires_at - record.created_at == timedelta(days=1)


@pytest.mark.drivers("pymongo")  # Beanie 2 accepts no other client.
async def test_beanie_documents_read_lots_legs_and_holds(
    ledger: CreditLedger, database: Database
) -> None:
    """What is stored in parts is read in parts."""
    await ledger.create_user("u", credits=50)
    await ledger.grant("u", 100, action="gift", expires_at=LATER, source="spring")
    hold = await ledger.place_hold("u", "generate-post", amount=60)
    captured = await ledger.capture_hold(hold.hold_id, amount=25, final=False)
    await init_beanie(database=database, document_models=[*CREDIT_DOCUMENTS], skip_indexes=True)
    models: tuple[Any, ...] = CREDIT_DOCUMENTS
    accounts, transactions, _audit_logs, _records, holds = models

    extras = (await accounts.get("u")).credit_extras
    [lot] = extras.lots
    assert (lot.amount, lot.source, extras.overdraft) == (75, "spring", 0)
    [pin] = extras.holds[0].pins
    assert (pin.lot, pin.amount) == (lot.id, 35)
    kept = await holds.get(hold.hold_id)
    assert (kept.status, kept.amount, kept.captured, kept.user_id) == ("active", 60, 25, "u")
    capture = await transactions.get(captured.transaction_id)
    assert (str(capture.hold_id), capture.amount) == (hold.hold_id, -25)
    assert [(leg.lot, leg.amount) for leg in capture.legs] == [(lot.id, -25)]

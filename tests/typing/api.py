"""Code as users write it, for the type checker alone: it never runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from mongomock_motor import AsyncMongoMockClient
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, ConnectionPoolListener
from typing_extensions import assert_type

from credit_mongo import (
    KEEP,
    AuditLog,
    CaptureResult,
    ChargeResult,
    CostsInput,
    CreditConfig,
    CreditLedger,
    GrantResult,
    HistoryPage,
    InsufficientCreditsError,
    MembershipConfig,
    MembershipInput,
    Observer,
    OpenHold,
    Quote,
    RefundResult,
    RetryConfig,
    TierChangeResult,
    Transaction,
    User,
)
from credit_mongo.observability import CommandLog, ConnectionWaits
from credit_mongo.observability.telemetry import Telemetry
from credit_mongo.testing import mock_ledger


async def operations(client: AsyncMongoClient[dict[str, Any]], when: datetime) -> None:
    """Every method, with the types of its arguments and its result."""
    config = CreditConfig(costs={"generate-post": {"default": 10, "premium": "{words} / 2"}})
    async with CreditLedger(client["app"], config) as ledger:
        assert_type(ledger, CreditLedger)
        assert_type(await ledger.create_user("u", credits=1, membership_expires_at=when), User)
        charge = await ledger.charge("u", "generate-post", variables={"a": 1, "b": Decimal(2)})
        assert_type(charge, ChargeResult)
        assert_type(charge.cost, int)
        refund = await ledger.refund("u", 1, action="x", transaction_id=charge.transaction_id)
        assert_type(refund, RefundResult)
        assert_type(await ledger.grant("u", 1, action="x", metadata={"a": [1]}), GrantResult)
        kept = await ledger.grant(
            "u", 1, action="x", idempotency_key="k", idempotency_ttl=3 * 24 * 3600
        )
        assert_type(kept, GrantResult)
        upgrade = await ledger.upgrade_tier("u", "premium", membership_expires_at=KEEP)
        assert_type(upgrade, TierChangeResult)
        assert_type(await ledger.renew_tier("u", membership_expires_at=None), TierChangeResult)
        async with ledger.hold("u", "x", amount=1, overage="debt") as hold:
            assert_type(hold, OpenHold)
            hold.use(variables={"a": Decimal(2)})
        assert_type(hold.result, CaptureResult | None)
        assert_type(await ledger.get_balance("u"), int)
        assert_type(await ledger.quote("u", "generate-post", variables={"a": 0.5}), Quote)
        page = await ledger.get_history("u")
        assert_type(page, HistoryPage)
        assert_type(page[0], Transaction)
        assert_type(page[:2], Sequence[Transaction])
        assert_type([log for log in await ledger.get_audit_log("u")], list[AuditLog])  # noqa: C416
        async with client.start_session() as session:
            assert_type(await ledger.charge("u", "x", amount=1, session=session), ChargeResult)


async def on_motor(client: AsyncIOMotorClient[dict[str, Any]], config: CreditConfig) -> None:
    """A Motor client and its session."""
    ledger = CreditLedger(client["app"], config)
    async with await client.start_session() as session, session.start_transaction():
        assert_type(await ledger.charge("u", "x", amount=1, session=session), ChargeResult)


async def observed(uri: str, config: CreditConfig) -> None:
    """What watches a ledger and its client."""
    log: CommandListener = CommandLog(slow_milliseconds=500)
    waits: ConnectionPoolListener = ConnectionWaits()
    observer: Observer = Telemetry(spans=True)
    ledger = CreditLedger.connect(
        uri,
        database="app",
        config=config,
        pool_profile="high-traffic",
        max_pool_size=100,
        event_listeners=[log, waits],
        observer=observer,
    )
    assert_type(ledger, CreditLedger)


async def in_memory(config: CreditConfig) -> None:
    """A ledger for unit tests, with the application's own mock or without."""
    client: AsyncMongoMockClient[dict[str, Any]] = AsyncMongoMockClient()
    assert_type(mock_ledger(config, database=client["app"]), CreditLedger)
    assert_type(mock_ledger(config), CreditLedger)


async def mistakes(ledger: CreditLedger) -> None:
    """What the type checker must refuse: it reports any ignore that is not needed."""
    await ledger.charge("u", "x", "key")  # type: ignore[call-arg, arg-type]
    await ledger.grant("u", 1.5, action="x")  # type: ignore[arg-type]
    await ledger.charge(7, "x")  # type: ignore[arg-type]
    error = InsufficientCreditsError("u", 2, 1)
    assert_type(error.required, int)


def configurations(prices: CostsInput, membership: MembershipInput, caps: dict[str, int]) -> None:
    """Parts as dicts with either spelling, and as objects. Credits as numbers of any type."""
    CreditConfig(
        costs={"post": {"default": 10, "pro": 0.5, "team": Decimal("0.25"), "free": "{n} * 2"}},
        membership={"tiers": {"pro": 1, "team": 2, "free": 0}, "creditsCaps": caps},
        retry={"maxAttempts": 3},
        idempotency={"ttl": 60},
        audit={"enabled": False},
        collections={"users": "people"},
        users={"idType": "objectId"},
        decimal_places=2,
    )
    whole = CreditConfig(
        costs=prices,
        membership=MembershipConfig(tiers={"pro": 1}, requirements={}, credits_caps={"pro": 2.5}),
        retry=RetryConfig(max_attempts=3),
        users=None,
        decimal_places=2,
    )
    assert_type(whole.decimal_places, int)
    CreditConfig(costs=prices, membership=membership)


def wrong_configurations(prices: CostsInput) -> None:
    """A misspelt key, a missing key, and a value of another type."""
    CreditConfig()  # type: ignore[call-arg]
    CreditConfig(costs={"post": 10})  # type: ignore[dict-item]
    CreditConfig(costs={"post": {"default": None}})  # type: ignore[dict-item]
    CreditConfig(costs=prices, membership={"tiers": {}, "caps": {}})  # type: ignore[arg-type]
    CreditConfig(costs=prices, price=10)  # type: ignore[call-arg]
    CreditConfig(costs=prices, retry={"maxAttempts": "3"})  # type: ignore[arg-type]
    MembershipConfig(credits_caps={"pro": 1})  # type: ignore[call-arg]

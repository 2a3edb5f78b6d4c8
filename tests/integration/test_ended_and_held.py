"""Reads of what has ended write nothing, and callers at once never spend what others hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import pytest

from credit_mongo import (
    CaptureResult,
    ChargeResult,
    CreditConfig,
    CreditLedger,
    InsufficientCreditsError,
)
from credit_mongo.testing.clocks import MovableClock
from tests.integration.promises import Database, check_promises, rows

pytestmark = pytest.mark.drivers("pymongo", "motor")

CONFIG = CreditConfig(costs={"post": {"default": 10}})


async def test_reads_show_what_has_ended_and_write_nothing(database: Database) -> None:
    """A lot and a hold have ended. Each read says so, and the next operation writes the rows."""
    clock = MovableClock()
    async with CreditLedger(database, CONFIG, clock=clock) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=100)
        end = clock() + timedelta(minutes=1)
        await ledger.grant("ann", 50, action="trial", expires_at=end)
        hold = await ledger.place_hold("ann", "job", amount=70, ttl=120)
        await ledger.extend_hold(hold.hold_id, used=65)
        before = {name: await rows(database, name) for name in ("users", "transactions", "holds")}

        clock.set(end - timedelta(milliseconds=1))
        assert [lot.amount for lot in (await ledger.get_user("ann")).lots] == [50]
        clock.advance(timedelta(days=1))
        ann = await ledger.get_user("ann")
        assert (ann.credits, ann.held, ann.lots) == (85, 0, ())
        assert await ledger.get_balance("ann") == 85
        assert (await ledger.quote("ann", "post")).balance == 85
        assert (await ledger.get_hold(hold.hold_id)).status == "expired"
        assert await ledger.get_holds("ann", status="active") == ()
        after = {name: await rows(database, name) for name in before}
        assert after == before

        await ledger.charge("ann", "post")
        charge, captured, *_ = await ledger.get_history("ann")
        assert (charge.amount, charge.balance_before) == (-10, 85)
        assert (captured.operation, captured.amount) == ("capture", -65)
        assert captured.created_at == hold.expires_at
        assert captured.written_at == charge.created_at


async def test_what_is_held_is_never_spent_by_others(database: Database) -> None:
    """Holds, captures and charges of one user at once: each hold gets what it has reserved."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ann", credits=1000)

        async def work() -> CaptureResult:
            hold = await ledger.place_hold("ann", "job", amount=60)
            await asyncio.sleep(0)
            return await ledger.capture_hold(hold.hold_id, amount=50)

        calls: list[Awaitable[Any]] = []
        for _ in range(20):
            calls += [work(), ledger.charge("ann", "job", amount=45)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        captured = [each for each in outcomes if isinstance(each, CaptureResult)]
        charged = [each for each in outcomes if isinstance(each, ChargeResult)]
        refused = [each for each in outcomes if isinstance(each, InsufficientCreditsError)]
        assert len(captured) + len(charged) + len(refused) == len(calls)
        assert captured
        assert charged
        assert refused
        assert all((each.cost, each.uncollected) == (50, 0) for each in captured)
        ann = await ledger.get_user("ann")
        assert ann.held == 0
        assert ann.credits == 1000 - 50 * len(captured) - 45 * len(charged) >= 0
    await check_promises(database)

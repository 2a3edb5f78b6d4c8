"""A ledger with a past."""

from __future__ import annotations

import pytest_asyncio

from credit_mongo import AuditConfig, CreditConfig, CreditLedger
from tests.integration.bad_input.methods import MADE, OTHER_USER, USER
from tests.integration.promises import Database


@pytest_asyncio.fixture
async def books(ledger: CreditLedger, database: Database, config: CreditConfig) -> CreditLedger:
    """A ledger with two users who have a tier, credits and a history, and one of them holds."""
    for user_id in (USER, OTHER_USER):
        await ledger.create_user(user_id, credits=1000, membership_tier="premium")
        for number in range(3):
            await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id}-{number}")
    MADE["grant"] = (await ledger.get_history(USER, limit=10))[-1].transaction_id
    # Without audit rows, which the tests of pages count.
    quiet = config.model_copy(update={"audit": AuditConfig(enabled=False)})
    async with CreditLedger(database, quiet) as aside:
        for name in ("hold", "other hold"):
            hold = await aside.place_hold(USER, "ai-completion", amount=20, ttl=3600)
            MADE[name] = hold.hold_id
        await aside.extend_hold(MADE["hold"], used=1)
    return ledger

"""A ledger with a past."""

from __future__ import annotations

import pytest_asyncio

from credit_mongo import CreditConfig, CreditLedger
from tests.integration.bad_input.methods import OTHER_USER, USER, make
from tests.integration.promises import Database


@pytest_asyncio.fixture
async def books(ledger: CreditLedger, database: Database, config: CreditConfig) -> CreditLedger:
    """A ledger with two users who have a tier, credits and a history, and one of them holds."""
    for user_id in (USER, OTHER_USER):
        await ledger.create_user(user_id, credits=1000, membership_tier="premium")
        for number in range(3):
            await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id}-{number}")
    await make(database, config)
    return ledger

"""A ledger with a past."""

from __future__ import annotations

import pytest_asyncio

from credit_mongo import (
    CreditLedger,
)
from tests.integration.bad_input.methods import OTHER_USER, USER


@pytest_asyncio.fixture
async def books(ledger: CreditLedger) -> CreditLedger:
    """A ledger with two users who have a tier, credits and a history."""
    for user_id in (USER, OTHER_USER):
        await ledger.create_user(user_id, credits=1000, membership_tier="premium")
        for number in range(3):
            await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id}-{number}")
    return ledger

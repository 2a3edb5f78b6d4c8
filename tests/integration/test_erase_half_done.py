"""An erasure that is running or has died: nobody finds anything of the former account.

Each test looks at one moment, after the erasure has taken some of its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from credit_mongo import (
    CreditLedger,
    Erasure,
    InsufficientCreditsError,
    TransactionNotFoundError,
    UserNotFoundError,
)
from credit_mongo.maintenance import erase
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.steps import Steps
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Database, check_promises, count, rows
from tests.integration.test_erase import archive_some, check_nothing_is_left

ADA: Final = "ada"
STEP: Final = 2
ARCHIVED: Final = 3
# After the first step, within each kind of rows, and near the end.
STEPS: Final = (1, 2, 4, 7, 9, 13)


class Halting(Steps):
    """Steps of an erasure that halts after some of them. Each step is a transaction."""

    left: int
    halted: asyncio.Event
    go_on: asyncio.Event

    async def take(self, step: Any) -> Any:
        if Halting.left == 0:
            Halting.halted.set()
            await Halting.go_on.wait()
        Halting.left -= 1
        return await super().take(step)


@asynccontextmanager
async def halted_after(steps: int, database: Database) -> AsyncIterator[asyncio.Task[Erasure]]:
    """Halt an erasure of ADA after some steps. It continues after the block."""
    Halting.left, Halting.halted, Halting.go_on = steps, asyncio.Event(), asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erase, "_TRANSACTIONS", STEP)
        patch.setattr(erase, "_BATCH", STEP)
        patch.setattr(erase, "Steps", Halting)
        erasing = asyncio.create_task(erase_user(database, ADA))
        await Halting.halted.wait()
        try:
            yield erasing
        finally:
            Halting.go_on.set()
            await asyncio.wait({erasing})


async def create_history(ledger: CreditLedger, user_id: str) -> list[str]:
    """Create a history that takes several steps for each kind of rows. Returns its charges' ids."""
    await ledger.create_user(user_id, credits=100, idempotency_key=f"{user_id} opens")
    charges = [
        await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id} {number}")
        for number in range(6)
    ]
    for number in range(STEP + 1):
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(user_id, "translate", amount=10**6)
        hold = await ledger.place_hold(user_id, "generate-post", amount=1)
        if number:
            await ledger.release_hold(hold.hold_id)
    return [charge.transaction_id for charge in charges]


@pytest.mark.parametrize("steps", STEPS)
async def test_from_the_first_step_on_the_user_does_not_exist(
    ledger: CreditLedger, database: Database, steps: int
) -> None:
    """Operations and reads find no such user, and its keys are free for all."""
    charges = await create_history(ledger, ADA)
    await archive_some(database, ADA, ARCHIVED)
    async with halted_after(steps, database) as erasing:
        await check_that_there_is_no_such_user(ledger, charges)
        assert (await verify(database)).findings == ()
        erasing.cancel()  # The erasure never continues, as if killed.
    erasure = await erase_user(database, ADA)
    assert erasure.transactions + erasure.archived_transactions == 7
    assert await count(database, "transactions") == 2
    await database["audit_logs"].delete_many({"userId": ADA})
    assert {row["userId"] for row in await rows(database, "transactions")} == {"bob"}
    await check_nothing_is_left(database, f"'{ADA}'")


async def check_that_there_is_no_such_user(ledger: CreditLedger, charges: list[str]) -> None:
    """Check that operations, reads and keys find no such user."""
    for again in (
        ledger.create_user("bob", credits=5, idempotency_key=f"{ADA} opens"),
        ledger.grant("bob", 1, action="gift", idempotency_key=f"{ADA} 3"),
    ):
        assert not (await again).replayed
    for refused in (
        ledger.charge(ADA, "generate-post", idempotency_key=f"{ADA} 5"),
        ledger.charge(ADA, "generate-post", idempotency_key=f"{ADA} 0"),
        ledger.refund(ADA, 1, action="oops", transaction_id=charges[0]),
        ledger.get_user(ADA),
        ledger.get_holds(ADA),
        ledger.get_history(ADA),
        ledger.get_history(ADA, include_archived=True, offset=1),
        ledger.quote(ADA, "generate-post"),
    ):
        with pytest.raises(UserNotFoundError):
            await refused
    # Later attempts are audited, as for any name.
    attempts = await ledger.get_audit_log(ADA, include_archived=True)
    assert [row.status for row in attempts] == ["failed"] * 3
    assert {row.details["code"] for row in attempts} == {"USER_NOT_FOUND"}


@pytest.mark.parametrize("steps", STEPS)
async def test_a_reopened_account_has_nothing_of_the_former_one(
    ledger: CreditLedger, database: Database, steps: int
) -> None:
    """It gets nothing of the old account, and keeps all its own when the erasure ends."""
    charges = await create_history(ledger, ADA)
    await archive_some(database, ADA, ARCHIVED)
    async with halted_after(steps, database) as erasing:
        user = await ledger.create_user(ADA, credits=50, idempotency_key=f"{ADA} opens")
        assert (user.credits, user.seq, user.replayed) == (50, 1, False)
        for charge_id in charges:
            with pytest.raises(TransactionNotFoundError):
                await ledger.refund(ADA, 1, action="oops", transaction_id=charge_id)
        key = f"{ADA} 0"
        charge = await ledger.charge(ADA, "generate-post", idempotency_key=key)
        assert not charge.replayed
        assert (await ledger.charge(ADA, "generate-post", idempotency_key=key)).replayed
        again = await ledger.charge(ADA, "generate-post", idempotency_key=f"{ADA} 5")
        assert not again.replayed
        given_back = await ledger.refund(
            ADA, 4, action="oops", transaction_id=charge.transaction_id
        )
        assert given_back.balance_after == 34
        for archived in (False, True):
            history = await ledger.get_history(ADA, include_archived=archived)
            assert [row.seq for row in history] == [4, 3, 2, 1]
            page = await ledger.get_history(ADA, include_archived=archived, offset=2, limit=1)
            assert [row.seq for row in page] == [2]
        audits = await ledger.get_audit_log(ADA, include_archived=True)
        assert len(audits) == 4 + len(charges)
        assert await ledger.get_holds(ADA) == ()
        assert (await verify(database)).findings == ()
        assert (await verify(database, user_ids=[ADA])).transactions == 4
    erasure = await erasing
    assert erasure.transactions + erasure.archived_transactions == 7
    assert await ledger.get_balance(ADA) == 34
    assert len(await ledger.get_history(ADA)) == 4
    assert len(await ledger.get_audit_log(ADA)) == len(audits)
    await check_promises(database)
    assert (await verify(database)).findings == ()

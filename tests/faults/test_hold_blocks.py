"""Every failure of every command of ``async with ledger.hold``: the block is paid once, or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import uuid4

import pytest_asyncio

from credit_mongo import CommitOutcomeUnknownError, CreditLedger, StorageError
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify
from tests.faults.checks import check_no_transaction_open, check_stored_rows
from tests.faults.cluster import Cluster
from tests.faults.commands import Command
from tests.faults.faults import FAULTS, Fault
from tests.faults.operations import prices
from tests.faults.settings import COUNTS, sample
from tests.faults.targets import Target, spread_over
from tests.integration.promises import Row, rows

HELD: Final = 20
USED: Final = 13
CREDITS: Final = 100
TARGETS: Final = 8
TRIES: Final = 3


@pytest_asyncio.fixture
async def targets(replica_set: LocalReplicaSet) -> AsyncIterator[list[Target]]:
    """Eight clients: the server has one fault at a time, and most of a case runs without it."""
    targets = [Target(replica_set.uri, 100 + number) for number in range(TARGETS)]
    yield targets
    await asyncio.gather(*(target.client.close() for target in targets))


class Blocks:
    """Blocks of new users, on the clients of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.one_fault = asyncio.Lock()
        self.violations: list[str] = []

    async def run(self, target: Target, case: tuple[Command, Fault] | None = None) -> bool:
        """Run a block, check what it left, and return whether it met the fault."""
        user = f"user-{uuid4().hex}"
        has_met = True
        database = target.client[self.cluster.database.name]
        async with CreditLedger(database, prices()) as ledger:
            await ledger.create_user(user, credits=CREDITS)
            if case is None:
                target.commands.start()
                outcome = await _block(ledger, user)
            else:
                has_met, outcome = await self._meet(target, ledger, user, case)
            # A beginning of unknown outcome is settled while the ledger closes.
        await self._check(user, outcome)
        return has_met

    async def _meet(
        self, target: Target, ledger: CreditLedger, user: str, case: tuple[Command, Fault]
    ) -> tuple[bool, object]:
        command, fault = case
        async with self.one_fault:
            target.commands.start()
            await self.cluster.primary.fail(
                command, target.app_name, self.cluster.database.name, fault.data
            )
            running = asyncio.create_task(_block(ledger, user))
            meeting = asyncio.create_task(
                target.commands.until(lambda: command in target.commands.failures)
            )
            await asyncio.wait({running, meeting}, return_when=asyncio.FIRST_COMPLETED)
            await self.cluster.primary.heal()
        has_met = meeting.done()
        meeting.cancel()
        outcome = await running
        if has_met and fault.passes:
            assert outcome == USED, f"the ledger did not retry: {outcome!r}"
        return has_met, outcome

    async def _check(self, user: str, outcome: object) -> None:
        """What the block was told is what was paid, and nothing is held any more."""
        database = self.cluster.database
        [account] = await rows(database, "users", _id=user)
        holds: list[Row] = await rows(database, "holds", userId=user)
        captures = await rows(database, "transactions", userId=user, operation="capture")
        states = [hold["status"] for hold in holds]
        if outcome == USED:
            assert states == ["captured"]
            assert [row["amount"] for row in captures] == [-USED]
        else:
            assert isinstance(outcome, StorageError | CommitOutcomeUnknownError), outcome
            assert (states, captures) in (([], []), (["released"], [])), outcome
        assert account["credits"] == CREDITS + sum(row["amount"] for row in captures)
        assert not account.get("creditExtras", {}).get("holds")

    async def try_case(self, target: Target, case: tuple[Command, Fault]) -> None:
        """Try a case, and keep any violation with the case's name."""
        try:
            for _ in range(TRIES):
                if await self.run(target, case):
                    break
            else:
                raise AssertionError("the fault was not met")  # noqa: TRY301
        except Exception as error:
            name = f"{case[0]}: {case[1].name}"
            self.violations.append(f"{name}\n    {type(error).__name__}: {error}")
        else:
            COUNTS["cases: hold block by command by failure"] += 1


async def _block(ledger: CreditLedger, user: str) -> Any:
    """What the block was charged, or how it failed."""
    try:
        async with ledger.hold(user, "post", amount=HELD) as hold:
            hold.use(amount=USED)
    except (StorageError, CommitOutcomeUnknownError) as error:
        return error
    assert hold.result is not None
    return hold.result.cost


async def test_a_block_is_paid_once_whatever_fails_on_its_way(
    targets: list[Target], cluster: Cluster
) -> None:
    """From the first command to the last. A block that did not begin is not paid at all."""
    blocks = Blocks(cluster)
    assert await blocks.run(targets[0])
    commands = targets[0].commands.sent
    assert {"holds", "users", "transactions"} <= {each.collection for each in commands}
    cases = [(command, fault) for command in commands for fault in FAULTS if fault.fits(command)]
    cases = sample(cases, "hold blocks", lambda case: (case[0], case[1].name))
    await spread_over(targets, cases, blocks.try_case)
    assert not blocks.violations, "\n".join(blocks.violations)
    await check_stored_rows(cluster.database)
    assert (await verify(cluster.database)).findings == ()
    await check_no_transaction_open(cluster.observers)

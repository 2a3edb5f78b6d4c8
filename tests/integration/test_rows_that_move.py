"""A commit with an unknown outcome whose rows move before the ledger looks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timezone
from typing import Any, Final

import pytest
import pytest_asyncio

from credit_mongo import CreditConfig, CreditLedger, RetryConfig
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Database, count, failing, with_options


async def _erase(ledger: CreditLedger, _database: Database, user_id: str) -> None:
    await ledger.delete_user(user_id)


async def _archive(_ledger: CreditLedger, database: Database, _user_id: str) -> None:
    await archive(database, older_than=datetime.now(timezone.utc))


Move = Callable[[CreditLedger, Database, str], Awaitable[None]]
MOVES: Final[dict[str, Move]] = {"the first user is erased": _erase, "all are archived": _archive}


def _users_of_one_lane(number: int) -> list[str]:
    """Return users whose requests share a batch: few callers share one lane."""
    return [f"user-{each}" for each in range(number)]


@pytest_asyncio.fixture
async def patient(
    replica_set_uri: str,
    config: CreditConfig,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[CreditLedger]:
    """A ledger that waits two seconds before it looks up a commit."""
    monkeypatch.setattr(RetryConfig, "delay_seconds", RetryConfig.longest_delay_seconds)
    retry = RetryConfig(initial_delay_ms=2000, max_delay_ms=2000)
    uri = with_options(replica_set_uri, appName="patient")
    async with CreditLedger.connect(
        uri, database=database.name, config=config.model_copy(update={"retry": retry})
    ) as ledger:
        yield ledger


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("key", [None, "key-of-"])
@pytest.mark.cases(2)
async def test_a_batch_that_was_applied_is_found(
    database: Database, ledger: CreditLedger, patient: CreditLedger, move: Move, key: str | None
) -> None:
    """Nobody is charged twice, although the server did not confirm the commit."""
    users = _users_of_one_lane(4)
    for user_id in users:
        await ledger.create_user(user_id, credits=100)
    applied: dict[str, Any] = {"writeConcernError": {"code": 100, "errmsg": "x"}}
    commit = ["commitTransaction"]
    async with failing(
        database.client, "patient", {"times": 1}, failCommands=commit, **applied
    ) as failure:
        charging = asyncio.gather(
            *(
                patient.charge(user_id, "generate-post", idempotency_key=key and key + user_id)
                for user_id in users
            )
        )
        while await count(database, "transactions", operation="charge") < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await move(ledger, database, users[0])
        results = await charging
    assert failure.hits == 1
    assert [result.balance_after for result in results] == [90] * 4
    assert [await ledger.get_balance(user_id) for user_id in users[1:]] == [90] * 3
    assert (await verify(database)).findings == ()

"""A commit whose outcome is unknown, and rows of it that go elsewhere before it is looked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any, Final

import pytest

from credit_mongo import CreditConfig, CreditLedger, RetryConfig
from credit_mongo.engine.lanes import LANES
from credit_mongo.maintenance.archive import archive
from credit_mongo.maintenance.verify import verify
from tests.integration.promises import Client, Database, count, failing


async def _erase(ledger: CreditLedger, _database: Database, user_id: str) -> None:
    await ledger.delete_user(user_id)


async def _archive(_ledger: CreditLedger, database: Database, _user_id: str) -> None:
    await archive(database, older_than=datetime.now(timezone.utc))


Move = Callable[[CreditLedger, Database, str], Awaitable[None]]
MOVES: Final[dict[str, Move]] = {"the first user is erased": _erase, "all are archived": _archive}


def _users_of_one_lane(number: int) -> list[str]:
    """Their requests share a batch."""
    users = (f"user-{number}" for number in itertools.count())
    return list(itertools.islice((u for u in users if hash(u) % LANES == 0), number))


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("key", [None, "key-of-"])
async def test_a_batch_that_was_applied_is_found(
    replica_set_uri: str,
    client: Client,
    config: CreditConfig,
    database: Database,
    move: Move,
    key: str | None,
) -> None:
    """And nobody is charged twice, though the server did not say that it had been applied."""
    patient = config.model_copy(
        update={"retry": RetryConfig(initial_delay_ms=2000, max_delay_ms=2000)}
    )
    users = _users_of_one_lane(4)
    first, *others = users
    async with (
        CreditLedger(database, config) as other,
        CreditLedger.connect(
            f"{replica_set_uri}&appName=patient", database=database.name, config=patient
        ) as ledger,
    ):
        await ledger.ensure_indexes()
        for user_id in users:
            await other.create_user(user_id, credits=100)
        applied: dict[str, Any] = {"writeConcernError": {"code": 100, "errmsg": "x"}}
        async with failing(
            client, "patient", {"times": 1}, failCommands=["commitTransaction"], **applied
        ) as failure:
            charging = asyncio.gather(
                *(
                    ledger.charge(user_id, "generate-post", idempotency_key=key and key + user_id)
                    for user_id in users
                )
            )
            while await count(database, "transactions", operation="charge") < len(users):
                await asyncio.sleep(0.01)
            await move(other, database, first)
            results = await charging
        assert failure.hits == 1
        assert [result.balance_after for result in results] == [90] * len(users)
        assert [await ledger.get_balance(user_id) for user_id in others] == [90] * len(others)
    assert (await verify(database)).findings == ()

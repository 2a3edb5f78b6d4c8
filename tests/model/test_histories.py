"""Generated histories: the ledger does what the model does.

``CREDIT_MONGO_HISTORIES`` is how many (80 unless told, 2,000 for a release), ``CREDIT_MONGO_SEED``
repeats a run: a failure prints its seed, and the calls that make it, as short as possible.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from pymongo import AsyncMongoClient

from tests.model.configurations import CONFIGURATIONS
from tests.model.machine import LedgerMachine, World

HISTORIES_UNLESS_TOLD = 80
HISTORIES = int(os.environ.get("CREDIT_MONGO_HISTORIES", HISTORIES_UNLESS_TOLD))
# By chance, one may not come to everything.
MOST_RUNS = 4
STEPS = 30
PLACES = {configuration.decimal_places for configuration in CONFIGURATIONS.values()}
SEED = int(os.environ.get("CREDIT_MONGO_SEED", secrets.randbelow(2**32)))
TO_BE_MET = {
    "create_user",
    "refund",
    "grant",
    "upgrade_tier",
    "downgrade_tier",
    "renew_tier",
    "User",
    "ChargeResult",
    "RefundResult",
    "GrantResult",
    "TierChangeResult",
    "IdempotencyConflictError",
    "InsufficientCreditsError",
    "InvalidRequestError",
    "InvalidTierChangeError",
    "MembershipRequiredError",
    "MissingVariableError",
    "RefundExceedsChargeError",
    "TransactionNotFoundError",
    "UndefinedActionError",
    "UndefinedTierError",
    "UserExistsError",
    "UserNotFoundError",
}


@pytest.fixture
def world(replica_set_uri: str) -> Iterator[World]:
    """Empty databases, on a loop that no test runs in."""
    loop = asyncio.new_event_loop()
    client = AsyncMongoClient[dict[str, Any]](replica_set_uri, tz_aware=True)
    names = {places: f"test_{uuid4().hex[:12]}" for places in PLACES}
    world = World(loop, client, {places: client[name] for places, name in names.items()})
    loop.run_until_complete(world.open())
    yield world
    for ledger in world.ledgers.values():
        loop.run_until_complete(ledger.close())
    for name in names.values():
        loop.run_until_complete(client.drop_database(name))
    loop.run_until_complete(client.close())
    loop.close()


def test_the_ledger_does_what_the_model_does(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same results, errors, balances, histories, audit logs, keys and pages, call by call."""

    class Histories(LedgerMachine):
        pass

    Histories.world = world
    # Before the run, for it is not said after one that fails.
    with capsys.disabled():
        print(f"\nCREDIT_MONGO_HISTORIES={HISTORIES} CREDIT_MONGO_SEED={SEED}")
    for number in range(MOST_RUNS):
        run_state_machine_as_test(
            seed(SEED + number)(Histories),
            settings=settings(
                max_examples=HISTORIES,
                stateful_step_count=STEPS,
                deadline=None,
                print_blob=True,
                report_multiple_bugs=False,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        with capsys.disabled():
            print(f"{world.histories} histories with {world.outcomes.total()} calls agree")
        if not_met(world) == set() or HISTORIES < HISTORIES_UNLESS_TOLD:
            break
    assert world.histories >= HISTORIES
    # Histories in which nothing happens would agree as well.
    assert not_met(world) == set() or HISTORIES < HISTORIES_UNLESS_TOLD


def not_met(world: World) -> set[str]:
    """What no call has come to."""
    return TO_BE_MET - {kind for outcome in world.outcomes for kind in outcome.split(": ")}

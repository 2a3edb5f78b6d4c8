"""Generated histories: the ledger does what the model does.

``CREDIT_MONGO_HISTORIES`` sets how many (default 80; 2,000 for a release). ``CREDIT_MONGO_SEED``
repeats a run. A failure prints its seed and the shortest list of calls that causes it.
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

from credit_mongo.storage import extras as stored_extras
from tests.model.configurations import CONFIGURATIONS
from tests.model.machine import LedgerMachine, World

DEFAULT_HISTORIES = 80
HISTORIES = int(os.environ.get("CREDIT_MONGO_HISTORIES", DEFAULT_HISTORIES))
# A single run may miss some outcomes by chance.
MOST_RUNS = 4
STEPS = 30
DECIMAL_PLACES = {configuration.decimal_places for configuration in CONFIGURATIONS.values()}
SEED = int(os.environ.get("CREDIT_MONGO_SEED", secrets.randbelow(2**32)))
EXPECTED_OUTCOMES = {
    "create_user",
    "refund",
    "grant",
    "upgrade_tier",
    "downgrade_tier",
    "renew_tier",
    "revoke",
    "set_overdraft",
    "place_hold",
    "extend_hold",
    "capture_hold",
    "release_hold",
    "Hold",
    "CaptureResult",
    "OverdraftResult",
    "RevokeResult",
    "HoldClosedError",
    "HoldExceededError",
    "HoldNotFoundError",
    "RevokeExceedsGrantError",
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
def world(replica_set_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Empty databases, on an event loop that no test runs in."""
    # Two lots are many here, so that charges read users in part.
    monkeypatch.setattr(stored_extras, "_MANY_LOTS", 1)
    monkeypatch.setattr(stored_extras, "_FIRST_LOTS", 1)
    loop = asyncio.new_event_loop()
    client = AsyncMongoClient[dict[str, Any]](replica_set_uri, tz_aware=True)
    names = {places: f"test_{uuid4().hex[:12]}" for places in DECIMAL_PLACES}
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
    """Results, errors, balances, histories, audit logs, keys and pages agree, call by call."""

    class Histories(LedgerMachine):
        pass

    Histories.world = world
    # Printed before the run, because a failing run prints nothing afterwards.
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
            missing = sorted(missing_outcomes(world)) or "none"
            calls = world.outcomes.total()
            print(
                f"{world.histories} histories with {calls} calls agree; outcomes missing: {missing}"
            )
        if missing_outcomes(world) == set() or HISTORIES < DEFAULT_HISTORIES:
            break
    assert world.histories >= HISTORIES
    # Histories in which nothing happens would agree, too.
    assert missing_outcomes(world) == set() or HISTORIES < DEFAULT_HISTORIES


def missing_outcomes(world: World) -> set[str]:
    """Return the results and errors that no call had."""
    return EXPECTED_OUTCOMES - {kind for outcome in world.outcomes for kind in outcome.split(": ")}

"""Concurrent calls, in one process or several, lose, double and overdraw nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

import credit_mongo
from credit_mongo import (
    ChargeResult,
    CreditConfig,
    CreditError,
    CreditLedger,
    GrantResult,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidTierChangeError,
    LedgerBusyError,
    RefundExceedsChargeError,
    RefundResult,
    StorageError,
    User,
    UserExistsError,
)
from credit_mongo.engine.lanes import ROOM
from credit_mongo.storage.round_trip import shortest_round_trip
from tests.integration.promises import (
    Client,
    Database,
    check_promises,
    check_that_no_transaction_stays_open,
    count,
    end_all_transactions,
    rows,
)

pytestmark = pytest.mark.drivers("pymongo", "motor")

CONFIG = """{
    "costs": {"post": {"default": 10, "premium": 8}, "free": {"default": 0},
              "tokens": {"default": "{token} * 0.5"}},
    "membership": {"tiers": {"basic": 0, "premium": 1},
                   "creditsCaps": {"basic": 100, "premium": 500}},
    "operationTimeoutSeconds": 20
}"""
IN_A_YEAR = datetime.now(timezone.utc) + timedelta(days=365)
USERS = [f"user-{number}" for number in range(5)]

Call: TypeAlias = tuple[str, list[Any], dict[str, Any]]
"""A method's name, its positional and its keyword arguments."""

# The worker says that it is ready and reads the calls of one caller from each line. For each call
# it answers with the change of the balance or the error's code.
WORKER = """
import asyncio, json, sys
from credit_mongo import CreditConfig, CreditError, CreditLedger

async def run(ledger, calls):
    outcomes = []
    for name, arguments, options in calls:
        try:
            result = await getattr(ledger, name)(*arguments, **options)
        except CreditError as error:
            outcomes.append(error.code)
        else:
            change = result.balance_after - result.balance_before
            outcomes.append([result.transaction_id, result.replayed, change])
    return outcomes

async def main(uri, database, config):
    config = CreditConfig.from_json(config)
    async with CreditLedger.connect(uri, database=database, config=config) as ledger:
        print("ready", flush=True)
        plan = json.loads(await asyncio.to_thread(sys.stdin.readline))
        outcomes = await asyncio.gather(*[run(ledger, calls) for calls in plan])
    print(json.dumps(sum(outcomes, [])), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def start_worker(uri: str, database: Database) -> Process:
    """Start a process with its own ledger, and wait until it is ready."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, uri, database.name, CONFIG),
        stdin=PIPE,
        stdout=PIPE,
        # A line can exceed the default limit of 64 KiB.
        limit=2**24,
        env={**os.environ, "PYTHONPATH": str(Path(credit_mongo.__file__).parents[1])},
    )
    assert worker.stdout is not None
    assert (await worker.stdout.readline()).strip() == b"ready"
    return worker


async def run_in_processes(
    uri: str, database: Database, plans: Iterable[Sequence[Sequence[Call]]]
) -> list[Any]:
    """Let all processes call at once, and return the outcomes."""
    plans = list(plans)
    workers = await asyncio.gather(*[start_worker(uri, database) for _ in plans])
    replies = await asyncio.gather(
        *[
            worker.communicate(json.dumps(plan).encode() + b"\n")
            for worker, plan in zip(workers, plans, strict=True)
        ]
    )
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return list(chain.from_iterable(json.loads(output) for output, _ in replies))


async def outcome_of(work: Awaitable[Any]) -> Any:
    """Return a call's result or its error, which must be one of the library's."""
    try:
        return await work
    except CreditError as error:
        return error


async def outcomes_of(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Return the outcomes of calls that run at once."""
    return await asyncio.gather(*[outcome_of(each) for each in work])


def kinds(outcomes: Iterable[Any]) -> dict[type[Any], int]:
    """Count the outcomes by type."""
    return dict(Counter(type(outcome) for outcome in outcomes))


@pytest.fixture(scope="module")
def config() -> CreditConfig:
    """The prices that the other processes have, too."""
    return CreditConfig.from_json(CONFIG)


@pytest_asyncio.fixture
async def other(database: Database, config: CreditConfig) -> AsyncIterator[CreditLedger]:
    """A second ledger on the same database, with its own lanes."""
    async with CreditLedger(database, config) as ledger:
        yield ledger


@pytest_asyncio.fixture(autouse=True)
async def no_open_transactions(client: Client) -> AsyncIterator[None]:
    """End all transactions, so that one test cannot fail for what another left open."""
    yield
    await end_all_transactions(client)


# Keys


async def test_fifty_charges_with_one_key_are_one_charge_and_fifty_equal_results(
    ledger: CreditLedger, database: Database
) -> None:
    """One key has one effect and one result, whichever of the fifty comes first."""
    await ledger.create_user("u", credits=100)

    results = await asyncio.gather(
        *[
            ledger.charge("u", "post", idempotency_key="k", metadata={"from": "all"})
            for _ in range(50)
        ]
    )

    assert all(result == results[0] for result in results)
    assert sorted(result.replayed for result in results) == [False] + [True] * 49
    assert results[0].balance_after == 90
    assert await count(database, "transactions", operation="charge") == 1
    assert await count(database, "audit_logs", operation="charge") == 1
    assert await count(database, "idempotency_records") == 1
    await check_promises(database)
    # Each caller gets a result object of its own.
    for number, result in enumerate(results):
        assert result.metadata == {"from": "all"}
        assert isinstance(result.metadata, dict)
        result.metadata["from"] = number


OTHER_REQUESTS: list[Call] = [
    ("charge", ["u", "free"], {}),
    ("charge", ["v", "post"], {}),
    ("charge", ["u", "post"], {"amount": 10}),
    ("charge", ["u", "post"], {"variables": {}}),
    ("refund", ["u", 10], {"action": "post"}),
    ("grant", ["u", 10], {"action": "post"}),
    ("upgrade_tier", ["u", "premium"], {}),
    ("create_user", ["w"], {}),
    ("charge", ["nobody", "post"], {}),
]


async def test_a_key_of_another_request_is_refused(
    ledger: CreditLedger, database: Database
) -> None:
    """Every field that decides the effect is bound to the key. The refusal is audited.

    Metadata decides nothing: the same request with other metadata is a repeat.
    """
    await asyncio.gather(*[ledger.create_user(name, credits=100) for name in "uv"])
    first = await ledger.charge("u", "post", idempotency_key="k", metadata={"a": 1})

    for name, arguments, options in OTHER_REQUESTS:
        with pytest.raises(IdempotencyConflictError) as caught:
            await getattr(ledger, name)(*arguments, **options, idempotency_key="k")
        assert caught.value.key == "k"
        assert "'k'" not in str(caught.value)

    assert await ledger.charge("u", "post", idempotency_key="k", metadata={"b": 2}) == first
    assert await count(database, "transactions") == 3
    refused = await database["audit_logs"].find({"status": "failed"}).sort("_id").to_list()
    assert [(row["operation"], row["userId"], row["details"]) for row in refused] == [
        (name, arguments[0], {"code": "IDEMPOTENCY_KEY_CONFLICT"})
        for name, arguments, _ in OTHER_REQUESTS
    ]
    await check_promises(database)


async def test_one_key_for_twenty_users_at_once_has_one_effect(
    ledger: CreditLedger, other: CreditLedger, database: Database
) -> None:
    """Keys are global: requests for other users are refused, whatever their lane or ledger."""
    names = [f"user-{number}" for number in range(20)]
    await asyncio.gather(*[ledger.create_user(name, credits=100) for name in names])

    outcomes = await outcomes_of(
        (ledger, other)[number % 2].charge(name, "post", idempotency_key="k")
        for number, name in enumerate(names)
    )

    assert kinds(outcomes) == {ChargeResult: 1, IdempotencyConflictError: 19}
    assert await count(database, "transactions", operation="charge") == 1
    assert await count(database, "audit_logs", status="failed") == 19
    await check_promises(database)


async def test_a_refused_request_leaves_its_key_free_for_any_other(
    ledger: CreditLedger, database: Database
) -> None:
    """Only successes are remembered, even if one batch decides both requests."""
    await ledger.create_user("u", credits=5)

    outcomes = await outcomes_of(
        [
            ledger.charge("u", "post", idempotency_key="k"),
            ledger.charge("u", "post", amount=5, idempotency_key="k"),
        ]
    )

    assert kinds(outcomes) == {InsufficientCreditsError: 1, ChargeResult: 1}
    assert await ledger.get_balance("u") == 0
    await check_promises(database)


async def test_the_same_keys_from_two_processes_have_one_effect_and_one_result_each(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """Two processes use each of sixty keys twice, each in its own order."""
    await asyncio.gather(*[ledger.create_user(name, credits=1000) for name in USERS])
    keys = [f"key-{number}" for number in range(60)]
    rng = random.Random(3)
    plans = []
    for _ in range(2):
        asked = rng.sample(keys * 2, len(keys) * 2)
        calls: list[Call] = [
            ("charge", [USERS[hash_of(key)], "post"], {"idempotency_key": key}) for key in asked
        ]
        plans.append([calls[number::20] for number in range(20)])

    outcomes = await run_in_processes(replica_set_uri, database, plans)

    assert len(outcomes) == 240
    assert all(isinstance(outcome, list) for outcome in outcomes), Counter(map(str, outcomes))
    assert Counter(replayed for _, replayed, _ in outcomes) == {False: 60, True: 180}
    assert len({transaction_id for transaction_id, _, _ in outcomes}) == 60
    assert await count(database, "transactions", operation="charge") == 60
    await check_promises(database)


def hash_of(key: str) -> int:
    """Return the user of a key, the same in all processes."""
    return int(key.split("-")[1]) % len(USERS)


# Balances


async def test_two_hundred_charges_on_a_balance_of_a_hundred_leave_zero(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """Two processes charge: ten calls succeed, the rest are refused, and all are audited."""
    await ledger.create_user("u", credits=100)
    call: Call = ("charge", ["u", "post"], {})

    outcomes = await run_in_processes(replica_set_uri, database, [[[call]] * 100] * 2)

    told = Counter("ok" if isinstance(o, list) else o for o in outcomes)
    assert told == {"ok": 10, "INSUFFICIENT_CREDITS": 190}
    assert await ledger.get_balance("u") == 0
    assert await count(database, "audit_logs", operation="charge", status="success") == 10
    assert await count(database, "audit_logs", operation="charge", status="failed") == 190
    postings = sorted(await rows(database, "transactions"), key=lambda row: int(row["seq"]))
    assert [(r["seq"], r["balanceBefore"], r["balanceAfter"]) for r in postings] == [
        (1, 0, 100),
        *[(n + 2, 100 - 10 * n, 90 - 10 * n) for n in range(10)],
    ]
    await check_promises(database)


async def test_two_processes_on_the_same_users_lose_nothing(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """The results of forty callers add up to what is stored, user by user."""
    await asyncio.gather(*[ledger.create_user(name, credits=50) for name in USERS])
    rng = random.Random(5)

    def some_call() -> Call:
        if rng.random() < 0.4:
            return ("grant", [rng.choice(USERS), rng.randint(1, 20)], {"action": "gift"})
        key = f"key-{rng.randrange(10**9)}" if rng.random() < 0.3 else None
        return ("charge", [rng.choice(USERS), "post"], {"idempotency_key": key})

    plans = [[[some_call() for _ in range(8)] for _ in range(20)] for _ in range(2)]
    outcomes = await run_in_processes(replica_set_uri, database, plans)

    done = [outcome for outcome in outcomes if isinstance(outcome, list)]
    refused = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    assert refused.keys() <= {"INSUFFICIENT_CREDITS"}
    assert len(done) + refused.total() == 320
    stored = {
        str(r["_id"]): int(r["amount"])
        for r in await rows(database, "transactions", seq={"$gt": 1})
    }
    assert {transaction_id: change for transaction_id, _, change in done} == stored
    assert await count(database, "audit_logs", status="failed") == refused.total()
    await check_promises(database)


async def test_concurrent_refunds_of_one_charge_never_exceed_it(
    ledger: CreditLedger, other: CreditLedger, database: Database
) -> None:
    """Of forty refunds of 9 on a charge of 100, eleven succeed."""
    await ledger.create_user("u", credits=100)
    charge = await ledger.charge("u", "post", amount=100)

    outcomes = await outcomes_of(
        who.refund("u", 9, action="post", transaction_id=charge.transaction_id)
        for who in (ledger, other) * 20
    )

    assert kinds(outcomes) == {RefundResult: 11, RefundExceedsChargeError: 29}
    assert await ledger.get_balance("u") == 99
    refused = [o for o in outcomes if isinstance(o, RefundExceedsChargeError)]
    assert {(o.refundable, o.requested) for o in refused} == {(1, 9)}
    await check_promises(database)


async def test_a_user_created_by_forty_callers_at_once_is_created_once(
    ledger: CreditLedger, other: CreditLedger, database: Database
) -> None:
    """One call gets the user. The others hear that it exists."""
    outcomes = await outcomes_of(who.create_user("u", credits=7) for who in (ledger, other) * 20)

    assert kinds(outcomes) == {User: 1, UserExistsError: 39}
    assert await count(database, "audit_logs", status="failed") == 39
    await check_promises(database)


class Player:
    """A task that makes random calls for random users, and refunds what it charged."""

    def __init__(self, seed: int, ledger: CreditLedger) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger
        self.charges: list[ChargeResult] = []
        self.succeeded: list[Any] = []
        self.refused: list[CreditError] = []

    async def play(self, moves: int) -> None:
        for _ in range(moves):
            try:
                result = await self.move()
            except CreditError as error:
                self.refused.append(error)
            else:
                self.succeeded.append(result)
                if isinstance(result, ChargeResult) and result.cost:
                    self.charges.append(result)

    async def move(self) -> Any:
        moves = {
            self.charge: 40,
            self.charge_by_formula: 10,
            self.refund: 25 if self.charges else 0,
            self.grant: 15,
            self.change_tier: 10,
        }
        [move] = self.rng.choices(list(moves), list(moves.values()))
        key = f"key-{self.rng.randrange(10**12)}" if self.rng.random() < 0.5 else None
        return await move(self.rng.choice(USERS), key)

    def charge(self, user_id: str, key: str | None) -> Awaitable[Any]:
        action = self.rng.choice(["post", "free"])
        return self.ledger.charge(user_id, action, idempotency_key=key)

    def charge_by_formula(self, user_id: str, key: str | None) -> Awaitable[Any]:
        variables = {"token": self.rng.randint(1, 99)}
        return self.ledger.charge(user_id, "tokens", variables=variables, idempotency_key=key)

    def refund(self, _: str, key: str | None) -> Awaitable[Any]:
        charge = self.rng.choice(self.charges)
        return self.ledger.refund(
            charge.user_id,
            self.rng.randint(1, charge.cost),
            action="post",
            transaction_id=charge.transaction_id,
            idempotency_key=key,
        )

    def grant(self, user_id: str, key: str | None) -> Awaitable[Any]:
        amount = self.rng.randint(1, 30)
        return self.ledger.grant(user_id, amount, action="gift", idempotency_key=key)

    def change_tier(self, user_id: str, key: str | None) -> Awaitable[Any]:
        what = self.rng.randrange(3)
        if what == 0:
            return self.ledger.upgrade_tier(user_id, "premium", idempotency_key=key)
        if what == 1:
            return self.ledger.downgrade_tier(user_id, "basic", idempotency_key=key)
        return self.ledger.renew_tier(user_id, membership_expires_at=IN_A_YEAR, idempotency_key=key)


async def test_random_concurrent_calls_keep_every_promise(
    ledger: CreditLedger, other: CreditLedger, database: Database
) -> None:
    """Sixty-four tasks, five users, two ledgers: every answer is true, and the books balance."""
    await asyncio.gather(*[ledger.create_user(name, credits=60) for name in USERS])
    players = [Player(seed, (ledger, other)[seed % 4 == 0]) for seed in range(64)]

    await asyncio.gather(*[player.play(12) for player in players])

    refused = [error for player in players for error in player.refused]
    assert kinds(refused).keys() <= {
        InsufficientCreditsError,
        RefundExceedsChargeError,
        InvalidTierChangeError,
    }, kinds(refused)
    succeeded = [result for player in players for result in player.succeeded]
    assert len(succeeded) + len(refused) == 64 * 12
    stored = {str(row["_id"]) for row in await rows(database, "transactions", seq={"$gt": 1})}
    assert {result.transaction_id for result in succeeded} == stored
    assert await count(database, "audit_logs", status="failed") == len(refused)
    assert await count(database, "transactions", refundOf={"$exists": True}) > 20
    await check_promises(database)


# Cancelled callers


class Impatient:
    """Callers that charge, each call with a key, and are cancelled at random moments."""

    def __init__(self, seed: int, ledger: CreditLedger) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger

    async def _ask(self, key: str) -> ChargeResult:
        await asyncio.sleep(self.rng.uniform(0, 0.2))
        return await self.ledger.charge(self.rng.choice(USERS), "post", idempotency_key=key)

    async def stay(self, key: str) -> ChargeResult | None:
        return await self._ask(key)

    async def run_out_of_time(self, key: str) -> ChargeResult | None:
        try:
            return await asyncio.wait_for(self._ask(key), self.rng.uniform(0, 0.25))
        except asyncio.TimeoutError:
            return None

    async def be_cancelled(self, key: str, times: int = 1) -> ChargeResult | None:
        task = asyncio.ensure_future(self._ask(key))
        await asyncio.sleep(self.rng.uniform(0, 0.25))
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(self.rng.choice([0, 0, 0.001, 0.01]))
        [result] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, ChargeResult | asyncio.CancelledError), repr(result)
        return result if isinstance(result, ChargeResult) else None

    async def be_cancelled_twice(self, key: str) -> ChargeResult | None:
        return await self.be_cancelled(key, times=2)


async def test_cancelled_callers_leave_nothing_open_and_disturb_no_others(
    ledger: CreditLedger, database: Database, client: Client
) -> None:
    """Callers cancelled once or twice, or out of time, settle their calls by repeating the key.

    All other callers get their results as if nobody had left.
    """
    await asyncio.gather(*[ledger.create_user(name, credits=10**6) for name in USERS])
    callers = Impatient(11, ledger)
    ways = [
        callers.stay,
        callers.run_out_of_time,
        callers.be_cancelled,
        callers.be_cancelled_twice,
    ]

    results = await asyncio.gather(*[ways[n % 4](f"key-{n}") for n in range(200)])

    assert all(results[::4]), "a caller who stayed has no result"
    assert not all(results), "nobody left early enough"
    await check_that_no_transaction_stays_open(client)
    stored = {row["idempotencyKey"]: row for row in await rows(database, "transactions")}
    told = {f"key-{n}": result for n, result in enumerate(results) if result is not None}
    assert told.keys() <= stored.keys()
    for key, row in stored.items():
        if key is not None:
            again = await ledger.charge(row["userId"], "post", idempotency_key=key)
            assert again.replayed
            assert again.transaction_id == str(row["_id"])
            assert told.get(key, again) == again
    await check_promises(database)


async def test_the_last_caller_of_a_batch_gets_its_result_when_all_others_are_cancelled(
    ledger: CreditLedger, database: Database, client: Client
) -> None:
    """All callers of a batch but one are cancelled, including the one whose task runs the batch."""
    await ledger.create_user("u", credits=1000)
    tasks = [
        asyncio.ensure_future(ledger.charge("u", "post", idempotency_key=f"key-{number}"))
        for number in range(20)
    ]
    await asyncio.sleep(0.001)
    for task in tasks[:-1]:
        task.cancel()
        task.cancel()

    assert (await tasks[-1]).cost == 10
    await asyncio.gather(*tasks, return_exceptions=True)
    await check_that_no_transaction_stays_open(client)
    await check_promises(database)


# Closing


async def test_closing_finishes_what_was_accepted_and_accepts_no_more(
    database: Database, config: CreditConfig, replica_set_uri: str, client: Client
) -> None:
    """A hundred accepted charges get their results. Then every operation is refused at once."""
    ledger = CreditLedger.connect(replica_set_uri, database=database.name, config=config)
    await asyncio.gather(*[ledger.create_user(name, credits=1000) for name in USERS])
    charges = [
        asyncio.ensure_future(ledger.charge(USERS[number % 5], "post")) for number in range(100)
    ]
    await asyncio.sleep(0)

    await asyncio.gather(ledger.close(), ledger.close())

    assert all(charge.done() for charge in charges)
    assert kinds(charge.result() for charge in charges) == {ChargeResult: 100}
    late = await outcomes_of(
        [
            ledger.charge("user-0", "post"),
            ledger.grant("user-0", 1, action="gift"),
            ledger.refund("user-0", 1, action="post"),
            ledger.upgrade_tier("user-0", "premium"),
            ledger.create_user("new"),
        ]
    )
    assert kinds(late) == {LedgerBusyError: 5}
    await ledger.close()
    assert await count(database, "transactions") == 105
    await check_that_no_transaction_stays_open(client)
    await check_promises(database)


async def test_an_applications_client_stays_open_after_its_ledger_is_closed(
    database: Database, config: CreditConfig
) -> None:
    """The ledger closes only what it opened."""
    async with CreditLedger(database, config) as ledger:
        await ledger.create_user("u", credits=1)
    assert await count(database, "users") == 1
    assert kinds([await outcome_of(ledger.charge("u", "post"))]) == {LedgerBusyError: 1}


# Callers that wait for room


@pytest.mark.drivers("pymongo")
async def test_25000_grants_in_one_gather_all_succeed(
    database: Database, config: CreditConfig
) -> None:
    """That is more than can wait in the queue: ``on_busy="wait"`` lets the others wait for room."""
    waiting = config.model_copy(update={"on_busy": "wait"})
    async with CreditLedger(database, waiting) as ledger:
        await asyncio.gather(*[ledger.create_user(name) for name in USERS])
        results = await asyncio.gather(
            *[ledger.grant(USERS[number % 5], 1, action="gift") for number in range(25_000)]
        )
        assert len({result.transaction_id for result in results}) == 25_000
        assert [await ledger.get_balance(name) for name in USERS] == [5000] * 5
    await check_promises(database)


@pytest.mark.drivers("pymongo")
async def test_callers_that_wait_for_room_can_be_cancelled_and_the_ledger_closed(
    database: Database, config: CreditConfig, client: Client
) -> None:
    """What had room is finished. What waited for it is refused, or cancelled, and not written."""
    waiting = config.model_copy(update={"on_busy": "wait"})
    ledger = CreditLedger(database, waiting)
    await ledger.create_user("u")
    grants = [
        asyncio.ensure_future(ledger.grant("u", 1, action="gift")) for _ in range(ROOM + 1000)
    ]
    await asyncio.sleep(0)
    cancelled = grants[-100:]
    for grant in cancelled:
        grant.cancel()
    await ledger.close()
    outcomes = await outcomes_of(grants[:-100])
    assert kinds(outcomes) == {GrantResult: ROOM, LedgerBusyError: 900}
    assert all(isinstance(outcome, GrantResult) for outcome in outcomes[:ROOM])
    assert {grant.cancelled() for grant in cancelled} == {True}
    assert await count(database, "transactions") == 1 + ROOM  # the first opened the account
    await check_that_no_transaction_stays_open(client)
    await check_promises(database)


# Lanes


@pytest.mark.drivers("pymongo")
async def test_the_ledger_knows_how_far_the_primary_is(replica_set_uri: str) -> None:
    """The driver measures it. Before it has, the server counts as near."""
    async with AsyncMongoClient[Any](replica_set_uri, heartbeatFrequencyMS=500) as client:
        assert shortest_round_trip(client) == 0.0
        await client.admin.command("ping")
        while not (seconds := shortest_round_trip(client)):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.05)
        assert 0 < seconds < 1


# Several ledgers


async def test_two_ledgers_on_one_database_share_everything(
    ledger: CreditLedger, other: CreditLedger, database: Database
) -> None:
    """Keys, balances and history written by one ledger are those of the other."""
    await ledger.create_user("u", credits=1000)
    results = await asyncio.gather(
        *[
            who.charge("u", "post", idempotency_key=f"key-{number % 25}")
            for who in (ledger, other)
            for number in range(50)
        ]
    )

    assert len({result.transaction_id for result in results}) == 25
    assert await ledger.get_balance("u") == await other.get_balance("u") == 750
    assert list(await ledger.get_history("u")) == list(await other.get_history("u"))
    await check_promises(database)


@asynccontextmanager
async def another_database(client: Client) -> AsyncIterator[Database]:
    """A second database, dropped after the test."""
    database = client[f"test_{uuid4().hex[:12]}"]
    yield database
    await client.drop_database(database.name)


async def test_two_ledgers_on_two_databases_share_nothing(
    ledger: CreditLedger, database: Database, client: Client
) -> None:
    """The same users, keys and actions run at once at other prices, and each has its own books."""
    dearer = CreditConfig(costs={"post": {"default": 70}})
    async with another_database(client) as second, CreditLedger(second, dearer) as stranger:
        await stranger.ensure_indexes()
        both = (ledger, stranger)
        await asyncio.gather(*[who.create_user("u", credits=1000) for who in both])
        results = await asyncio.gather(
            *[
                who.charge("u", "post", idempotency_key=f"key-{n}")
                for n in range(10)
                for who in both
            ]
        )

        assert not any(result.replayed for result in results)
        assert [await who.get_balance("u") for who in both] == [900, 300]
        assert {row.amount for row in await ledger.get_history("u", action="post")} == {-10}
        assert {row.amount for row in await stranger.get_history("u", action="post")} == {-70}
        for books in (database, second):
            assert await count(books, "transactions") == 11
            assert await count(books, "idempotency_records") == 10
            await check_promises(books)


# An application that locks a user


async def test_a_user_locked_by_an_application_delays_no_other_user(
    ledger: CreditLedger, database: Database, client: Client, config: CreditConfig
) -> None:
    """The user's own charges end by their deadline. Others in the same batches end long before.

    When the application ends its transaction, the user can be charged again.
    """
    hasty = CreditLedger(database, config.model_copy(update={"operation_timeout_seconds": 4.0}))
    names = [f"user-{number}" for number in range(16)]
    await asyncio.gather(*[ledger.create_user(name, credits=1000) for name in ("held", *names)])
    others: list[float] = []

    async def charge_another(name: str) -> None:
        for _ in range(5):
            began = time.monotonic()
            await hasty.charge(name, "post")
            others.append(time.monotonic() - began)

    async def charge_held() -> tuple[Any, float]:
        began = time.monotonic()
        outcome = await outcome_of(hasty.charge("held", "post"))
        return outcome, time.monotonic() - began

    async with hasty, client.start_session() as session:
        await session.start_transaction()
        await database["users"].update_one(
            {"_id": "held"}, {"$set": {"nickname": "x"}}, session=session
        )
        held = [asyncio.ensure_future(charge_held()) for _ in range(5)]
        await asyncio.gather(*[charge_another(name) for name in names])
        assert not any(task.done() for task in held), "who is held gave up early"
        for outcome, seconds in await asyncio.gather(*held):
            assert isinstance(outcome, StorageError), repr(outcome)
            assert seconds < 5
        # The batch with the locked user is split. That takes some attempts, but no deadline passes.
        assert max(others) < 2.0
        await session.abort_transaction()
        assert (await hasty.charge("held", "post")).balance_after == 990

    assert len(others) == 80
    await check_that_no_transaction_stays_open(client)
    await check_promises(database)

"""Whatever the database answers, or fails to answer: one effect, and a timely answer to the caller.

The failures come from ``failCommand`` on a real server, and from a frozen server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from credit_mongo import (
    AccountDataError,
    AuditConfig,
    ChargeResult,
    CommitOutcomeUnknownError,
    CreditConfig,
    CreditError,
    CreditLedger,
    InsufficientCreditsError,
    RetryConfig,
    StorageError,
    TierChangeResult,
    User,
)
from credit_mongo.local import LocalReplicaSet
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    check_that_no_transaction_stays_open,
    count,
    end_all_transactions,
    failing,
    rows,
    with_options,
)

APP_NAME = "outcomes"
_T = TypeVar("_T")
ONCE = {"times": 1}
# How long after its deadline a call may end on a busy machine.
GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Fault:
    """What the server does to one command. ``write`` stands for the batch's first write."""

    name: str
    command: str
    data: Row
    is_retried: bool = True


def _error(code: int, *labels: str) -> Row:
    return {"errorCode": code, **({"errorLabels": list(labels)} if labels else {})}


def _applied_with(code: int, *labels: str, **facts: Any) -> Row:
    """Apply the command, but report in its reply that the write is not durable."""
    concern = {"code": code, "errmsg": "x", **facts}
    return {"writeConcernError": concern, **({"errorLabels": list(labels)} if labels else {})}


COMMIT = "commitTransaction"
FAULTS = [
    Fault("a write conflict", "write", _error(112)),
    Fault("a lock that was not granted", "write", _error(24)),
    Fault("an exceeded time limit of the network", "write", _error(262)),
    Fault("a write on a former primary", "write", _error(10107)),
    Fault("a connection lost in a write", "write", {"closeConnection": True}),
    Fault("a connection lost in the first read", "find", {"closeConnection": True}),
    Fault("a transaction that is gone", COMMIT, _error(251, "TransientTransactionError")),
    Fault("a connection lost in the commit", COMMIT, {"closeConnection": True}),
    Fault("a commit on a former primary", COMMIT, _error(10107)),
    Fault("a commit interrupted by a step down", COMMIT, _error(11602, "RetryableWriteError")),
    Fault("applied while shutting down", COMMIT, _applied_with(91, "RetryableWriteError")),
    Fault(
        "applied without a majority in time",
        COMMIT,
        _applied_with(64, codeName="WriteConcernFailed", errInfo={"wtimeout": True}),
    ),
    Fault("applied with an unsatisfiable concern", COMMIT, _applied_with(100)),
    Fault("a commit that ran out of time", COMMIT, _error(50)),
    Fault("applied and out of time", COMMIT, _applied_with(50, codeName="MaxTimeMSExpired")),
    Fault("a write that ran out of time", "write", _error(50), is_retried=False),
    Fault("a write without the right to it", "write", _error(13), is_retried=False),
    Fault("a write of a transaction too old", "write", _error(225), is_retried=False),
]


@dataclass(frozen=True)
class Operation:
    """A call on a user, and the effect that it must have."""

    name: str
    key: str | None
    first_write: str
    call: Callable[[CreditLedger, str, str | None], Awaitable[Any]]
    succeeds_with: type[Any]
    transactions: int = 1
    refusals: int = 0
    exists_before: bool = True


OPERATIONS = [
    Operation(
        "a charge with a key",
        "key",
        "update",
        lambda ledger, user_id, key: ledger.charge(user_id, "generate-post", idempotency_key=key),
        ChargeResult,
    ),
    Operation(
        "a charge without a key",
        None,
        "update",
        lambda ledger, user_id, _: ledger.charge(user_id, "generate-post"),
        ChargeResult,
    ),
    Operation(
        "a refused charge",
        "key",
        "insert",
        lambda ledger, user_id, key: ledger.charge(
            user_id, "generate-post", amount=1000, idempotency_key=key
        ),
        InsufficientCreditsError,
        transactions=0,
        refusals=1,
    ),
    Operation(
        "a new user",
        "key",
        "insert",
        lambda ledger, user_id, key: ledger.create_user(user_id, credits=5, idempotency_key=key),
        User,
        exists_before=False,
    ),
    Operation(
        "an upgrade",
        "key",
        "update",
        lambda ledger, user_id, key: ledger.upgrade_tier(user_id, "premium", idempotency_key=key),
        TierChangeResult,
    ),
]


def prices(**options: Any) -> CreditConfig:
    """Return these tests' prices, with other settings."""
    return CreditConfig(
        costs={"generate-post": {"default": 10}},
        membership={"tiers": {"premium": 1}, "credits_caps": {"premium": 2000}},
        **options,
    )


async def outcome_of(work: Awaitable[Any]) -> Any:
    """Return a call's result or its error, which must be one of the library's."""
    try:
        return await work
    except CreditError as error:
        return error


def some_user() -> str:
    """Return a user id that no other test has."""
    return f"user-{uuid4().hex[:12]}"


@pytest_asyncio.fixture(autouse=True)
async def no_open_transactions(client: Client) -> AsyncIterator[None]:
    """End all transactions, so that one test cannot fail for what another left open."""
    yield
    await end_all_transactions(client)


@pytest_asyncio.fixture(scope="module")
async def shared(client: Client) -> AsyncIterator[Database]:
    """One database for the tests of this file. Each test has its own user."""
    database = client[f"test_{uuid4().hex[:12]}"]
    yield database
    await client.drop_database(database.name)


@pytest.fixture(scope="module")
def uri(replica_set_uri: str) -> str:
    """A URI whose clients this file's fail points hit, and which soon notice a recovered server."""
    return with_options(replica_set_uri, appName=APP_NAME, heartbeatFrequencyMS=500)


@pytest_asyncio.fixture(scope="module")
async def patient(uri: str, shared: Database) -> AsyncIterator[CreditLedger]:
    """A ledger with the usual deadline of ten seconds."""
    async with CreditLedger.connect(uri, database=shared.name, config=prices()) as ledger:
        await ledger.ensure_indexes()
        yield ledger


@pytest_asyncio.fixture
async def hasty(uri: str, shared: Database, patient: CreditLedger) -> AsyncIterator[CreditLedger]:
    """A ledger with a deadline of one second."""
    config = prices(operation_timeout_seconds=1)
    async with CreditLedger.connect(uri, database=shared.name, config=config) as ledger:
        yield ledger


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.cases(45)
async def test_one_failure_of_the_database_leaves_one_effect_or_none(
    fault: Fault, operation: Operation, client: Client, shared: Database, patient: CreditLedger
) -> None:
    """The caller hears what happened, it happened once, and a repeat with the key says the same."""
    user_id = some_user()
    key = operation.key and f"key-of-{user_id}"
    if operation.exists_before:
        await patient.create_user(user_id, credits=100)
    before = await count(shared, "transactions", userId=user_id)
    command = operation.first_write if fault.command == "write" else fault.command

    async with failing(client, APP_NAME, ONCE, failCommands=[command], **fault.data) as failure:
        first = await outcome_of(operation.call(patient, user_id, key))

    assert failure.hits == 1, "the fault was not met"
    added = await count(shared, "transactions", userId=user_id) - before
    refusals = await count(shared, "audit_logs", userId=user_id, status="failed")
    if fault.is_retried:
        assert isinstance(first, operation.succeeds_with), repr(first)
        assert (added, refusals) == (operation.transactions, operation.refusals)
    else:
        assert type(first) is StorageError, repr(first)
        assert first.__cause__ is not None
        assert (added, refusals) == (0, 0)

    again = await outcome_of(operation.call(patient, user_id, key))
    assert isinstance(again, operation.succeeds_with), repr(again)
    if key is not None and operation.transactions:
        assert await count(shared, "transactions", userId=user_id) - before == 1
        assert again.replayed is fault.is_retried
        if fault.is_retried:
            assert again == first
            # However often the ledger retried, this is the answer to the first call.
            assert first.replayed is False
    await check_promises(shared)
    await check_that_no_transaction_stays_open(client)


async def test_a_lost_commit_is_settled_even_if_retries_are_disabled(
    uri: str, client: Client, shared: Database, patient: CreditLedger
) -> None:
    """``max_retries=0`` does not apply: an unknown outcome must always be settled."""
    user_id = some_user()
    await patient.create_user(user_id, credits=100)
    config = prices(retry=RetryConfig(enabled=False))
    async with CreditLedger.connect(uri, database=shared.name, config=config) as ledger:
        async with failing(
            client, APP_NAME, ONCE, failCommands=[COMMIT], **_applied_with(100)
        ) as failure:
            result = await ledger.charge(user_id, "generate-post")
        assert failure.hits == 1
        async with failing(client, APP_NAME, ONCE, failCommands=["update"], **_error(24)):
            with pytest.raises(StorageError) as refused:
                await ledger.charge(user_id, "generate-post")
    assert type(refused.value) is StorageError
    assert result.balance_after == await patient.get_balance(user_id) == 90
    await check_promises(shared)


@pytest.mark.parametrize("key", [None, "key"])
async def test_a_lost_commit_of_a_hold_is_settled_without_an_audit_log(
    uri: str, client: Client, shared: Database, patient: CreditLedger, key: str | None
) -> None:
    """Nothing but holds is written, and those show what was committed: each call counts once."""
    user_id = some_user()
    await patient.create_user(user_id, credits=100)

    def key_of(step: str) -> str | None:
        return key and f"{step} of {user_id}"

    async def once(work: Awaitable[_T]) -> _T:
        """Await a call whose commit is applied, though the server says otherwise."""
        async with failing(
            client, APP_NAME, ONCE, failCommands=[COMMIT], **_applied_with(100)
        ) as failure:
            result = await work
        assert failure.hits == 1
        return result

    config = prices(audit=AuditConfig(enabled=False))
    async with CreditLedger.connect(uri, database=shared.name, config=config) as ledger:
        placing = ledger.place_hold(
            user_id, "generate-post", amount=30, idempotency_key=key_of("place")
        )
        hold = await once(placing)
        assert (await ledger.get_user(user_id)).held == 30
        for amount, used in ((40, 7), (35, 9)):
            extending = ledger.extend_hold(
                hold.hold_id, amount=amount, used=used, idempotency_key=key_of(f"extend {used}")
            )
            extended = await once(extending)
            assert (extended.amount, extended.used, extended.replayed) == (amount, used, False)
        for step in ("release", "release again"):
            releasing = ledger.release_hold(hold.hold_id, idempotency_key=key_of(step))
            if step == "release" or key:
                released = await once(releasing)
            else:
                released = await releasing
            assert (released.status, released.replayed) == ("released", False)
        assert [each.hold_id for each in await ledger.get_holds(user_id)] == [hold.hold_id]
        assert (await ledger.get_user(user_id)).available == 100
    assert await count(shared, "transactions", userId=user_id) == 1
    await check_that_no_transaction_stays_open(client)


async def test_a_batch_whose_commit_was_lost_is_settled_as_a_whole(
    client: Client, shared: Database, patient: CreditLedger
) -> None:
    """The successes and refusals of fifty callers stand as they were first decided."""
    poor, rich = some_user(), some_user()
    await patient.create_user(poor, credits=35)
    await patient.create_user(rich, credits=1000)
    async with failing(
        client, APP_NAME, {"times": 3}, failCommands=[COMMIT], **_applied_with(100)
    ) as failure:
        outcomes = await asyncio.gather(
            *(
                outcome_of(
                    patient.charge(
                        poor if number % 2 else rich,
                        "generate-post",
                        idempotency_key=f"{rich}-{number}",
                    )
                )
                for number in range(50)
            )
        )
    assert failure.hits == 3
    refused = [outcome for outcome in outcomes if isinstance(outcome, InsufficientCreditsError)]
    charged = [outcome for outcome in outcomes if isinstance(outcome, ChargeResult)]
    assert (len(charged), len(refused)) == (28, 22)
    assert not any(result.replayed for result in charged)
    assert await patient.get_balance(poor) == 5
    assert await patient.get_balance(rich) == 750
    assert await count(shared, "audit_logs", userId=poor, status="failed") == 22
    await check_promises(shared)


async def test_a_document_that_the_server_rejects_fails_its_caller_alone(
    client: Client, config: CreditConfig, database: Database
) -> None:
    """An application's unique index rejects one of forty charges. The others go through."""
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await database["transactions"].create_index(
            "metadata.order",
            unique=True,
            partialFilterExpression={"metadata.order": {"$exists": True}},
        )
        users = [f"user-{number}" for number in range(8)]
        await asyncio.gather(*(ledger.create_user(user_id, credits=100) for user_id in users))
        outcomes = await asyncio.gather(
            *(
                outcome_of(
                    ledger.charge(
                        users[number % 8],
                        "generate-post",
                        metadata={"order": 7 if number in (8, 32) else number},
                    )
                )
                for number in range(40)
            )
        )
    # Orders 7, 8 and 32 share the number 7.
    refused = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    assert len(refused) == 2
    assert set(refused) < {7, 8, 32}
    assert all(type(outcomes[number]) is StorageError for number in refused)
    assert sum(user["credits"] for user in await rows(database, "users")) == 800 - 38 * 10
    await check_promises(database)
    await check_that_no_transaction_stays_open(client)


FOREIGN_ROWS: dict[str, tuple[str, Row]] = {
    "an expiry that is text": (
        "users",
        {"_id": "odd", "credits": 100, "membershipTier": "premium", "membershipExpiresAt": "2099"},
    ),
    "a tier that is a list": (
        "users",
        {"_id": "odd", "credits": 100, "membershipTier": ["premium"]},
    ),
    "a balance that is a double": ("users", {"_id": "odd", "credits": 100.5}),
    "a key that the Credit SDK wrote": (
        "idempotency_records",
        {
            "_id": "odd-key",
            "result": {"success": True},
            "createdAt": datetime(2026, 1, 1, tzinfo=timezone.utc),
            "expiresAt": datetime(2099, 1, 1, tzinfo=timezone.utc),
        },
    ),
}


@pytest.mark.parametrize("name", FOREIGN_ROWS)
async def test_a_row_that_is_not_the_ledgers_fails_its_caller_alone(
    name: str, client: Client, database: Database
) -> None:
    """The error says that the row is not the ledger's.

    The row stays, and thirty-two are charged.
    """
    collection, row = FOREIGN_ROWS[name]
    await database[collection].insert_one(row)
    users = [f"user-{number}" for number in range(32)]
    async with CreditLedger(database, prices()) as ledger:
        await ledger.ensure_indexes()
        await asyncio.gather(*(ledger.create_user(user_id, credits=100) for user_id in users))
        if collection != "users":
            await ledger.create_user("odd", credits=100)
        odd, *others = await asyncio.gather(
            outcome_of(ledger.charge("odd", "generate-post", idempotency_key="odd-key")),
            *(outcome_of(ledger.charge(user_id, "generate-post")) for user_id in users),
        )
    assert [other for other in others if not isinstance(other, ChargeResult)] == []
    assert isinstance(odd, AccountDataError if collection == "users" else CreditError), repr(odd)
    assert not isinstance(odd, CommitOutcomeUnknownError), "nothing was even tried"
    assert await database[collection].find_one({"_id": row["_id"]}) == row
    assert await count(database, "transactions", userId="odd", operation="charge") == 0
    await database[collection].delete_one({"_id": row["_id"]})
    await check_promises(database)
    await check_that_no_transaction_stays_open(client)


async def test_a_charge_cancelled_in_its_commit_still_happens_once(
    client: Client, shared: Database, patient: CreditLedger
) -> None:
    """A charge cancelled twice during its commit still happens, once."""
    user_id = some_user()
    await patient.create_user(user_id, credits=100)
    async with failing(
        client, APP_NAME, ONCE, failCommands=[COMMIT], blockConnection=True, blockTimeMS=600
    ) as failure:
        charging = asyncio.create_task(
            patient.charge(user_id, "generate-post", idempotency_key=user_id)
        )
        await asyncio.sleep(0.2)
        charging.cancel()
        await asyncio.sleep(0)
        charging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await charging
        again = await patient.charge(user_id, "generate-post", idempotency_key=user_id)
    assert failure.hits == 1
    assert again.replayed
    assert again.balance_after == await patient.get_balance(user_id) == 90
    await check_promises(shared)
    await check_that_no_transaction_stays_open(client)


async def test_a_commit_slower_than_the_deadline_is_unknown_and_the_key_settles_it(
    client: Client, shared: Database, hasty: CreditLedger
) -> None:
    """The call ends in time as unknown, and a repeat with the key tells what happened."""
    user_id = some_user()
    await hasty.create_user(user_id, credits=100)
    async with failing(
        client, APP_NAME, ONCE, failCommands=[COMMIT], blockConnection=True, blockTimeMS=2000
    ):
        begun = time.monotonic()
        with pytest.raises(CommitOutcomeUnknownError) as unknown:
            await hasty.charge(user_id, "generate-post", idempotency_key=user_id)
        assert time.monotonic() - begun < 1 + GRACE_SECONDS
        assert unknown.value.__cause__ is not None
    # By now the server commits, unless the ledger told it to abort.
    await asyncio.sleep(1.3)
    effects = await count(shared, "transactions", userId=user_id, operation="charge")
    again = await hasty.charge(user_id, "generate-post", idempotency_key=user_id)
    assert again.replayed is bool(effects)
    assert await hasty.get_balance(user_id) == 90
    await check_promises(shared)
    await check_that_no_transaction_stays_open(client)


EVERYTHING = ["find", "aggregate", "update", "insert", "delete", COMMIT, "abortTransaction"]
BLOCKED = {"blockConnection": True, "blockTimeMS": 500}
OUTAGES: dict[str, Row] = {
    "all connections are cut": {"failCommands": EVERYTHING, "closeConnection": True},
    "connections are cut in commits": {"failCommands": [COMMIT], "closeConnection": True},
    "commits run out of time": {"failCommands": [COMMIT], **_error(50)},
    "commits are slow and fail": {"failCommands": [COMMIT], **BLOCKED, **_error(50)},
    "commits take forever": {
        "failCommands": [COMMIT],
        "blockConnection": True,
        "blockTimeMS": 1800,
    },
    "writes are slow and conflict": {
        "failCommands": ["update", "abortTransaction"],
        **BLOCKED,
        **_error(112),
    },
    "writes work and inserts are cut": {"failCommands": ["insert"], "closeConnection": True},
    "writes and aborts are cut": {
        "failCommands": ["update", "abortTransaction"],
        "closeConnection": True,
    },
    "reads take forever": {
        "failCommands": ["find"],
        "blockConnection": True,
        "blockTimeMS": 1800,
    },
}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.cases(3)
async def test_an_outage_beyond_the_deadline_ends_in_time_and_leaves_nothing_open(
    outage: str, client: Client, shared: Database, hasty: CreditLedger
) -> None:
    """All callers hear by their deadline, the server is left clean, and the ledger recovers."""
    user_id = some_user()
    await hasty.create_user(user_id, credits=100)
    keys = [f"{user_id}-{number}" for number in range(3)]

    async with failing(client, APP_NAME, **OUTAGES[outage]) as failure:
        begun = time.monotonic()
        first = await asyncio.gather(
            *(
                outcome_of(hasty.charge(user_id, "generate-post", idempotency_key=key))
                for key in keys
            )
        )
        assert time.monotonic() - begun < 1 + GRACE_SECONDS
    assert failure.hits
    assert all(isinstance(o, StorageError | CommitOutcomeUnknownError) for o in first), first
    assert len({id(outcome) for outcome in first}) == len(first), "callers share an error"

    # Before the ledger is used again: its next transaction might end the last one by chance.
    await check_that_no_transaction_stays_open(client)
    unknown = [isinstance(outcome, CommitOutcomeUnknownError) for outcome in first]
    effects = await count(shared, "transactions", userId=user_id, operation="charge")
    assert effects == 0 or all(unknown), "told that nothing was written, and it was"
    held_for = time.monotonic()
    await shared["users"].update_one({"_id": user_id}, {"$set": {"note": user_id}})
    assert time.monotonic() - held_for < 10

    again = [await hasty.charge(user_id, "generate-post", idempotency_key=key) for key in keys]
    assert len({result.transaction_id for result in again}) == 3
    assert await hasty.get_balance(user_id) == 70
    await check_promises(shared)
    await check_that_no_transaction_stays_open(client)


@pytest_asyncio.fixture(scope="module")
async def frozen_set() -> AsyncIterator[LocalReplicaSet]:
    """A replica set of its own: another test's servers would freeze, too."""
    async with LocalReplicaSet(members=1, parameters={"enableTestCommands": "1"}) as replica_set:
        yield replica_set


@pytest.mark.parametrize("frozen_in", ["find", "insert", COMMIT])
@pytest.mark.cases(1)
async def test_calls_wait_for_a_frozen_server_until_the_deadline_and_then_work_again(
    frozen_in: str, frozen_set: LocalReplicaSet
) -> None:
    """The server freezes before, during or after a write. Once it resumes, everything goes on."""
    [member] = frozen_set.members
    async with AsyncMongoClient[Row](frozen_set.uri, tz_aware=True) as observer:
        database = observer[f"frozen_{frozen_in}"]
        uri = with_options(frozen_set.uri, appName=APP_NAME)
        config = prices(operation_timeout_seconds=1)
        async with CreditLedger.connect(uri, database=database.name, config=config) as ledger:
            await ledger.ensure_indexes()
            await ledger.create_user("user", credits=100)
            # The command blocks at this point, so that the server surely freezes in it.
            async with failing(
                observer,
                APP_NAME,
                ONCE,
                failCommands=[frozen_in],
                blockConnection=True,
                blockTimeMS=300,
            ) as failure:
                begun = time.monotonic()
                charging = asyncio.create_task(
                    outcome_of(ledger.charge("user", "generate-post", idempotency_key="key"))
                )
                await asyncio.sleep(0.1)
                member.pause()
                try:
                    outcome = await charging
                    assert time.monotonic() - begun < 1 + GRACE_SECONDS
                    told = StorageError | CommitOutcomeUnknownError
                    assert isinstance(outcome, told), outcome
                    begun = time.monotonic()
                    with pytest.raises(StorageError):
                        await ledger.get_balance("user")
                    assert time.monotonic() - begun < 1 + GRACE_SECONDS
                finally:
                    member.resume()
            assert failure.hits == 1
            await check_that_no_transaction_stays_open(observer, seconds=10)
            effects = await count(database, "transactions", operation="charge")
            assert effects == 0 or isinstance(outcome, CommitOutcomeUnknownError)

            settled = await ledger.charge("user", "generate-post", idempotency_key="key")
            assert settled.replayed is bool(effects)
            assert await ledger.get_balance("user") == 90
            await check_promises(database)
        await check_that_no_transaction_stays_open(observer, seconds=10)


async def test_a_user_locked_by_an_application_does_not_delay_others(
    client: Client, database: Database
) -> None:
    """An application locks one of forty users past the deadline. The others are charged.

    This holds for users in the same batches, for later calls, and for another process.
    """
    config = prices(operation_timeout_seconds=4)
    users = [f"user-{number}" for number in range(40)]

    async def charge_all(ledger: CreditLedger, after_seconds: float) -> list[Any]:
        await asyncio.sleep(after_seconds)
        charges = (outcome_of(ledger.charge(user_id, "generate-post")) for user_id in users)
        return await asyncio.gather(*charges)

    async with (
        CreditLedger(database, config) as ledger,
        CreditLedger(database, config) as of_another_process,
        client.start_session() as session,
    ):
        await ledger.ensure_indexes()
        await asyncio.gather(*(ledger.create_user(user_id, credits=100) for user_id in users))
        async with await session.start_transaction():
            await database["users"].update_one(
                {"_id": "user-0"}, {"$set": {"note": "busy"}}, session=session
            )
            waves = await asyncio.gather(
                charge_all(ledger, 0), charge_all(ledger, 0.1), charge_all(of_another_process, 0.4)
            )
        for wave in waves:
            failed = {u: e for u, e in zip(users, wave, strict=True) if isinstance(e, Exception)}
            # On a slow machine, the batch of the first two waves outlasts the first's deadline.
            assert isinstance(failed.pop("user-0"), StorageError | CommitOutcomeUnknownError)
            assert not failed
        assert (await ledger.charge("user-0", "generate-post")).balance_after == 90
        assert (await ledger.charge("user-1", "generate-post")).balance_after == 60
    await check_that_no_transaction_stays_open(client)


async def test_a_charge_beside_the_applications_own_transaction_on_the_user_ends_in_time(
    client: Client, database: Database
) -> None:
    """A caller that forgets ``session=`` waits for itself. The call ends by the deadline."""
    config = prices(operation_timeout_seconds=0.5)
    async with CreditLedger(database, config) as ledger, client.start_session() as session:
        await ledger.ensure_indexes()
        await ledger.create_user("user", credits=100)
        async with await session.start_transaction():
            await ledger.charge("user", "generate-post", session=session)
            begun = time.monotonic()
            with pytest.raises(StorageError) as refused:
                await ledger.charge("user", "generate-post")
            assert time.monotonic() - begun < 0.5 + GRACE_SECONDS
            assert type(refused.value) is StorageError
        assert await ledger.get_balance("user") == 90
    await check_promises(database)
    await check_that_no_transaction_stays_open(client)

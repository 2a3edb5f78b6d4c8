"""The ledger in an application's transaction: all writes commit together, or none does."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

import credit_mongo
from credit_mongo import (
    AccountDataError,
    ChargeResult,
    CreditConfig,
    CreditError,
    CreditLedger,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidRequestError,
    RefundExceedsChargeError,
    StorageError,
    UserExistsError,
    UserNotFoundError,
)
from credit_mongo.engine.contention import ContendedUsers
from tests.integration.motor_application import MotorApplication, begun, with_motor_transaction
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    check_that_no_transaction_stays_open,
    count,
    end_all_transactions,
    failing,
    open_transactions,
    rows,
    with_options,
)

pytestmark = pytest.mark.drivers("pymongo", "motor")

APP_NAME = "application"
ONCE = {"times": 1}
Work: TypeAlias = Callable[[AsyncClientSession], Awaitable[Any]]
COLLECTIONS = ("users", "transactions", "audit_logs", "idempotency_records", "orders")


def prices(**options: Any) -> CreditConfig:
    """Return these tests' prices, with other settings."""
    return CreditConfig(
        costs={"post": {"default": 10, "premium": 8}},
        membership={"tiers": {"premium": 1}, "credits_caps": {"premium": 2000}},
        **options,
    )


@pytest_asyncio.fixture(scope="module")
async def application(replica_set_uri: str, driver: str) -> AsyncIterator[Client]:
    """An application's client, whose commands this file's fail points hit."""
    uri = with_options(replica_set_uri, appName=APP_NAME)
    opened: Any = MotorApplication if driver == "motor" else AsyncMongoClient[Row]
    async with opened(uri, tz_aware=True) as client:
        yield client


@pytest_asyncio.fixture(scope="module")
async def shared(application: Client) -> AsyncIterator[Database]:
    """One database for the tests of this file. Each test has its own user."""
    database = application[f"test_{uuid4().hex[:12]}"]
    await database.create_collection("orders")
    yield database
    await application.drop_database(database.name)


@pytest_asyncio.fixture(scope="module")
async def books(shared: Database) -> AsyncIterator[CreditLedger]:
    """A ledger on the application's client."""
    async with CreditLedger(shared, prices()) as ledger:
        await ledger.ensure_indexes()
        yield ledger


@pytest_asyncio.fixture
async def user(books: CreditLedger) -> str:
    """A user with 100 credits that no other test has."""
    user_id = f"user-{uuid4().hex[:12]}"
    await books.create_user(user_id, credits=100)
    return user_id


@pytest_asyncio.fixture(autouse=True)
async def check_promises_after_each_test(
    client: Client, shared: Database, books: CreditLedger
) -> AsyncIterator[None]:
    """After each test, check the promises, and that no transaction is left open."""
    yield
    try:
        await check_that_no_transaction_stays_open(client)
    finally:
        await end_all_transactions(client)
    await check_promises(shared)


@asynccontextmanager
async def transaction(client: Client) -> AsyncIterator[AsyncClientSession]:
    """Open a transaction that commits at the end and aborts on an error."""
    async with client.start_session() as session, await begun(session):
        yield session


async def in_transaction(client: Client, callback: Work) -> Any:
    """Use ``with_transaction`` as most applications do. It repeats the callback."""
    async with client.start_session() as session:
        if isinstance(client, MotorApplication):
            return await with_motor_transaction(session, callback)
        return await session.with_transaction(callback)


async def traces(database: Database, user_id: str) -> dict[str, int]:
    """Count a user's rows in each collection."""
    found = {name: await count(database, name, userId=user_id) for name in COLLECTIONS}
    found["users"] = await count(database, "users", _id=user_id)
    return found


def counts(**expected: int) -> dict[str, int]:
    """Return these counts, and zero for the collections not named."""
    return {**dict.fromkeys(COLLECTIONS, 0), **expected}


OPENED = {"users": 1, "transactions": 1, "audit_logs": 1}


async def test_a_charge_and_the_applications_write_commit_together(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """Nobody sees either write before the commit. Afterwards everybody sees both, and the key."""
    async with transaction(application) as session:
        await shared["orders"].insert_one({"userId": user}, session=session)
        charge = await books.charge(
            user, "post", idempotency_key=user, metadata={"a": 1}, session=session
        )
        assert (charge.cost, charge.balance_after, charge.replayed) == (10, 90, False)
        assert await traces(shared, user) == counts(**OPENED)
        assert await books.get_balance(user) == 100

    assert await traces(shared, user) == counts(
        users=1, transactions=2, audit_logs=2, idempotency_records=1, orders=1
    )
    assert await books.get_balance(user) == 90
    again = await books.charge(user, "post", idempotency_key=user)
    assert again == charge
    assert again.replayed


async def test_reads_in_the_transaction_see_what_it_wrote_and_others_do_not(
    application: Client, books: CreditLedger, user: str
) -> None:
    """Every read that takes a session sees them.

    Without the session, it sees what was committed.
    """
    async with transaction(application) as session:
        await books.grant(user, 5, action="gift", session=session)
        assert await books.get_balance(user, session=session) == 105
        assert (await books.get_user(user, session=session)).seq == 2
        assert len(await books.get_history(user, session=session)) == 2
        assert len(await books.get_audit_log(user, session=session)) == 2
        assert await books.validate_access(user, "post", session=session)
        assert await books.get_balance(user) == 100
        assert (await books.get_user(user)).seq == 1
        assert len(await books.get_history(user)) == len(await books.get_audit_log(user)) == 1
    assert await books.get_balance(user) == 105


async def test_several_operations_in_one_transaction_see_each_other(
    application: Client, shared: Database, books: CreditLedger
) -> None:
    """A user's creation, its charge and the refund work in one transaction."""
    user = f"user-{uuid4().hex[:12]}"
    async with transaction(application) as session:
        await books.create_user(user, credits=5, session=session)
        await books.grant(user, 30, action="gift", session=session)
        charge = await books.charge(user, "post", session=session)
        await books.refund(
            user, 4, action="post", transaction_id=charge.transaction_id, session=session
        )
        with pytest.raises(RefundExceedsChargeError):
            await books.refund(
                user, 7, action="post", transaction_id=charge.transaction_id, session=session
            )
        upgrade = await books.upgrade_tier(user, "premium", session=session)
        assert (upgrade.old_credits, upgrade.new_credits) == (29, 2000)
        assert (await books.charge(user, "post", session=session)).cost == 8
        renewed = await books.renew_tier(user, membership_expires_at=None, session=session)
        assert renewed.credits_delta == 8
        with pytest.raises(UserNotFoundError):
            await books.get_balance(user)
    seqs = [row.seq for row in await books.get_history(user)]
    assert seqs == [7, 6, 5, 4, 3, 2, 1]
    assert await traces(shared, user) == counts(users=1, transactions=7, audit_logs=8)


# Aborts


async def abort(session: AsyncClientSession) -> None:
    """The application decides to abort."""
    await session.abort_transaction()


async def fail(_: AsyncClientSession) -> None:
    """The application fails with a bug."""
    raise ZeroDivisionError


async def leave(session: AsyncClientSession) -> None:
    """The application ends the session, which ends its transaction."""
    await session.end_session()


@pytest.mark.parametrize("end", [abort, fail, leave], ids=lambda end: end.__name__)
async def test_an_aborted_transaction_leaves_only_the_audit_rows_of_refusals(
    application: Client,
    shared: Database,
    books: CreditLedger,
    user: str,
    end: Callable[[AsyncClientSession], Awaitable[None]],
) -> None:
    """No balance, row or key of a success remains. The audit row of each refusal does."""
    try:
        async with transaction(application) as session:
            await shared["orders"].insert_one({"userId": user}, session=session)
            await books.charge(user, "post", idempotency_key=user, session=session)
            with pytest.raises(InsufficientCreditsError) as caught:
                await books.charge(user, "post", amount=91, metadata={"m": 1}, session=session)
            assert (caught.value.required, caught.value.available) == (91, 90)
            await end(session)
    except ZeroDivisionError:
        assert end is fail

    assert await traces(shared, user) == counts(users=1, transactions=1, audit_logs=2)
    [refused] = await rows(shared, "audit_logs", userId=user, status="failed")
    assert refused["details"] == {"code": "INSUFFICIENT_CREDITS"}
    assert refused["metadata"] == {"m": 1}
    assert await books.get_balance(user) == 100
    charge = await books.charge(user, "post", idempotency_key=user)
    assert charge.replayed is False


async def test_an_application_that_catches_a_refusal_can_go_on_and_commit(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """A refusal does nothing to the transaction, because the application began it."""
    async with transaction(application) as session:
        with pytest.raises(InsufficientCreditsError):
            await books.charge(user, "post", amount=101, session=session)
        await books.charge(user, "post", session=session)
        await shared["orders"].insert_one({"userId": user}, session=session)
    assert await traces(shared, user) == counts(users=1, transactions=2, audit_logs=3, orders=1)


async def test_a_refusal_does_not_wait_for_a_transaction_that_made_the_collections(
    application: Client,
) -> None:
    """Without ``ensure_indexes``, the refusal's audit row is still written outside, and at once.

    Both create one collection, so the server makes the transaction repeat.
    """
    database = application[f"test_{uuid4().hex[:12]}"]

    async def callback(session: AsyncClientSession) -> None:
        await ledger.create_user("u", credits=5, session=session)
        began = time.monotonic()
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge("u", "post", session=session)
        assert time.monotonic() - began < 5

    try:
        async with CreditLedger(database, prices()) as ledger:
            await in_transaction(application, callback)
            assert await count(database, "audit_logs", status="failed") >= 1
            await check_promises(database)
    finally:
        await application.drop_database(database.name)


DYING = """
import asyncio, os, sys
from pymongo import AsyncMongoClient
from credit_mongo import CreditConfig, CreditLedger

async def main(uri, database, user):
    client = AsyncMongoClient(uri)
    ledger = CreditLedger(client[database], CreditConfig(costs={"post": {"default": 10}}))
    session = client.start_session()
    await session.start_transaction()
    await client[database]["orders"].insert_one({"userId": user}, session=session)
    await ledger.charge(user, "post", idempotency_key=user, session=session)
    os._exit(9)

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def transaction_lifetime(client: Client, seconds: int) -> AsyncIterator[None]:
    """How long the server keeps the transactions of a dead client."""
    name = "transactionLifetimeLimitSeconds"
    given = (await client.admin.command({"getParameter": 1, name: 1}))[name]
    await client.admin.command({"setParameter": 1, name: seconds})
    try:
        yield
    finally:
        await client.admin.command({"setParameter": 1, name: given})


async def test_a_process_killed_in_its_transaction_leaves_no_trace(
    client: Client, shared: Database, books: CreditLedger, user: str, replica_set_uri: str
) -> None:
    """Callers waiting for the user go on as soon as the server has dropped the transaction."""
    async with transaction_lifetime(client, 1):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DYING, replica_set_uri, shared.name, user),
            env={**os.environ, "PYTHONPATH": str(Path(credit_mongo.__file__).parents[1])},
            stdin=PIPE,
        )
        assert await process.wait() == 9
        assert await open_transactions(client) == 1
        charge = await books.charge(user, "post")
        await check_that_no_transaction_stays_open(client)

    assert (charge.balance_before, charge.balance_after) == (100, 90)
    assert await traces(shared, user) == counts(users=1, transactions=2, audit_logs=2)
    assert (await books.charge(user, "post", idempotency_key=user)).replayed is False


# Conflicts


@dataclass(frozen=True)
class Fault:
    """What the server does to one command, and how often the callback then runs."""

    command: str
    data: Row
    attempts: int = 2

    def __str__(self) -> str:
        return f"{self.command} {self.data}"


def writes_both(
    shared: Database, books: CreditLedger, user: str, attempts: list[int]
) -> Callable[[AsyncClientSession], Awaitable[ChargeResult]]:
    """An application's callback that counts its attempts."""

    async def callback(session: AsyncClientSession) -> ChargeResult:
        attempts.append(1)
        charge = await books.charge(user, "post", idempotency_key=user, session=session)
        await shared["orders"].insert_one({"userId": user}, session=session)
        return charge

    return callback


@pytest.mark.parametrize(
    "fault",
    [
        Fault("update", {"errorCode": 112}),
        Fault("insert", {"errorCode": 112}),
        Fault("find", {"errorCode": 112}),
        Fault("update", {"errorCode": 10107}),
        Fault("update", {"closeConnection": True}),
        Fault("commitTransaction", {"closeConnection": True}, attempts=1),
        Fault(
            "commitTransaction", {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}
        ),
    ],
    ids=str,
)
async def test_a_transient_failure_repeats_the_applications_callback_and_has_one_effect(
    *,
    application: Client,
    client: Client,
    shared: Database,
    books: CreditLedger,
    user: str,
    fault: Fault,
) -> None:
    """The driver reads the same labels in the ledger's error as in its own."""
    attempts: list[int] = []
    point = failing(client, APP_NAME, ONCE, failCommands=[fault.command], **fault.data)
    async with point as failure:
        charge = await in_transaction(application, writes_both(shared, books, user, attempts))

    assert failure.hits == 1
    assert len(attempts) == fault.attempts
    assert charge.balance_after == 90
    assert charge.replayed is False
    assert await traces(shared, user) == counts(
        users=1, transactions=2, audit_logs=2, idempotency_records=1, orders=1
    )


@pytest.mark.parametrize("code", [13, 50])
async def test_a_permanent_failure_is_raised_once_and_leaves_nothing(
    *,
    application: Client,
    client: Client,
    shared: Database,
    books: CreditLedger,
    user: str,
    code: int,
) -> None:
    """It is raised as a StorageError, caused by the driver's error."""
    attempts: list[int] = []
    async with failing(client, APP_NAME, ONCE, failCommands=["update"], errorCode=code):
        with pytest.raises(StorageError) as caught:
            await in_transaction(application, writes_both(shared, books, user, attempts))

    assert type(caught.value) is StorageError
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert len(attempts) == 1
    assert await traces(shared, user) == counts(**OPENED)


async def test_a_real_conflict_repeats_the_callback_until_the_other_has_ended(
    application: Client, books: CreditLedger, user: str
) -> None:
    """The charge then builds on the balance that the other transaction left."""
    attempted = 0
    has_conflicts = asyncio.Event()

    async def callback(session: AsyncClientSession) -> ChargeResult:
        nonlocal attempted
        attempted += 1
        if attempted == 3:
            has_conflicts.set()
        return await books.charge(user, "post", session=session)

    async with transaction(application) as session:
        await books.charge(user, "post", amount=50, session=session)
        waiting = asyncio.ensure_future(in_transaction(application, callback))
        await asyncio.wait_for(has_conflicts.wait(), 5)
        assert not waiting.done()

    charge = await waiting
    assert (charge.balance_before, charge.balance_after) == (50, 40)
    assert [row.seq for row in await books.get_history(user)] == [3, 2, 1]


async def test_transactions_of_the_application_and_plain_charges_on_one_user_lose_nothing(
    application: Client, books: CreditLedger, user: str
) -> None:
    """Eight of each run at once, on a balance that is enough for ten."""
    told: list[Any] = await asyncio.gather(
        *[
            in_transaction(application, lambda s: books.charge(user, "post", session=s))
            for _ in range(8)
        ],
        *[books.charge(user, "post") for _ in range(8)],
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in told) == sorted(
        ["ChargeResult"] * 10 + ["InsufficientCreditsError"] * 6
    )
    assert await books.get_balance(user) == 0
    assert len(await books.get_audit_log(user, status="success")) == 11


async def test_transactions_of_a_contended_user_wait_for_each_other_before_they_write(
    application: Client, books: CreditLedger, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a conflict, the next one waits and meets none. One that has written never waits."""
    other = f"{user}-2"
    await books.create_user(other, credits=100)
    async with application.start_session() as first, application.start_session() as second:
        for session in (first, second):
            await begun(session)
        await books.charge(user, "post", session=first)
        with pytest.raises(StorageError):
            await books.charge(user, "post", session=second)
        for session in (second, first):
            await session.abort_transaction()

        for session in (first, second):
            await begun(session)
        await books.charge(user, "post", session=first)
        waiting = asyncio.create_task(books.charge(user, "post", session=second))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await first.commit_transaction()
        await waiting

        await begun(first)
        await books.charge(other, "post", session=first)
        monkeypatch.setattr(ContendedUsers, "join", None)
        with pytest.raises(StorageError):
            await books.charge(user, "post", session=first)
        await second.commit_transaction()
        await first.abort_transaction()
        monkeypatch.undo()

        await begun(first)
        await books.charge(user, "post", session=first)
        assert list(books._sessions._contended._queues) == [user]
        await first.abort_transaction()
        assert not books._sessions._contended._queues
    balances = [(await books.get_user(each)).credits for each in (user, other)]
    assert balances == [80, 100]


async def test_a_repeated_transaction_waits_for_all_users_that_it_wrote_before(
    application: Client, books: CreditLedger, user: str
) -> None:
    """Although it writes a user without conflicts first."""
    other = f"{user}-2"
    await books.create_user(other, credits=100)
    async with application.start_session() as first, application.start_session() as second:
        await begun(first)
        await books.charge(user, "post", session=first)
        await begun(second)
        await books.charge(other, "post", session=second)
        with pytest.raises(StorageError):
            await books.charge(user, "post", session=second)
        for session in (second, first):
            await session.abort_transaction()

        await begun(first)
        await books.charge(user, "post", session=first)
        await begun(second)
        repeated = asyncio.create_task(books.charge(other, "post", session=second))
        await asyncio.sleep(0.1)
        assert not repeated.done()
        await first.commit_transaction()
        await repeated
        await books.charge(user, "post", session=second)
        await second.commit_transaction()
    balances = [(await books.get_user(each)).credits for each in (user, other)]
    assert balances == [80, 90]


async def test_a_refusal_inside_with_transaction_is_raised_unchanged_and_not_repeated(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """There is one attempt and one audit row, and the application's own write is gone."""
    refusals: list[tuple[type[CreditError], Work]] = [
        (InsufficientCreditsError, lambda s: books.charge(user, "post", amount=101, session=s)),
        (UserExistsError, lambda s: books.create_user(user, session=s)),
        (UserNotFoundError, lambda s: books.charge(f"{user}-not", "post", session=s)),
    ]

    async def callback(work: Work, session: AsyncClientSession) -> None:
        await shared["orders"].insert_one({"userId": user}, session=session)
        await work(session)

    before = await count(shared, "audit_logs", status="failed")
    for number, (error, work) in enumerate(refusals, 1):
        with pytest.raises(error):
            await in_transaction(application, partial(callback, work))
        assert await count(shared, "audit_logs", status="failed") == before + number
    assert await count(shared, "orders", userId=user) == 0


async def test_an_unreadable_account_is_not_retried(
    application: Client, database: Database
) -> None:
    """To the driver this is a database error, but not one worth a retry."""
    attempted = 0
    await database["users"].insert_one({"_id": "u", "credits": 0.5})

    async with CreditLedger(application[database.name], prices()) as ledger:

        async def callback(session: AsyncClientSession) -> Any:
            nonlocal attempted
            attempted += 1
            return await ledger.grant("u", 1, action="gift", session=session)

        with pytest.raises(AccountDataError):
            await in_transaction(application, callback)
    assert attempted == 1
    assert await database["users"].find_one() == {"_id": "u", "credits": 0.5}
    assert await count(database, "audit_logs", status="failed") == 1


async def test_a_user_created_since_the_transaction_began_exists_at_the_next_attempt(
    application: Client, shared: Database, books: CreditLedger
) -> None:
    """The server reports a conflict, the callback runs again, and the refusal is then correct."""
    user = f"user-{uuid4().hex[:12]}"
    attempted = 0

    async def callback(session: AsyncClientSession) -> Any:
        nonlocal attempted
        attempted += 1
        await shared["orders"].find_one({}, session=session)
        if attempted == 1:
            await books.create_user(user, credits=1)
        return await books.create_user(user, credits=2, session=session)

    with pytest.raises(UserExistsError):
        await in_transaction(application, callback)
    assert attempted == 2
    assert await books.get_balance(user) == 1


# Keys


async def test_a_key_is_replayed_inside_a_transaction_and_writes_nothing(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The key was used before, or in this same transaction."""
    before = await books.charge(user, "post", idempotency_key=user)
    async with transaction(application) as session:
        first = await books.charge(user, "post", idempotency_key=user, session=session)
        assert first == before
        own = f"{user}-own"
        second = await books.grant(user, 1, action="gift", idempotency_key=own, session=session)
        third = await books.grant(user, 1, action="gift", idempotency_key=own, session=session)
        assert third == second
        assert [each.replayed for each in (first, second, third)] == [True, False, True]
        with pytest.raises(IdempotencyConflictError):
            await books.grant(user, 2, action="gift", idempotency_key=own, session=session)
    assert await traces(shared, user) == counts(
        users=1, transactions=3, audit_logs=4, idempotency_records=2
    )


async def test_a_request_waits_for_its_key_in_an_open_transaction_and_is_then_replayed(
    application: Client, books: CreditLedger, user: str
) -> None:
    """The same request outside the transaction neither doubles the effect nor fails."""
    async with transaction(application) as session:
        charge = await books.charge(user, "post", idempotency_key=user, session=session)
        outside = [
            asyncio.ensure_future(books.charge(user, "post", idempotency_key=user))
            for _ in range(3)
        ]
        _, waiting = await asyncio.wait(outside, timeout=0.2)
        assert len(waiting) == 3
    again = await asyncio.gather(*outside)
    assert [*again] == [replace(charge, replayed=True)] * 3
    assert all(each.replayed for each in again)


async def test_another_users_request_waits_for_a_key_in_an_open_transaction_and_conflicts(
    application: Client, books: CreditLedger, user: str
) -> None:
    """A request with the same key for another user waits, and is then refused."""
    other = f"{user}-other"
    await books.create_user(other, credits=100)
    async with transaction(application) as session:
        await books.charge(user, "post", idempotency_key=user, session=session)
        outside = asyncio.ensure_future(books.charge(other, "post", idempotency_key=user))
        await asyncio.sleep(0.1)
        assert not outside.done()
    with pytest.raises(IdempotencyConflictError):
        await outside
    assert await books.get_balance(other) == 100


# Sessions


async def test_two_operations_at_once_on_one_session_are_not_mixed_up(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The second is refused, even a read beside a write. The first one and later ones succeed."""
    async with transaction(application) as session:
        for second in (
            lambda: books.charge(user, "post", session=session),
            lambda: books.get_balance(user, session=session),
            lambda: books.get_history(user, session=session),
        ):
            first, refused = await asyncio.gather(
                books.grant(user, 1, action="gift", session=session),
                second(),
                return_exceptions=True,
            )
            assert not isinstance(first, BaseException), repr(first)
            assert isinstance(refused, InvalidRequestError), repr(refused)
            assert refused.field == "session"
        read, refused = await asyncio.gather(
            books.get_balance(user, session=session),
            books.grant(user, 1, action="gift", session=session),
            return_exceptions=True,
        )
        assert read == 103
        assert isinstance(refused, InvalidRequestError)
        assert (await books.charge(user, "post", session=session)).balance_after == 93
    assert await traces(shared, user) == counts(users=1, transactions=5, audit_logs=5)


async def test_an_unusable_session_is_refused_before_anything_is_sent(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """Its client is another, it has ended, it has no open transaction, or it isn't a session."""
    async with transaction(client) as strange:
        for work in (
            books.charge(user, "post", session=strange),
            books.get_balance(user, session=strange),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                await work
            assert caught.value.field == "session"
    async with application.start_session() as session:
        with pytest.raises(InvalidRequestError):
            await books.charge(user, "post", session=session)
        assert await books.get_balance(user, session=session) == 100
        async with await begun(session):
            await books.charge(user, "post", session=session)
        for _ in range(2):
            with pytest.raises(InvalidRequestError):
                await books.charge(user, "post", session=session)
    for work in (
        books.charge(user, "post", session=session),
        books.get_balance(user, session=session),
    ):
        with pytest.raises(InvalidRequestError):
            await work
    assert await traces(shared, user) == counts(users=1, transactions=2, audit_logs=2)


async def test_a_cancelled_operation_leaves_the_session_usable_and_no_trace_when_aborted(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The call is cancelled while the server delays the write, and the application aborts."""
    async with application.start_session() as session:
        await begun(session)
        slow = {"blockConnection": True, "blockTimeMS": 400}
        async with failing(client, APP_NAME, ONCE, failCommands=["update"], **slow):
            task = asyncio.ensure_future(books.charge(user, "post", session=session))
            await asyncio.sleep(0.15)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.abort_transaction()
        assert await traces(shared, user) == counts(**OPENED)
        async with await begun(session):
            await books.charge(user, "post", session=session)
    await check_that_no_transaction_stays_open(client)
    assert await books.get_balance(user) == 90


@pytest.mark.cases(1)
async def test_an_operation_in_a_transaction_ends_by_its_deadline(
    application: Client, client: Client, shared: Database, user: str
) -> None:
    """Its outcome is never unknown, because the application has committed nothing."""
    async with CreditLedger(shared, prices(operation_timeout_seconds=1)) as hasty:
        slow = {"blockConnection": True, "blockTimeMS": 8000}
        async with failing(client, APP_NAME, ONCE, failCommands=["update"], **slow):
            began = time.monotonic()
            with pytest.raises(StorageError) as caught:
                async with transaction(application) as session:
                    await hasty.charge(user, "post", session=session)
            assert time.monotonic() - began < 6
        assert type(caught.value) is StorageError
        await check_that_no_transaction_stays_open(client)
        assert await traces(shared, user) == counts(**OPENED)
        assert (await hasty.charge(user, "post")).balance_after == 90

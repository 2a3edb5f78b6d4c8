"""No half of an operation is ever committed, whatever ends a call in an application's transaction.

These tests' applications do what they should not: they catch everything and commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
import pytest_asyncio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.server_api import ServerApi

from credit_mongo import (
    CreditConfig,
    CreditLedger,
    InvalidRequestError,
    StorageError,
    TransactionAbortedError,
)
from credit_mongo.core.operations.charge import ChargeRequest
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
    rows,
    with_options,
)

pytestmark = pytest.mark.drivers("pymongo", "motor")

APP_NAME = "stubborn"
SECONDS = 0.4
# The server goes on with a blocked command after the deadline.
BLOCKED: Row = {"blockConnection": True, "blockTimeMS": 700}
COMMANDS = ("find", "update", "insert")


def prices(**options: Any) -> CreditConfig:
    """Return one price, with other settings."""
    return CreditConfig(costs={"post": {"default": 10}}, **options)


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
    """A ledger on the application's client, with a long deadline."""
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


async def effects(database: Database, user_id: str) -> tuple[int, int, int]:
    """Return a user's credits and its numbers of transactions and orders."""
    [account] = await rows(database, "users", _id=user_id)
    transactions = await count(database, "transactions", userId=user_id)
    return account["credits"], transactions, await count(database, "orders", userId=user_id)


UNTOUCHED = (100, 1, 0)
CHARGED_AND_ORDERED = (90, 2, 1)

End: TypeAlias = Callable[[Awaitable[Any]], Awaitable[None]]


async def time_out(call: Awaitable[Any]) -> None:
    """End the call by the application's own deadline."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call, SECONDS / 2)


async def cancel(call: Awaitable[Any]) -> None:
    """Cancel the call."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(SECONDS / 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_again_and_again(call: Awaitable[Any]) -> None:
    """Cancel the call as scopes of anyio do: whatever it still awaits is cancelled, too."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(SECONDS / 2)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()


async def fail(call: Awaitable[Any]) -> None:
    """Let the ledger's deadline pass. The application catches the CreditError."""
    with pytest.raises(StorageError):
        await call


ENDS: tuple[End, ...] = (time_out, cancel, cancel_again_and_again, fail)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_an_application_that_commits_after_a_failure_is_refused(
    *, application: Client, client: Client, shared: Database, user: str, command: str, end: End
) -> None:
    """The refusal comes at once, while the server is still busy with the ledger's command."""
    async with CreditLedger(shared, prices(operation_timeout_seconds=SECONDS)) as hasty:
        async with application.start_session() as session:
            await begun(session)
            await shared["orders"].insert_one({"userId": user}, session=session)
            async with failing(
                client, APP_NAME, {"times": 1}, failCommands=[command], **BLOCKED
            ) as failure:
                await end(hasty.charge(user, "post", idempotency_key=user, session=session))
                for _ in range(2):
                    with pytest.raises(TransactionAbortedError, match="another transaction"):
                        await session.commit_transaction()
            assert failure.hits == 1
        assert await effects(shared, user) == UNTOUCHED
        assert (await hasty.charge(user, "post", idempotency_key=user)).replayed is False


async def test_a_timeout_that_races_the_call_leaves_all_or_nothing(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """Wherever the cancellation falls, a commit has both the order and its charge, or neither."""
    await books.grant(user, 1000, action="gift")
    committed = 0
    for number in range(60):
        async with application.start_session() as session:
            await begun(session)
            await shared["orders"].insert_one({"userId": user}, session=session)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    books.charge(user, "post", session=session), 0.0003 * 1.12**number
                )
            with contextlib.suppress(TransactionAbortedError):
                await session.commit_transaction()
                committed += 1
    assert 0 < committed < 60
    assert await effects(shared, user) == (1100 - 10 * committed, 2 + committed, committed)


async def test_async_with_does_not_commit_silently(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """An application that catches the failure inside the block gets an error at its end."""

    async def pay(session: Any) -> None:
        async with await begun(session):
            await shared["orders"].insert_one({"userId": user}, session=session)
            async with failing(client, APP_NAME, {"times": 1}, failCommands=["update"], **BLOCKED):
                await time_out(books.charge(user, "post", session=session))

    async with application.start_session() as session:
        with pytest.raises(TransactionAbortedError) as caught:
            await pay(session)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert await effects(shared, user) == UNTOUCHED


async def test_a_commit_that_does_not_wait_for_the_call_is_refused(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The call may still run and finish later, or have just been cancelled."""
    async with application.start_session() as session:
        await begun(session)
        async with failing(client, APP_NAME, {"times": 1}, failCommands=["insert"], **BLOCKED):
            call = asyncio.ensure_future(books.charge(user, "post", session=session))
            await asyncio.sleep(SECONDS / 2)
            with pytest.raises(InvalidRequestError, match="await that before the commit"):
                await session.commit_transaction()
            await call
        await session.commit_transaction()
        assert await effects(shared, user) == (90, 2, 0)

        await begun(session)
        async with failing(client, APP_NAME, {"times": 1}, failCommands=["insert"], **BLOCKED):
            call = asyncio.ensure_future(books.charge(user, "post", session=session))
            await asyncio.sleep(SECONDS / 2)
            call.cancel()
            with pytest.raises(InvalidRequestError):
                await session.commit_transaction()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(TransactionAbortedError):
                await session.commit_transaction()
    assert await effects(shared, user) == (90, 2, 0)


async def test_an_abort_that_does_not_wait_for_the_call_leaves_nothing_of_it(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """Commands that the call sends after the abort have no effect of their own."""
    async with application.start_session() as session:
        await begun(session)
        async with failing(client, APP_NAME, {"times": 1}, failCommands=["update"], **BLOCKED):
            call = asyncio.ensure_future(books.charge(user, "post", session=session))
            await asyncio.sleep(SECONDS / 2)
            await session.abort_transaction()
            with pytest.raises(StorageError):
                await call
    assert await effects(shared, user) == UNTOUCHED


async def test_a_command_that_comes_after_the_abort_is_not_carried_out_on_its_own(
    application: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The driver takes it for a command outside any transaction. The server refuses it."""
    late = ChargeRequest(
        user_id=user,
        transaction_id=str(ObjectId()),
        action="post",
        amount=10,
        variables=None,
    )
    async with application.start_session() as session:
        await begun(session)
        await shared["orders"].insert_one({"userId": user}, session=session)
        await session.abort_transaction()
        own = books._database.session(session)
        assert own is not None
        with pytest.raises(StorageError):
            await books._committer.commit_in(late, own)
    assert await effects(shared, user) == UNTOUCHED


async def test_later_calls_in_the_transaction_are_refused_and_the_next_transaction_is_not(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """Nothing is sent for them. The session stays usable."""
    async with application.start_session() as session:
        await begun(session)
        async with failing(client, APP_NAME, {"times": 1}, failCommands=["update"], errorCode=13):
            with pytest.raises(StorageError):
                await books.charge(user, "post", session=session)
        with pytest.raises(TransactionAbortedError):
            await books.charge(user, "post", session=session)
        with pytest.raises(TransactionAbortedError):
            await books.get_balance(user, session=session)
        await session.abort_transaction()

        async with await begun(session):
            await shared["orders"].insert_one({"userId": user}, session=session)
            await books.charge(user, "post", session=session)
    assert await effects(shared, user) == CHARGED_AND_ORDERED


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_transient_failure_is_retried_although_the_callback_swallows_it(
    *,
    application: Client,
    client: Client,
    shared: Database,
    books: CreditLedger,
    user: str,
    command: str,
) -> None:
    """The commit's error has the label that ``with_transaction`` looks for."""
    attempts = 0

    async def callback(session: Any) -> None:
        nonlocal attempts
        attempts += 1
        await shared["orders"].insert_one({"userId": user}, session=session)
        async with failing(
            client,
            APP_NAME,
            {"times": 1} if attempts == 1 else "off",
            failCommands=[command],
            closeConnection=True,
        ):
            with contextlib.suppress(StorageError):
                await books.charge(user, "post", session=session)

    async with application.start_session() as session:
        if isinstance(application, MotorApplication):
            await with_motor_transaction(session, callback)
        else:
            await session.with_transaction(callback)
    assert attempts == 2
    assert await effects(shared, user) == CHARGED_AND_ORDERED


async def test_the_user_is_unlocked_although_the_application_keeps_its_transaction_open(
    application: Client, client: Client, shared: Database, books: CreditLedger, user: str
) -> None:
    """The ledger itself aborts on the server, in time for other callers."""
    async with application.start_session() as session:
        await begun(session)
        async with failing(client, APP_NAME, {"times": 1}, failCommands=["insert"], **BLOCKED):
            await time_out(books.charge(user, "post", session=session))
            await books.charge(user, "post")
    assert await effects(shared, user) == (90, 2, 0)


@pytest.mark.drivers("pymongo")
async def test_a_client_strict_about_the_stable_api_aborts_too(
    client: Client, replica_set_uri: str, shared: Database, user: str
) -> None:
    """A missed deadline blocks no user, although version 1 has no ``killSessions``."""
    uri = with_options(replica_set_uri, appName="strict")
    async with AsyncMongoClient[Row](
        uri, tz_aware=True, server_api=ServerApi("1", strict=True)
    ) as strict:
        config = prices(operation_timeout_seconds=SECONDS)
        async with CreditLedger(strict[shared.name], config) as hasty:
            await hasty.ensure_indexes()
            async with failing(client, "strict", {"times": 1}, failCommands=["insert"], **BLOCKED):
                with pytest.raises(StorageError):
                    await hasty.charge(user, "post", idempotency_key=user)
            await check_that_no_transaction_stays_open(client)
            async with CreditLedger(strict[shared.name], prices()) as patient:
                charge = await patient.charge(user, "post", idempotency_key=user)
                assert (charge.balance_after, charge.replayed) == (90, False)
                async with strict.start_session() as session, await session.start_transaction():
                    await patient.charge(user, "post", session=session)
                assert await patient.get_balance(user) == 80

"""What an application can pass in: its Motor client and sessions. Other objects are refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from mongomock_motor import AsyncMongoMockClient
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import AsyncMongoClient, MongoClient

from credit_mongo import (
    CollectionNames,
    ConfigurationError,
    CreditConfig,
    CreditError,
    CreditLedger,
    InvalidRequestError,
    LedgerBusyError,
)
from credit_mongo.drivers import AnyDatabase, as_database
from credit_mongo.maintenance.cleanup import clean_up
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.roles import ensure_roles
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.testing import mock_ledger

LATER = datetime.now(timezone.utc) + timedelta(days=30)
NAMES = CollectionNames()
Call = Callable[[CreditLedger, Any], Awaitable[Any]]


async def _revoke(ledger: CreditLedger, s: Any) -> None:
    opening = (await ledger.get_history("u", session=s))[-1]
    await ledger.revoke(opening.transaction_id, 1, action="chargeback", session=s)


async def _hold(ledger: CreditLedger, s: Any) -> str:
    hold = await ledger.place_hold("u", "generate-post", session=s)
    return hold.hold_id


async def _extend(ledger: CreditLedger, s: Any) -> None:
    await ledger.extend_hold(await _hold(ledger, s), ttl=90, used=1, session=s)


async def _capture(ledger: CreditLedger, s: Any) -> None:
    await ledger.capture_hold(await _hold(ledger, s), amount=3, session=s)


async def _release(ledger: CreditLedger, s: Any) -> None:
    await ledger.release_hold(await _hold(ledger, s), session=s)


async def _get_hold(ledger: CreditLedger, s: Any) -> None:
    await ledger.get_hold(await _hold(ledger, s), session=s)


CALLS: dict[str, Call] = {
    "create_user": lambda ledger, s: ledger.create_user("new", credits=5, session=s),
    "charge": lambda ledger, s: ledger.charge("u", "generate-post", session=s),
    "grant": lambda ledger, s: ledger.grant("u", 5, action="gift", session=s),
    "refund": lambda ledger, s: ledger.refund("u", 5, action="sorry", session=s),
    "upgrade_tier": lambda ledger, s: ledger.upgrade_tier("u", "enterprise", session=s),
    "renew_tier": lambda ledger, s: ledger.renew_tier("u", membership_expires_at=LATER, session=s),
    "downgrade_tier": lambda ledger, s: ledger.downgrade_tier("u", "free", session=s),
    "revoke": _revoke,
    "set_overdraft": lambda ledger, s: ledger.set_overdraft("u", 10, session=s),
    "place_hold": _hold,
    "extend_hold": _extend,
    "capture_hold": _capture,
    "release_hold": _release,
    "get_hold": _get_hold,
    "get_holds": lambda ledger, s: ledger.get_holds("u", session=s),
    "get_user": lambda ledger, s: ledger.get_user("u", session=s),
    "get_balance": lambda ledger, s: ledger.get_balance("u", session=s),
    "get_history": lambda ledger, s: ledger.get_history("u", session=s),
    "get_audit_log": lambda ledger, s: ledger.get_audit_log("u", session=s),
    "validate_access": lambda ledger, s: ledger.validate_access("u", "generate-post", session=s),
}
WITHOUT_SESSION: dict[str, Call] = {
    "quote": lambda ledger, _: ledger.quote("u", "generate-post"),
    "ensure_indexes": lambda ledger, _: ledger.ensure_indexes(),
    "delete_user": lambda ledger, _: ledger.delete_user("u"),
}


@pytest_asyncio.fixture
async def motor(replica_set_uri: str) -> AsyncIterator[AsyncIOMotorDatabase[dict[str, Any]]]:
    """A database of an application's Motor client."""
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(replica_set_uri, tz_aware=True)
    database = client[f"test_{uuid4().hex[:12]}"]
    yield database
    await client.drop_database(database.name)
    client.close()


@pytest_asyncio.fixture
async def books(
    motor: AsyncIOMotorDatabase[dict[str, Any]], config: CreditConfig
) -> AsyncIterator[CreditLedger]:
    """A ledger on the Motor database, with a user."""
    async with CreditLedger(motor, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("u", credits=100, membership_tier="premium")
        yield ledger


# Motor's own objects


async def test_every_operation_takes_a_session_of_motor_s(
    books: CreditLedger, motor: AsyncIOMotorDatabase[dict[str, Any]]
) -> None:
    """All operations join one transaction with the application's own write, which it commits."""
    async with await motor.client.start_session() as session, session.start_transaction():
        await motor["orders"].insert_one({"user": "u"}, session=session)
        for call in CALLS.values():
            await call(books, session)
        assert (await books.get_user("u", session=session)).membership_tier == "free"
        assert (await books.get_user("u")).credits == 100
    # All that moved credits or set the overdraft.
    assert (await books.get_user("u")).seq == 10
    assert await motor["orders"].count_documents({}) == 1


@pytest.mark.parametrize("name", CALLS)
async def test_an_aborted_motor_transaction_undoes_everything(
    books: CreditLedger, motor: AsyncIOMotorDatabase[dict[str, Any]], name: str
) -> None:
    """The operations leave nothing behind."""
    if name == "downgrade_tier":
        await books.upgrade_tier("u", "enterprise")
    before = await books.get_user("u")
    async with await motor.client.start_session() as session:
        session.start_transaction()
        await CALLS[name](books, session)
        await session.abort_transaction()
    assert await books.get_user("u") == before
    assert await motor["users"].count_documents({}) == 1


async def test_one_session_of_motor_s_has_one_operation_at_a_time(
    books: CreditLedger, motor: AsyncIOMotorDatabase[dict[str, Any]]
) -> None:
    """The second is refused, and the first is not disturbed."""
    async with await motor.client.start_session() as session, session.start_transaction():
        first, second = await asyncio.gather(
            books.grant("u", 1, action="gift", session=session),
            books.grant("u", 2, action="gift", session=session),
            return_exceptions=True,
        )
        assert isinstance(second, InvalidRequestError)
        assert second.field == "session"
    assert not isinstance(first, BaseException)
    assert await books.get_balance("u") == 101


async def test_maintenance_takes_motor_s_databases(
    books: CreditLedger, motor: AsyncIOMotorDatabase[dict[str, Any]], tmp_path: Path
) -> None:
    """Every job is called as an application would."""
    charge = await books.charge("u", "generate-post", idempotency_key="k")
    await books.refund("u", 3, action="sorry", transaction_id=charge.transaction_id)
    assert (await verify(motor)).findings == ()
    await motor["users"].update_one({"_id": "u"}, {"$inc": {"credits": 7}})
    assert (await repair(motor, operator="Ada", reason="an edit")).corrections
    assert (await verify(motor)).findings == ()
    assert (await status_of(motor)).oldest_transaction_at is not None
    assert (await ensure_roles(motor, NAMES, dry_run=True)).changes
    await export_transactions(motor, tmp_path / "u.csv", format="csv", user_id="u")
    assert len((tmp_path / "u.csv").read_text().splitlines()) > 3
    assert (await usage_of(motor, LATER - timedelta(days=60), LATER)).totals.spent > 0
    assert (await clean_up(motor)).removed == 0
    assert (await books.delete_user("u")).users == 1


async def test_motor_s_threads_log_no_key_and_no_metadata(
    books: CreditLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """Motor's threads keep out of the driver's log what PyMongo keeps out of it."""
    with caplog.at_level("DEBUG", logger="pymongo.command"):
        await books.grant("u", 1, action="x", idempotency_key="hush", metadata={"a": "secret"})
        await books.get_history("u")
    assert "commitTransaction" in caplog.text
    assert "hush" not in caplog.text
    assert "secret" not in caplog.text


# Objects that are not a database


def wrong_databases() -> dict[str, tuple[Any, str]]:
    """Return wrong objects, each with a word of the advice that the error must have."""
    blocking: MongoClient[dict[str, Any]] = MongoClient(connect=False)
    return {
        "a blocking database": (blocking["app"], "AsyncMongoClient"),
        "a blocking client": (blocking, "AsyncMongoClient"),
        "a client": (AsyncMongoClient[dict[str, Any]](connect=False), r"client\['name'\]"),
        "a Motor client": (AsyncIOMotorClient[dict[str, Any]](), r"client\['name'\]"),
        "a mock client": (AsyncMongoMockClient(), r"client\['name'\]"),
        "a name": ("app", "not str"),
        "nothing": (None, "not NoneType"),
    }


@pytest.mark.parametrize("kind", wrong_databases())
async def test_a_wrong_database_object_is_refused_with_advice(
    config: CreditConfig, kind: str
) -> None:
    """The ledger refuses them when it is made, and so do the jobs."""
    database, remedy = wrong_databases()[kind]
    with pytest.raises(ConfigurationError, match=remedy):
        CreditLedger(database, config)
    for job in (verify, status_of, clean_up):
        with pytest.raises(ConfigurationError, match=remedy):
            await job(database)


async def test_pymongo_s_own_databases_pass_as_they_are(database: AnyDatabase) -> None:
    """The engine uses them directly, and adapts nothing twice."""
    assert as_database(database) is database
    adapted = as_database(AsyncMongoMockClient()["app"])
    assert as_database(adapted) is adapted


# Sessions that are not of the ledger's client


@pytest.mark.parametrize("name", CALLS)
async def test_a_session_of_another_driver_or_client_is_refused(
    books: CreditLedger, client: Any, replica_set_uri: str, name: str, config: CreditConfig
) -> None:
    """The refusal comes before anything is written, for each pair of drivers."""
    stranger: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(replica_set_uri)
    on_pymongo = CreditLedger(client["unused"], config)
    in_memory = mock_ledger(config)
    before = await books.get_audit_log("u")
    async with await stranger.start_session() as foreign, client.start_session() as pymongo_s:
        for ledger, session in (
            (books, foreign),
            (books, pymongo_s),
            (books, "session"),
            (on_pymongo, foreign),
            (in_memory, foreign),
            (in_memory, pymongo_s),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                await CALLS[name](ledger, session)
            assert caught.value.field == "session"
    stranger.close()
    assert list(await books.get_audit_log("u")) == list(before)


# After close, and on another event loop


@pytest.mark.parametrize("name", [*CALLS, *WITHOUT_SESSION])
async def test_a_closed_ledger_does_nothing_more(config: CreditConfig, name: str) -> None:
    """Every method says that the ledger is closed."""
    async with mock_ledger(config) as ledger:
        await ledger.create_user("u", credits=100, membership_tier="premium")
    with pytest.raises(LedgerBusyError, match="closed: create a new one"):
        await {**CALLS, **WITHOUT_SESSION}[name](ledger, None)


@pytest.mark.parametrize("name", [*CALLS, *WITHOUT_SESSION])
@pytest.mark.parametrize("make", ["connected", "on Motor", "in memory"])
def test_a_ledger_on_another_event_loop_is_refused(
    replica_set_uri: str, config: CreditConfig, name: str, make: str
) -> None:
    """It would otherwise hang, or fail somewhere inside the driver."""
    call = {**CALLS, **WITHOUT_SESSION}[name]

    async def begin() -> tuple[CreditLedger, Any]:
        motor: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(replica_set_uri)
        ledger = {
            "connected": lambda: CreditLedger.connect(
                replica_set_uri, database="unused", config=config
            ),
            "on Motor": lambda: CreditLedger(motor["unused"], config),
            "in memory": lambda: mock_ledger(config),
        }[make]()
        with pytest.raises(CreditError):
            await ledger.get_balance("nobody")
        return ledger, motor

    async def go_on(ledger: CreditLedger) -> None:
        with pytest.raises(ConfigurationError, match="create a new ledger for this loop"):
            await call(ledger, None)

    with closing(asyncio.new_event_loop()) as first, closing(asyncio.new_event_loop()) as second:
        ledger, motor = first.run_until_complete(begin())
        second.run_until_complete(go_on(ledger))
        first.run_until_complete(ledger.close())
        motor.close()


# The other drivers are extras


def test_neither_motor_nor_mongomock_needs_to_be_installed(tmp_path: Path) -> None:
    """Nothing imports them. Code that needs one says how to install it."""
    program = """
import sys
sys.modules.update(dict.fromkeys(("motor", "mongomock", "mongomock_motor")))
from pymongo import AsyncMongoClient
from credit_mongo import ConfigurationError, CreditConfig, CreditLedger
from credit_mongo.testing import mock_ledger
config = CreditConfig(costs={})
CreditLedger(AsyncMongoClient(connect=False)["app"], config)
try:
    CreditLedger("app", config)
except ConfigurationError as error:
    print(error)
try:
    mock_ledger(config)
except ConfigurationError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "not str" in told
    assert "pip install 'credit-mongo[mock]'" in told

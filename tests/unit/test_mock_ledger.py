"""The ledger in memory: what an application's unit tests can rely on."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from mongomock_motor import AsyncMongoMockClient
from pymongo.errors import PyMongoError

from credit_mongo import (
    CreditConfig,
    IdempotencyConflictError,
    InsufficientCreditsError,
    UserNotFoundError,
)
from credit_mongo.drivers import as_database
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.testing import mock_ledger
from credit_mongo.testing.clocks import MovableClock

CONFIG = CreditConfig(costs={"post": {"default": 10}}, idempotency={"ttl_seconds": 60})
Client: TypeAlias = "AsyncMongoMockClient[dict[str, Any]]"
COLLECTIONS = ("users", "transactions", "audit_logs", "idempotency_records")


async def all_rows(client: Client) -> dict[str, list[dict[str, Any]]]:
    """Return every row of the database."""
    return {name: await client["app"][name].find().to_list(None) for name in COLLECTIONS}


async def test_an_application_finds_the_rows_in_its_own_mock() -> None:
    """An application can pass its own client's database and look there."""
    client: Client = AsyncMongoMockClient()
    async with mock_ledger(CONFIG, database=client["app"]) as ledger:
        await ledger.create_user("u", credits=15)
        await ledger.charge("u", "post")
    [user] = await client["app"]["users"].find().to_list(None)
    assert (user["credits"], user["seq"]) == (5, 2)


async def test_a_block_pays_for_what_it_used() -> None:
    """Holds work in memory, too: one that ends, one that fails, and one that nothing used."""
    async with mock_ledger(CONFIG) as ledger:
        await ledger.create_user("u", credits=100)
        async with ledger.hold("u", "post", amount=60) as hold:
            hold.use(amount=45)
        assert hold.result is not None
        assert (hold.result.cost, hold.result.balance_after) == (45, 55)
        with pytest.raises(ZeroDivisionError):
            async with ledger.hold("u", "post"):
                raise ZeroDivisionError
        user = await ledger.get_user("u")
        assert (user.credits, user.held) == (55, 0)


async def test_lots_and_holds_end_by_the_ledgers_clock() -> None:
    """What a lot has left and what a hold keeps is gone at their ends, as on a server."""
    clock = MovableClock()
    async with mock_ledger(CONFIG, clock=clock) as ledger:
        await ledger.create_user("u", credits=30)
        end = clock() + timedelta(hours=1)
        for number in range(20):
            await ledger.grant("u", 5, action="trial", expires_at=end, source=str(number))
        hold = await ledger.place_hold("u", "post", amount=60, ttl=60)
        await ledger.extend_hold(hold.hold_id, used=12)
        clock.advance(timedelta(seconds=61))
        user = await ledger.get_user("u")
        assert (user.credits, user.available, len(user.lots)) == (118, 118, 18)
        assert (await ledger.charge("u", "post", amount=8)).balance_after == 110
        clock.advance(timedelta(hours=1))
        assert (await ledger.charge("u", "post", amount=1)).balance_after == 29
        rows = list(await ledger.get_history("u"))
        assert (await ledger.get_hold(hold.hold_id)).status == "expired"
        assert sum(row.amount for row in rows) == 29
        assert sum(row.amount for row in rows if row.operation == "expire") == -80


async def test_each_ledger_starts_empty_and_shares_nothing() -> None:
    """Without a given database, each ledger has its own."""
    async with mock_ledger(CONFIG) as one, mock_ledger(CONFIG) as other:
        await one.create_user("u")
        with pytest.raises(UserNotFoundError):
            await other.get_user("u")


async def test_keys_expire_by_the_ledgers_clock() -> None:
    """A key counts until it expires by the ledger's clock, however old it is by the computer's."""
    now = datetime(2001, 2, 3, tzinfo=timezone.utc)
    async with mock_ledger(CONFIG, clock=lambda: now) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("u", credits=30)
        first = await ledger.charge("u", "post", idempotency_key="k")
        assert first.created_at == now
        now += timedelta(seconds=59)
        assert (await ledger.charge("u", "post", idempotency_key="k")).replayed
        now += timedelta(seconds=1)
        assert (await ledger.charge("u", "post", idempotency_key="k")).balance_after == 10


async def test_a_failed_write_leaves_nothing_behind() -> None:
    """A batch with a known key is written twice: the first writes are undone row by row."""
    client: Client = AsyncMongoMockClient()
    async with mock_ledger(CONFIG, database=client["app"]) as ledger:
        await ledger.create_user("a", credits=100)
        await ledger.charge("a", "post", idempotency_key="k")
        before = await all_rows(client)
        with pytest.raises(IdempotencyConflictError):
            await ledger.charge("a", "post", amount=11, idempotency_key="k")
        after = await all_rows(client)
        refusal = after["audit_logs"].pop()
        assert (after, refusal["status"]) == (before, "failed")


async def test_a_server_failure_can_be_simulated() -> None:
    """Whatever was written before the failure is undone, and the retry finds the books in order."""
    client: Client = AsyncMongoMockClient()
    database = as_database(client["app"])
    async with mock_ledger(CONFIG, database=client["app"]) as ledger:
        await ledger.create_user("a", credits=100)
        before = await all_rows(client)
        async with database.client.start_session() as session:
            await session.start_transaction()
            users = database["users"]
            await users.insert_one({"_id": "b"}, session=session)
            await users.update_one({"_id": "a"}, {"$set": {"credits": 1}}, session=session)
            await users.find_one_and_update(
                {"_id": "c"}, {"$inc": {"n": 1}}, upsert=True, session=session
            )
            await users.find_one_and_delete({"_id": "b"}, session=session)
            await database["audit_logs"].delete_many({}, session=session)
            await session.abort_transaction()
        assert await all_rows(client) == before
        assert (await ledger.charge("a", "post")).balance_after == 90


async def test_concurrent_callers_get_their_own_results() -> None:
    """As many calls succeed as the balance allows, and each gets its own result."""
    async with mock_ledger(CONFIG) as ledger:
        await ledger.create_user("u", credits=55)
        outcomes = await asyncio.gather(
            *[ledger.charge("u", "post", idempotency_key=f"k-{n % 10}") for n in range(20)],
            return_exceptions=True,
        )
        refused = [o for o in outcomes if isinstance(o, InsufficientCreditsError)]
        replayed = [o for o in outcomes if getattr(o, "replayed", False)]
        assert (len(refused), len(replayed)) == (10, 5)
        assert await ledger.get_balance("u") == 5


async def test_metadata_comes_back_as_a_server_gives_it() -> None:
    """Metadata goes through BSON: whole milliseconds, with a time zone, and UUIDs."""
    moment = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
    given = {"at": moment, "id": UUID(int=7), "deep": {"a.b": [1, {"$ref": "x", "$id": 1}]}}
    async with mock_ledger(CONFIG) as ledger:
        await ledger.create_user("u", credits=10, metadata=given)
        [row] = await ledger.get_history("u")
    assert row.metadata is not None
    assert row.metadata["at"] == moment.replace(microsecond=678000)
    assert row.metadata["id"] == UUID(int=7)


async def test_pages_go_on_where_they_ended() -> None:
    """Cursors lead from page to page, in the audit log too."""
    async with mock_ledger(CONFIG) as ledger:
        await ledger.create_user("u", credits=100)
        for number in range(7):
            await ledger.grant("u", number + 1, action="gift")
        pages: tuple[Any, ...] = (ledger.get_history, ledger.get_audit_log)
        for read in pages:
            page = await read("u", limit=3)
            seen = list(page)
            while page.next_cursor is not None:
                page = await read("u", limit=3, cursor=page.next_cursor)
                seen += page
            moments = [row.created_at for row in seen]
            assert len(set(map(repr, seen))) == 8
            assert moments == sorted(moments, reverse=True)


async def test_an_unsupported_job_raises_a_typed_error() -> None:
    """The maintenance jobs need a server."""
    client: Client = AsyncMongoMockClient()
    database = client["app"]
    async with mock_ledger(CONFIG, database=database) as ledger:
        await ledger.create_user("u")
    with pytest.raises(PyMongoError, match="it needs a server"):
        await verify(database)
    with pytest.raises(PyMongoError, match="it needs a server"):
        await status_of(database)


async def test_a_ledger_shows_where_its_credits_are() -> None:
    """``repr`` shows the collections and whether the ledger is open, in one line."""
    client: Client = AsyncMongoMockClient()
    async with mock_ledger(CONFIG, database=client["app"]) as ledger:
        shown = (
            "<CreditLedger database='app' users='users' transactions='transactions' "
            "decimal_places=0 {}>"
        )
        assert repr(ledger) == shown.format("open")
    assert repr(ledger) == shown.format("closed")

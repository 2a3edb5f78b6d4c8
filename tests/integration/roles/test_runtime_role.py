"""The runtime role can do all that a ledger does, and needs each of its privileges."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from credit_mongo import (
    ConfigurationError,
    CreditError,
    CreditLedger,
    InsufficientCreditsError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.maintenance.roles import credit_roles
from tests.integration.access_control import UNAUTHORIZED, GuardedReplicaSet
from tests.integration.promises import Client, Database, Row, check_promises, rows
from tests.integration.roles.grants import (
    APP,
    COLLECTIONS,
    FUTURE,
    SETTINGS,
    WORK,
    Clock,
    config,
    without,
)


class Watched:
    """A ledger that notes which of its methods have succeeded."""

    def __init__(self, ledger: CreditLedger, called: set[str]) -> None:
        self._ledger = ledger
        self._called = called

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            result = await getattr(self._ledger, name)(*arguments, **options)
            self._called.add(name)
            return result

        return call


async def live(ledger: Any, client: Client, clock: Clock) -> None:
    """Do all that a ledger does, with keys, refusals and sessions."""
    await ledger.create_user("u", credits=50, membership_tier="free", idempotency_key="c")
    charge = await ledger.charge("u", "post", idempotency_key="k", metadata={"a": 1})
    assert (await ledger.charge("u", "post", idempotency_key="k")).replayed
    clock.ahead = timedelta(days=2)  # The key has expired, but the TTL sweep has not removed it.
    assert not (await ledger.charge("u", "post", idempotency_key="k")).replayed
    with pytest.raises(InsufficientCreditsError):
        await ledger.charge("u", "post", amount=1000, idempotency_key="r")
    with pytest.raises(UserNotFoundError):
        await ledger.charge("nobody", "post")
    await ledger.refund("u", 3, action="sorry", transaction_id=charge.transaction_id)
    await ledger.grant("u", 5, action="bonus")
    await ledger.upgrade_tier("u", "premium", membership_expires_at=FUTURE)
    await ledger.renew_tier("u", membership_expires_at=FUTURE)
    await ledger.quote("u", "post")
    await ledger.validate_access("u", "view")
    await ledger.downgrade_tier("u", "free")
    await ledger.get_user("u")
    page = await ledger.get_history("u", limit=2)
    await ledger.get_history("u", limit=2, cursor=page.next_cursor)
    page = await ledger.get_audit_log("u", limit=2, status="success")
    await ledger.get_audit_log("u", limit=2, cursor=page.next_cursor)
    async with client.start_session() as session:
        for ending in ("abort_transaction", "commit_transaction"):
            await session.start_transaction()
            await ledger.grant("u", 9, action="x", session=session, idempotency_key=ending)
            with pytest.raises(InsufficientCreditsError):
                await ledger.charge("u", "post", amount=1000, session=session)
            assert await ledger.get_balance("u", session=session) == 14
            await getattr(session, ending)()
    await live_with_lots_and_holds(ledger, clock)


async def live_with_lots_and_holds(ledger: Any, clock: Clock) -> None:
    """Do what is about lots, overdrafts and holds. Time ends some of them."""
    soon = clock() + timedelta(seconds=30)
    granted = await ledger.grant("u", 100, action="gift", expires_at=soon)
    await ledger.revoke(granted.transaction_id, 10, action="chargeback")
    await ledger.set_overdraft("u", 50)
    hold = await ledger.place_hold("u", "post", amount=20, idempotency_key="h")
    await ledger.extend_hold(hold.hold_id, used=5)
    await ledger.capture_hold(hold.hold_id, amount=8)
    other = await ledger.place_hold("u", "post", amount=20)
    await ledger.release_hold(other.hold_id)
    last = await ledger.place_hold("u", "post", amount=20, ttl=10)
    clock.ahead += timedelta(minutes=1)
    assert (await ledger.get_hold(last.hold_id)).status == "expired"
    assert len(await ledger.get_holds("u")) == 3
    await ledger.grant("u", 1, action="x")
    assert (await ledger.get_user("u")).lots == ()


async def test_the_runtime_role_can_do_all_that_the_ledger_does(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Every public method succeeds at least once, except the setup, which has its own role."""
    called: set[str] = set()
    clock = Clock()
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(), clock=clock) as ledger,
    ):
        with pytest.raises(UserNotFoundError):
            await ledger.get_balance("u")
        await live(Watched(ledger, called), client, clock)
    public = {
        name
        for name, _ in inspect.getmembers(CreditLedger, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert public - called == {"ensure_indexes", "delete_user", "close"}
    assert await rows(administrator[APP], "idempotency_records")


async def test_the_runtime_role_is_enough_on_the_ledgers_own_connection(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """The ledger connects by URI, by the machine's clock, and keeps its promises."""
    uri = guarded.uri_of("creditRuntime", APP)
    async with CreditLedger.connect(uri, database=APP, config=config()) as ledger:
        await ledger.create_user("u", credits=50, idempotency_key="c")
        await asyncio.gather(
            *(ledger.charge("u", "post", idempotency_key=str(n)) for n in range(5))
        )
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge("u", "post", idempotency_key="more")
    await check_promises(administrator[APP])


async def test_the_runtime_role_can_take_turns_among_processes(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Several clients call for one user at once: they take turns, and all get their credits."""
    async with (
        guarded.client_of("creditRuntime", APP) as one,
        guarded.client_of("creditRuntime", APP) as two,
        CreditLedger(one[APP], config()) as first,
        CreditLedger(two[APP], config()) as second,
    ):
        await first.create_user("u")
        granted = 0
        while not await rows(administrator[APP], "turns") or granted < 200:
            await asyncio.gather(
                *(ledger.grant("u", 1, action="x") for ledger in (first, second) for _ in range(50))
            )
            granted += 100
        assert await first.get_balance("u") == granted
    [turn] = [each for each in await rows(administrator[APP], "turns") if each["_id"] == "turn"]
    assert turn["taken"] > 0
    await check_promises(administrator[APP])


async def test_a_cancelled_caller_leaves_no_transaction_open(
    guarded: GuardedReplicaSet, administrator: Client
) -> None:
    """Ending one's own sessions needs no privilege."""
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(operation_timeout_seconds=0.5)) as ledger,
    ):
        await ledger.create_user("u", credits=50)
        async with administrator.start_session() as session:
            await session.start_transaction()
            await administrator[APP]["users"].update_one(
                {"_id": "u"}, {"$set": {"mine": 1}}, session=session
            )
            with pytest.raises(StorageError):
                await ledger.charge("u", "post")
            await session.abort_transaction()
    for _ in range(100):
        status = await administrator.admin.command("serverStatus")
        if not status["transactions"]["currentOpen"]:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("a transaction is still open")


SECRET = "key-" + "of-a-request"


@pytest.mark.parametrize(
    ("collection", "action"),
    [
        (name, action)
        for name, actions in WORK["creditRuntime"].items()
        # Privileges for repairs, for FastAPI and for opening a ledger have their own tests.
        if name not in ("archive_borders", "paid_requests", SETTINGS)
        for action in sorted(actions)
    ],
)
@pytest.mark.cases(5)
async def test_without_any_one_privilege_some_calls_are_refused_and_the_rest_succeed(
    guarded: GuardedReplicaSet, administrator: Client, collection: str, action: str
) -> None:
    """Each privilege is needed. A refused call writes nothing, and the books stay right."""
    database = administrator[APP]
    clock = Clock()
    runtime = credit_roles(APP)[0]
    async with (
        guarded.client_of("creditRuntime", APP) as client,
        CreditLedger(client[APP], config(), clock=clock) as ledger,
    ):
        await ledger.create_user("u", credits=50, membership_tier="free")
        await ledger.charge("u", "post", idempotency_key="over")
        hold = await ledger.place_hold("u", "post", amount=1, ttl=timedelta(days=3).total_seconds())
        clock.ahead = timedelta(days=2)
        await database.command(
            {
                "updateRole": runtime.name,
                "privileges": without(runtime, collection, action),
                "roles": [],
            }
        )
        done = [await outcome_of(database, call) for call in some_calls(ledger, "v", hold.hold_id)]
        loop = asyncio.get_running_loop()
        for number in (1, 2):  # Take turns, as after conflicts with another process.
            ledger._committer._turns.met_conflict(number, loop.time())
        done += [await outcome_of(database, call) for call in some_calls(ledger, "w", hold.hold_id)]
    refused = [each for each in done if each == "unauthorized"]
    assert refused, "nothing needs it"
    assert len(refused) < len(done), "nothing goes on without it"


def some_calls(ledger: CreditLedger, name: str, hold_id: str) -> list[Callable[[], Awaitable[Any]]]:
    """Return calls that together need every privilege."""
    return [
        lambda: ledger.create_user(name),
        lambda: ledger.charge("u", "post", idempotency_key="over"),
        lambda: ledger.grant("u", 1, action="x", idempotency_key=SECRET + name),
        lambda: ledger.charge("u", "post", amount=1000, idempotency_key=f"{SECRET} {name}"),
        lambda: ledger.grant("u", 1, action="x"),
        lambda: ledger.place_hold("u", "post", amount=1),
        lambda: ledger.extend_hold(hold_id, used=1),
        lambda: ledger.get_holds("u"),
        lambda: ledger.get_balance("u"),
        lambda: ledger.get_history("u"),
        lambda: ledger.get_audit_log("u"),
        lambda: ledger.get_history("u", include_archived=True),
        lambda: ledger.get_audit_log("u", include_archived=True),
    ]


async def outcome_of(database: Database, call: Callable[[], Awaitable[Any]]) -> str:
    """Return a call's outcome, after checking that a missing privilege left no trace."""
    before = await books(database)
    try:
        await call()
    except StorageError as error:
        shown = "".join(traceback.format_exception(error))
        cause = error.__cause__
        code = cause.code if isinstance(cause, OperationFailure) else None
    except CreditError as error:
        return error.code
    else:
        return "done"
    assert code == UNAUTHORIZED
    assert (
        SECRET not in shown
    )  # The message hides it, although the server quotes the refused command.
    assert await books(database) == before
    return "unauthorized"


async def books(database: Database) -> list[list[Row]]:
    """Return all rows except those of turns."""
    return [await rows(database, name) for name in COLLECTIONS if name != "turns"]


async def test_a_role_older_than_the_settings_keeps_working_with_a_warning(
    guarded: GuardedReplicaSet, administrator: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns that it cannot compare the settings. With today's role it compares them."""
    runtime = credit_roles(APP)[0]
    other = config(decimal_places=3)
    async with guarded.client_of("creditRuntime", APP) as client:
        with pytest.raises(ConfigurationError, match="decimal_places"):
            await CreditLedger(client[APP], other).create_user("u")
        privileges = without(runtime, SETTINGS, "find")
        await administrator[APP].command(
            {"updateRole": runtime.name, "privileges": privileges, "roles": []}
        )
        async with CreditLedger(client[APP], config()) as ledger:
            await ledger.create_user("u", credits=50)
            assert (await ledger.charge("u", "post")).cost == 10
    told = [record.getMessage() for record in caplog.records if SETTINGS in record.getMessage()]
    assert len(told) == 1
    assert "run credit-mongo roles --create" in told[0]

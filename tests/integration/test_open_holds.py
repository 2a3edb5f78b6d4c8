"""Holds that are open while a block runs: every way in, every way out, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from credit_mongo import (
    CommitOutcomeUnknownError,
    CreditConfig,
    CreditError,
    CreditLedger,
    Event,
    HoldClosedError,
    HoldExceededError,
    InsufficientCreditsError,
    InvalidRequestError,
    LedgerBusyError,
    MissingVariableError,
    OpenHold,
    OperationEnded,
    RequestInProgressError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.testing.clocks import MovableClock
from tests.integration.promises import Client, Database, Row, failing, rows, with_options

APP = "open-holds"
COMMIT = "commitTransaction"


@dataclass
class House:
    """A ledger with Ann, who has 100 credits, a clock that tests move, and what it told."""

    ledger: CreditLedger
    database: Database
    client: Client
    clock: MovableClock
    told: list[Event] = field(default_factory=list)

    def hold(self, **options: Any) -> OpenHold:
        """Hold 60 of Ann's credits, or what the options say."""
        if "variables" not in options:
            options.setdefault("amount", 60)
        return self.ledger.hold("ann", "ai-completion", **options)

    def operations(self) -> list[tuple[str, str]]:
        """The operations so far, in the order of their ends, and how they ended."""
        ended = [event for event in self.told if isinstance(event, OperationEnded)]
        return [(event.operation, event.code) for event in ended]

    async def until(self, operation: str, code: str = "OK", times: int = 1) -> None:
        """Wait until the operation has ended so, so often."""
        for _ in range(2000):
            if self.operations().count((operation, code)) >= times:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.operations())

    async def settled(self) -> None:
        """Wait for what goes on in the background."""
        while work := self.ledger._open_holds._work:
            await asyncio.wait(work)

    async def paid(self) -> list[int]:
        """What each capture took, in order. Nothing may be held any more."""
        user = (await rows(self.database, "users"))[0]
        captures = await rows(self.database, "transactions", operation="capture")
        taken = [-row["amount"] for row in sorted(captures, key=lambda row: int(row["seq"]))]
        assert user["credits"] == 100 - sum(taken)
        holds = await rows(self.database, "holds")
        assert not [hold for hold in holds if hold["status"] == "active"]
        assert sum(hold["captured"] for hold in holds) == sum(taken)
        assert not user.get("creditExtras", {}).get("holds")
        return taken

    async def refusals(self) -> list[str]:
        """The operations that the audit log has as failed."""
        return [
            row["operation"] for row in await rows(self.database, "audit_logs", status="failed")
        ]


@pytest_asyncio.fixture(scope="module")
async def disturbed_client(replica_set_uri: str) -> AsyncIterator[Client]:
    """A client whose commands can be made to fail."""
    uri = with_options(replica_set_uri, appName=APP)
    async with AsyncMongoClient[Row](uri, tz_aware=True) as client:
        yield client


@pytest_asyncio.fixture
async def house(
    ledger: CreditLedger, database: Database, config: CreditConfig, disturbed_client: Client
) -> AsyncIterator[House]:
    """A ledger whose commands can be made to fail."""
    told: list[Event] = []
    clock = MovableClock()
    quick = config.model_copy(update={"operation_timeout_seconds": 1.0})
    own = disturbed_client[database.name]
    async with CreditLedger(own, quick, clock=clock, observer=told.append) as disturbed:
        await disturbed.create_user("ann", credits=100)
        yield House(disturbed, database, ledger._database.client, clock, told)


# Every way out


async def test_the_end_captures_what_was_used(house: House) -> None:
    """What was used is a total. The rest is released, and the result is that of the capture."""
    async with house.hold(metadata={"request": 7}) as hold:
        assert hold.result is None
        assert (await house.ledger.get_user("ann")).available == 40
        for used in range(46):
            hold.use(amount=used)
    assert hold.result is not None
    assert (hold.result.cost, hold.result.captured, hold.result.late) == (45, 45, False)
    assert (hold.result.balance_before, hold.result.balance_after) == (100, 55)
    [row] = await rows(house.database, "transactions", operation="capture")
    assert str(row["_id"]) == hold.result.transaction_id
    assert (str(row["holdId"]), row["metadata"]) == (hold.hold_id, {"request": 7})
    assert await house.paid() == [45]


async def _fails(hold: OpenHold) -> None:
    raise ZeroDivisionError


async def _is_cancelled(hold: OpenHold) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize("interruption", [_fails, _is_cancelled])
@pytest.mark.parametrize(("used", "expected"), [(None, []), (0, []), (25, [25])])
async def test_an_interruption_captures_what_was_used_and_no_more(
    house: House,
    interruption: Callable[[OpenHold], Awaitable[None]],
    used: int | None,
    expected: list[int],
) -> None:
    """The block's own error or cancellation goes on to the caller."""

    async def work() -> None:
        async with house.hold() as hold:
            if used is not None:
                hold.use(amount=used)
            await interruption(hold)

    [outcome] = await asyncio.gather(asyncio.create_task(work()), return_exceptions=True)
    assert isinstance(outcome, ZeroDivisionError | asyncio.CancelledError)
    assert await house.paid() == expected
    status = "released" if used is None else "captured"
    assert [hold["status"] for hold in await rows(house.database, "holds")] == [status]


async def test_without_use_the_end_captures_the_whole_hold(house: House) -> None:
    """The work was done at the price that was agreed on."""
    async with house.hold() as hold:
        pass
    assert hold.result is not None
    assert await house.paid() == [hold.result.cost] == [60]


async def test_a_stream_that_is_closed_pays_what_it_sent(house: House) -> None:
    """A generator that its reader closes half-way, or forgets, ends like an error."""

    async def stream() -> AsyncIterator[int]:
        async with house.hold(amount=20) as hold:
            for number in range(1, 21):
                hold.use(amount=number)
                yield number

    closed = stream()
    assert [await anext(closed) for _ in range(7)][-1] == 7
    await closed.aclose()  # type: ignore[attr-defined]
    forgotten = stream()
    await anext(forgotten)
    del forgotten
    await house.until("capture", times=2)
    assert await house.paid() == [7, 1]


async def test_use_sends_nothing(house: House) -> None:
    """Thousands of calls are two transactions: the hold and its capture."""
    async with house.hold() as hold:
        for number in range(10_000):
            hold.use(amount=number // 200)
            if number % 1000 == 0:
                await asyncio.sleep(0)
    assert house.operations() == [("create_user", "OK"), ("place_hold", "OK"), ("capture", "OK")]
    assert await house.paid() == [49]


async def test_the_price_is_that_of_the_hold_s_beginning(house: House) -> None:
    """A tier that changes meanwhile has another price, for others."""
    async with house.hold(variables={"token": 40_000}) as hold:
        await house.ledger.upgrade_tier("ann", "premium")
        hold.use(variables={"token": 10_000})
        assert hold.used == 20
    [row] = await rows(house.database, "audit_logs", operation="capture")
    assert row["details"]["formula"] == "{token} * 0.001 + 10"
    assert row["details"]["variables"] == {"token": "10000"}
    assert hold.result is not None
    assert (hold.result.cost, hold.result.uncollected) == (20, 0)


# Heartbeats


async def test_heartbeats_extend_the_hold_and_report_what_was_used(house: House) -> None:
    """If the process dies after one, its report is what is paid."""
    async with house.hold(ttl=1) as hold:
        before = (await house.ledger.get_hold(hold.hold_id)).expires_at
        hold.use(amount=35)
        house.clock.advance(timedelta(seconds=0.5))
        await house.until("extend_hold")
        found = await house.ledger.get_hold(hold.hold_id)
        assert (found.used, found.expires_at) == (35, before + timedelta(seconds=0.5))
        house.clock.advance(timedelta(seconds=0.9))
        assert (await house.ledger.get_hold(hold.hold_id)).status == "active"
    assert await house.paid() == [35]
    assert await house.refusals() == []


async def test_a_heartbeat_on_its_way_comes_before_the_settlement(house: House) -> None:
    """The end of the block waits for it, so none finds the hold settled."""
    async with house.hold(ttl=3) as hold:
        hold.use(amount=10)
        delay = {"failCommands": ["find"], "blockConnection": True, "blockTimeMS": 400}
        async with failing(house.client, APP, {"times": 1}, **delay):
            await asyncio.sleep(1.2)  # a third of the ttl, and the heartbeat is on its way
            hold.use(amount=20)
    assert [name for name, _ in house.operations()][2:] == ["extend_hold", "capture"]
    assert (await house.paid(), await house.refusals()) == ([20], [])


async def test_no_heartbeat_follows_the_settlement(house: House) -> None:
    """Not even much later."""
    async with house.hold(ttl=1) as hold:
        hold.use(amount=10)
    await asyncio.sleep(0.5)
    assert [name for name, _ in house.operations()][1:] == ["place_hold", "capture"]
    assert await house.refusals() == []


async def test_heartbeats_survive_an_outage(house: House) -> None:
    """The block hears nothing of it, and the next heartbeat reports what was used meanwhile."""
    async with house.hold(ttl=1) as hold:
        error = {"failCommands": ["find"], "errorCode": 13}
        async with failing(house.client, APP, **error):
            await house.until("extend_hold", StorageError.code, times=2)
            hold.use(amount=15)
        await house.until("extend_hold")
        assert (await house.ledger.get_hold(hold.hold_id)).used == 15
    assert await house.paid() == [15]


async def test_a_hold_that_time_has_ended_is_still_paid(house: House) -> None:
    """What was reported was paid at the end of its time. The rest is captured late."""
    async with house.hold(ttl=1) as hold:
        hold.use(amount=12)
        await house.until("extend_hold")
        house.clock.advance(timedelta(seconds=5))
        await house.until("extend_hold", HoldClosedError.code)
        hold.use(amount=50)
        await asyncio.sleep(0.4)  # a heartbeat that was refused was the last
    assert hold.result is not None
    assert (hold.result.cost, hold.result.captured, hold.result.late) == (38, 50, True)
    assert await house.paid() == [12, 38]
    assert await house.refusals() == ["extend_hold"]


async def test_captures_by_hand_go_with_the_block(house: House) -> None:
    """An application may capture on its way, and more than it has noted."""
    async with house.hold(ttl=1) as hold:
        hold.use(amount=5)
        await house.ledger.capture_hold(hold.hold_id, amount=20, final=False)
        await house.until("extend_hold", times=2)
    assert await house.paid() == [20]


# Trouble at the end


async def test_a_settlement_of_unknown_outcome_is_repeated(house: House) -> None:
    """The commit is applied each time and reported as failed. One capture, with its own result."""
    applied = {"code": 50, "codeName": "MaxTimeMSExpired", "errmsg": "x"}
    async with house.hold() as hold:
        hold.use(amount=30)
        point = failing(house.client, APP, failCommands=[COMMIT], writeConcernError=applied)
        await point.__aenter__()
        ending = asyncio.create_task(_later(house, point))
    await ending
    assert house.operations()[-2:] == [
        ("capture", CommitOutcomeUnknownError.code),
        ("capture", "OK"),
    ]
    assert hold.result is not None
    assert (hold.result.cost, hold.result.captured, hold.result.replayed) == (30, 30, True)
    assert await house.paid() == [30]


async def _later(house: House, point: Any) -> None:
    await house.until("capture", CommitOutcomeUnknownError.code)
    await point.__aexit__(None, None, None)


async def test_an_outage_at_the_end_is_told_and_outlived(house: House) -> None:
    """The caller learns that the hold isn't settled yet. It is as soon as the database is back."""
    point = failing(house.client, APP, failCommands=["find"], errorCode=13)

    async def work() -> None:
        async with house.hold() as hold:
            hold.use(amount=30)
            await point.__aenter__()

    with pytest.raises(StorageError):
        await work()
    await point.__aexit__(None, None, None)
    await house.until("capture")
    assert await house.paid() == [30]


async def test_an_outage_at_the_end_does_not_hide_the_block_s_error(house: House) -> None:
    """The settlement goes on behind it."""
    point = failing(house.client, APP, failCommands=["find"], errorCode=13)

    async def work() -> None:
        async with house.hold() as hold:
            hold.use(amount=30)
            await point.__aenter__()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    await point.__aexit__(None, None, None)
    await house.until("capture")
    assert await house.paid() == [30]


@pytest.mark.parametrize("turns", range(0, 30, 3))
async def test_a_caller_cancelled_at_the_beginning_leaves_no_hold(house: House, turns: int) -> None:
    """Before, while or after it is placed: what was placed is released."""

    async def work() -> None:
        async with house.hold():
            await asyncio.sleep(60)

    working = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    working.cancel()
    await asyncio.wait({working})
    await house.settled()
    assert await house.paid() == []


@pytest.mark.parametrize("turns", range(0, 30, 5))
async def test_a_caller_cancelled_at_the_end_pays_once(house: House, turns: int) -> None:
    """Even if it is cancelled twice."""
    is_ending = asyncio.Event()

    async def work() -> None:
        async with house.hold() as hold:
            hold.use(amount=30)
            is_ending.set()

    working = asyncio.create_task(work())
    await is_ending.wait()
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    working.cancel()
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait({working})
    await house.settled()
    assert await house.paid() == [30]


async def test_a_beginning_of_unknown_outcome_leaves_no_hold(house: House) -> None:
    """The block is not run, and the hold that was placed after all is released."""
    applied = {"code": 50, "codeName": "MaxTimeMSExpired", "errmsg": "x"}
    async with failing(house.client, APP, failCommands=[COMMIT], writeConcernError=applied):
        with pytest.raises(CommitOutcomeUnknownError):
            async with house.hold():
                raise AssertionError
    await house.until("release_hold")
    assert await house.paid() == []


# The ledger and others


async def test_closing_the_ledger_settles_what_is_open(house: House) -> None:
    """As an interruption does. What is used after that is refused, so no work is done unpaid."""
    async with house.hold(amount=30) as hold:
        hold.use(amount=10)
        with pytest.raises(LedgerBusyError):
            async with house.hold(amount=30):
                await house.ledger.close()
        with pytest.raises(HoldClosedError):
            hold.use(amount=20)
    assert hold.result is not None
    assert hold.result.cost == 10
    assert await house.paid() == [10]
    assert sorted(hold["status"] for hold in await rows(house.database, "holds")) == [
        "captured",
        "released",
    ]


async def test_a_repeated_call_does_not_run_its_block(house: House) -> None:
    """Not while the first runs, and not when it was paid. The hold stays what it was."""
    async with house.hold(idempotency_key="k") as hold:
        with pytest.raises(RequestInProgressError):
            async with house.hold(idempotency_key="k"):
                raise AssertionError
        hold.use(amount=33)
    with pytest.raises(HoldClosedError, match="captured"):
        async with house.hold(idempotency_key="k"):
            raise AssertionError
    assert await house.paid() == [33]


async def test_a_hold_settled_by_hand_ends_quietly_unless_something_is_unpaid(house: House) -> None:
    """Whoever releases a hold gives up what it was to pay, but not what was used besides."""
    async with house.hold() as hold:
        await house.ledger.release_hold(hold.hold_id)
    assert hold.result is None

    async def work() -> None:
        async with house.hold() as hold:
            hold.use(amount=5)
            await house.ledger.release_hold(hold.hold_id)

    with pytest.raises(HoldClosedError, match="released"):
        await work()
    assert await house.paid() == []


async def test_more_than_a_strict_hold_has_is_refused_at_once(house: House) -> None:
    """The block can stop before it has used more than is paid. What it has used before is paid."""
    async with house.hold(overage="reject") as hold:
        hold.use(amount=60)
        with pytest.raises(HoldExceededError):
            hold.use(amount=61)
        assert hold.used == 60
    assert await house.paid() == [60]


async def test_a_strict_hold_made_smaller_pays_what_it_has(house: House) -> None:
    """By another call: the caller learns of it, and nothing stays held."""

    async def work() -> None:
        async with house.hold(overage="reject") as hold:
            hold.use(amount=50)
            await house.ledger.extend_hold(hold.hold_id, amount=20)

    with pytest.raises(HoldExceededError):
        await work()
    assert await house.paid() == [20]


async def test_an_erased_user_pays_nothing(house: House) -> None:
    """The end of the block says so."""

    async def work() -> None:
        async with house.hold() as hold:
            hold.use(amount=50)
            await house.ledger.delete_user("ann")

    with pytest.raises(UserNotFoundError):
        await work()
    assert await rows(house.database, "users") == []


async def test_a_refused_beginning_places_nothing(house: House) -> None:
    """Whoever has too little doesn't run the block."""
    with pytest.raises(InsufficientCreditsError):
        async with house.hold(amount=101):
            raise AssertionError
    assert await rows(house.database, "holds") == []


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({}, InvalidRequestError, "amount"),
        ({"amount": 11, "variables": {"token": 1}}, InvalidRequestError, "amount"),
        ({"amount": 9}, InvalidRequestError, "amount"),
        ({"amount": -1}, InvalidRequestError, "amount"),
        ({"amount": 11.0}, InvalidRequestError, "amount"),
        ({"amount": True}, InvalidRequestError, "amount"),
        ({"amount": 2**53}, InvalidRequestError, "amount"),
        ({"variables": 5}, InvalidRequestError, "variables"),
        ({"variables": {"token": "x"}}, InvalidRequestError, "variables.token"),
        ({"variables": {"token": -9000}}, InvalidRequestError, "variables"),
        ({"variables": {}}, MissingVariableError, None),
    ],
)
async def test_bad_usage_is_refused_and_changes_nothing(
    house: House, options: Any, error: type[CreditError], field: str | None
) -> None:
    """The total stays what it was."""
    async with house.hold() as hold:
        hold.use(amount=10)
        with pytest.raises(error) as refused:
            hold.use(**options)
        assert getattr(refused.value, "field", None) == field
        assert hold.used == 10
    assert await house.paid() == [10]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ttl": 0.9}, "ttl"),
        ({"ttl": 30 * 24 * 3600 + 1}, "ttl"),
        ({"amount": 0}, "amount"),
        ({"amount": 1, "variables": {}}, "amount"),
        ({"overage": "all"}, "overage"),
        ({"on_timeout": "keep"}, "on_timeout"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_ttl": 60}, "idempotency_ttl"),
        ({"idempotency_key": "k", "idempotency_ttl": 0}, "idempotency_ttl"),
        ({"metadata": 5}, "metadata"),
    ],
)
def test_bad_arguments_are_refused_at_once(house: House, options: Any, field: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequestError) as refused:
        house.hold(**options)
    assert refused.value.field == field


async def test_a_hold_is_used_inside_its_block_only(house: House) -> None:
    """Once, and not before or after it."""
    hold = house.hold()
    with pytest.raises(InvalidRequestError, match="not begun"):
        hold.use(amount=1)
    async with hold:
        pass
    with pytest.raises(HoldClosedError, match="captured"):
        hold.use(amount=1)
    with pytest.raises(InvalidRequestError, match="entered before"):
        async with hold:
            raise AssertionError
    assert await house.paid() == [60]

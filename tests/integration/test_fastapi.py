"""The FastAPI integration, called through ASGI, on a real ledger and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI, HTTPException
from pymongo import AsyncMongoClient

from credit_mongo import CreditConfig, CreditLedger, OperationEnded
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import (
    ConfigurationError,
    InvalidRequestError,
    StorageError,
)
from credit_mongo.integrations.fastapi import (
    Charge,
    Paid,
    RequestCompletedError,
    RequestInProgressError,
    add_credit_handlers,
    credit_lifespan,
    get_ledger,
)
from credit_mongo.integrations.fastapi.orders import Order
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.paid_site import CONFIG, Site, client_of, code_of, current_user
from tests.integration.promises import Client, Database, Row, check_promises, failing, rows

# The lifespan


async def test_the_lifespan_goes_with_the_applications_own(
    database: Database, config: CreditConfig
) -> None:
    """The application's own lifespan runs inside, with the ledger ready, and its state is kept."""
    seen: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        ledger: CreditLedger = app.state.credit_mongo.ledger
        await ledger.create_user("ann", credits=7)
        seen.append("start")
        yield {"answer": 42}
        seen.append(f"end with {await ledger.get_balance('ann')}")

    app = FastAPI(lifespan=credit_lifespan(config, database=database, lifespan=own))

    @app.get("/")
    async def balance(ledger: Annotated[CreditLedger, Depends(get_ledger)]) -> int:
        return await ledger.get_balance("ann")

    async with app.router.lifespan_context(app) as state, client_of(app) as client:
        assert state == {"answer": 42}
        assert (await client.get("/")).json() == 7
    assert seen == ["start", "end with 7"]


async def test_the_environment_names_the_database(
    replica_set_uri: str,
    database: Database,
    config: CreditConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a given database, the ledger opens its own client and closes it."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    monkeypatch.setenv("MONGODB_DATABASE", database.name)
    app = FastAPI(lifespan=credit_lifespan(config))
    async with app.router.lifespan_context(app):
        await app.state.credit_mongo.ledger.create_user("ann")
    assert [row["_id"] for row in await rows(database, "users")] == ["ann"]


async def test_the_observer_hears_of_the_applications_ledger(
    database: Database, config: CreditConfig
) -> None:
    """Metrics need no ledger of the application's own making. What is no function is refused."""
    events: list[object] = []
    app = FastAPI(lifespan=credit_lifespan(config, database=database, observer=events.append))
    async with app.router.lifespan_context(app):
        await app.state.credit_mongo.ledger.create_user("ann", credits=7)
    [ended] = [event for event in events if isinstance(event, OperationEnded)]
    assert (ended.operation, ended.code) == ("create_user", "OK")
    with pytest.raises(ConfigurationError, match="observer"):
        credit_lifespan(config, observer=5)  # type: ignore[arg-type]


async def test_without_the_lifespan_there_is_no_ledger() -> None:
    """The request gets a 500 whose error says what to do."""
    app = FastAPI()
    add_credit_handlers(app)

    @app.get("/")
    async def ask(ledger: Annotated[CreditLedger, Depends(get_ledger)]) -> None:
        raise AssertionError(ledger)

    async with client_of(app) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["code"]) == (500, "CONFIGURATION_ERROR")


@pytest.mark.parametrize("seconds", [0, 3601, True, "30", float("nan"), None])
def test_a_lease_has_limits(config: CreditConfig, seconds: Any) -> None:
    """A lease lasts from a second to an hour."""
    with pytest.raises(ConfigurationError, match="lease_seconds"):
        credit_lifespan(config, lease_seconds=seconds)


@pytest.mark.parametrize("idempotency", [{"enabled": False}, {"ttl_seconds": 60}])
def test_refunds_need_keys(idempotency: Any) -> None:
    """A ledger that remembers no keys, or not for long enough, could refund twice."""
    config = CreditConfig(costs={"a": {"default": 1}}, idempotency=idempotency)
    with pytest.raises(ConfigurationError, match="idempotency"):
        credit_lifespan(config)


# Charging


@pytest_asyncio.fixture
async def site(database: Database) -> AsyncIterator[Site]:
    """The application, and Ann with 100 credits."""
    site = Site(database, CONFIG)
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=100)
        yield site
    await check_promises(database)
    assert (await verify(database)).findings == ()


def _fails(_paid: Paid) -> Any:
    raise HTTPException(502, "the model has failed")


@pytest.mark.drivers("pymongo", "motor")
async def test_a_request_is_paid_once(site: Site) -> None:
    """A repeat is refused or answered again. It is never run or charged again."""
    first = await site.post()
    assert first.status_code == 200
    again = await site.post()
    assert code_of(again) == (409, "REQUEST_COMPLETED")
    assert again.json()["transaction_id"] == first.json()
    assert site.runs == 1
    first = await site.post("other", "/again")
    again = await site.post("other", "/again")
    assert first.json() == [again.json()[0], 10, False]
    assert again.json() == [first.json()[0], 10, True]
    assert await site.charges() == [-10, -10]


@pytest.mark.parametrize("failure", [HTTPException(502), RuntimeError("x"), StorageError("x")])
async def test_a_failed_request_is_refunded_and_a_retry_pays_again(
    site: Site, failure: Exception
) -> None:
    """No retry of a refunded request is free, however often it fails."""

    def fails(_paid: Paid) -> Any:
        raise failure

    site.work = fails
    for _ in range(2):
        assert (await site.post()).status_code >= 500
    assert await site.charges() == [-10, 10, -10, 10]
    site.work = lambda paid: paid.cost
    assert (await site.post()).json() == 10
    assert code_of(await site.post()) == (409, "REQUEST_COMPLETED")
    assert await site.charges() == [-10, 10, -10, 10, -10]


async def test_a_refused_charge_leaves_the_key_free(site: Site) -> None:
    """The answer is 402 and the handler does not run. With credits, the same key works."""
    await site.ledger.charge("ann", "lesson", amount=95)
    refused = await site.post()
    assert code_of(refused) == (402, "INSUFFICIENT_CREDITS")
    assert site.runs == 0
    await site.ledger.grant("ann", 5, action="gift")
    assert (await site.post()).status_code == 200
    assert code_of(await site.post(user="bob")) == (404, "USER_NOT_FOUND")


async def test_a_refused_request_is_kept_only_for_its_lease(site: Site, database: Database) -> None:
    """A refused request is kept as long as its lease, a finished one as long as keys are."""
    assert (await site.post()).status_code == 200
    await site.ledger.charge("ann", "lesson", amount=90)
    for user in ("ann", "nobody"):
        assert (await site.post(key=f"of-{user}", user=user)).status_code in (402, 404)
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    for run in await rows(database, "paid_requests"):
        assert (run["expiresAt"] < soon) == (run["state"] == "released"), run


async def test_a_refusal_speaks_in_credits(database: Database) -> None:
    """People read credits. The numbers for programs stay in smallest units."""
    site = Site(database, CreditConfig(costs={"generate-post": {"default": 10}}, decimal_places=2))
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=250)
        refused = await site.post()
    assert code_of(refused) == (402, "INSUFFICIENT_CREDITS")
    assert (refused.json()["required"], refused.json()["available"]) == (1000, 250)
    assert refused.json()["detail"] == "This costs 10.00 credits, but user 'ann' has 2.50."


async def test_a_key_is_bound_to_its_request(site: Site) -> None:
    """Another body, query or path is refused, even after failures. Users do not share keys."""
    await site.ledger.create_user("bob", credits=10)
    assert (await site.post(json={"a": 1})).status_code == 200
    site.work = _fails
    assert (await site.post("failed", json={"a": 1})).status_code == 502
    for key in ("k", "failed"):
        for path, body in (("/posts", {"a": 2}), ("/posts?b=1", {"a": 1}), ("/again", {"a": 1})):
            answer = await site.post(key, path, json=body)
            assert code_of(answer) == (422, "IDEMPOTENCY_KEY_CONFLICT")
    site.work = lambda paid: paid.cost
    assert (await site.post(user="bob", json={"a": 2})).json() == 10
    assert await site.charges() == [-10, -10, 10]


async def test_a_form_is_compared_by_its_fields(site: Site) -> None:
    """Another boundary makes the same request, another file does not.

    The handler can read the form.
    """
    answer = await site.post("one", "/form", data={"name": "a"}, files={"file": b"text"})
    assert answer.json() == ["a", "text", 10]
    for content, expected in (
        (b"text", (409, "REQUEST_COMPLETED")),
        (b"else", (422, "IDEMPOTENCY_KEY_CONFLICT")),
    ):
        answer = await site.post("one", "/form", data={"name": "a"}, files={"file": content})
        assert code_of(answer) == expected


async def test_prices_come_from_dependencies(site: Site) -> None:
    """They give a formula's variables, or an amount. Without a key, each request is charged."""
    assert (await site.post(path="/ai?token=5000")).status_code == 200
    for _ in range(2):
        assert (await site.post(None, "/keyless?price=3")).status_code == 200
    assert await site.charges() == [-15, -3, -3]
    wrong = await site.post("bad", path="/ai?token=many")
    assert (code_of(wrong), wrong.json()["field"]) == ((422, "INVALID_REQUEST"), "variables.token")
    assert code_of(await site.post(None, "/keyless?price=0")) == (422, "INVALID_REQUEST")
    assert code_of(await site.post(None)) == (400, "IDEMPOTENCY_KEY_MISSING")


class Size(int, Enum):
    """An integer that prints as its name."""

    LARGE = 5000


@pytest.mark.parametrize("token", [Size.LARGE, 5000.0, Decimal("5E+3")])
async def test_a_variable_is_recorded_as_its_number(site: Site, token: Decimal) -> None:
    """The variable is recorded before the charge as a number, however it prints."""
    order = Order("ann", "ai-completion", "f", variables=exact_variables({"token": token}), key="k")
    async with site.paid_requests.paid(order) as paid:
        assert paid.cost == 15
    assert await site.states() == ["completed"]


def test_an_amount_cannot_be_combined_with_variables() -> None:
    """The error comes when the application is built."""
    with pytest.raises(InvalidRequestError, match="amount"):
        Charge("a", user=current_user, amount=lambda: 1, variables=dict)


async def test_one_of_many_concurrent_repeats_runs(site: Site) -> None:
    """The others must wait. If the one that runs fails, none of them has run for free."""
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def waits(paid: Paid) -> str:
        entered.set()
        await go_on.wait()
        raise HTTPException(502)

    site.work = waits
    first = asyncio.create_task(site.post())
    await entered.wait()
    others = await asyncio.gather(*(site.post() for _ in range(20)))
    assert {code_of(answer) for answer in others} == {(409, "REQUEST_IN_PROGRESS")}
    assert all(answer.headers["retry-after"] == "1" for answer in others)
    go_on.set()
    assert (await first).status_code == 502
    assert (site.runs, await site.charges()) == (1, [-10, 10])


async def test_a_long_request_keeps_its_lease(site: Site) -> None:
    """A handler may take longer than its lease, as long as its process lives."""

    async def waits(paid: Paid) -> str:
        await asyncio.sleep(2.5)
        return paid.transaction_id

    site.work = waits
    first = asyncio.create_task(site.post())
    await asyncio.sleep(1.7)
    assert code_of(await site.post()) == (409, "REQUEST_IN_PROGRESS")
    assert (await first).status_code == 200
    assert await site.charges() == [-10]


async def test_a_cancelled_handler_is_refunded(site: Site) -> None:
    """This holds even if it is cancelled again during the refund."""
    entered = asyncio.Event()

    async def waits(paid: Paid) -> None:
        entered.set()
        await asyncio.Event().wait()

    site.work = waits
    asking = asyncio.create_task(site.post())
    await entered.wait()
    asking.cancel()
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await site.paid_requests.close()
    assert (await site.charges(), await site.states()) == ([-10, 10], ["released"])


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_a_caller_cancelled_at_any_step_pays_nothing(site: Site, turns: int) -> None:
    """Before, during or after the charge, whatever was begun is undone."""
    asking = asyncio.create_task(site.post())
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    done = not asking.cancel()
    [answer] = await asyncio.gather(asking, return_exceptions=True)
    await site.paid_requests.close()
    completed = await site.states() == ["completed"]
    assert completed or not done
    assert isinstance(answer, httpx.Response) == done
    charges = await site.charges()
    assert charges == [-10] if completed else sum(charges) == 0


# The death of a process


@pytest_asyncio.fixture
async def slow(site: Site) -> AsyncIterator[PaidRequests]:
    """A process that does not renew its leases, so others take it for dead."""
    paid_requests = PaidRequests(
        site.ledger,
        site.config,
        lease_seconds=1,
    )
    yield paid_requests
    await paid_requests.close()


ORDER = Order(user_id="ann", action="generate-post", fingerprint="f", key="dead")


async def _until_settled(site: Site) -> None:
    for _ in range(400):
        if not set(await site.states()) - {"released", "completed"}:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await site.states())


@pytest.mark.drivers("pymongo", "motor")
async def test_a_request_whose_process_died_is_refunded(site: Site, slow: PaidRequests) -> None:
    """Another process refunds it without a retry.

    If the first was only slow, its answer is refused.
    """
    stack = AsyncExitStack()
    await stack.enter_async_context(slow.paid(ORDER))
    assert await site.charges() == [-10]
    with pytest.raises(RequestInProgressError):
        await stack.enter_async_context(site.paid_requests.paid(ORDER))
    await _until_settled(site)
    assert await site.charges() == [-10, 10]
    with pytest.raises(RequestInProgressError):
        await stack.aclose()
    assert await site.charges() == [-10, 10]


async def test_a_retry_after_a_death_pays_again(site: Site, slow: PaidRequests) -> None:
    """The retry pays once, whatever becomes of the process that was thought dead."""
    stack = AsyncExitStack()
    await stack.enter_async_context(slow.paid(ORDER))
    await _until_settled(site)
    async with site.paid_requests.paid(ORDER) as paid:
        assert not paid.replayed
    with pytest.raises(RequestInProgressError):
        await stack.aclose()
    with pytest.raises(RequestCompletedError):
        await stack.enter_async_context(slow.paid(ORDER))
    assert await site.charges() == [-10, 10, -10]


async def test_a_request_whose_process_died_before_the_charge_paid_nothing(
    site: Site, slow: PaidRequests
) -> None:
    """Repeating the charge with its key shows the outcome. A late charge counts as refunded."""
    run = await slow._open(ORDER)
    await _until_settled(site)
    assert await site.charges() == [-10, 10]
    _, was_replayed = await slow._charges.charge(run)
    assert was_replayed
    assert await site.ledger.get_balance("ann") == 100


async def test_a_process_that_resumes_after_the_settlement_does_not_continue(
    site: Site, slow: PaidRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its charge was made and refunded for it, so its handler does not run."""
    opens = slow._open

    async def sleeps(order: Order) -> dict[str, Any]:
        run = await opens(order)
        await _until_settled(site)
        return run

    monkeypatch.setattr(slow, "_open", sleeps)
    with pytest.raises(RequestInProgressError):
        await AsyncExitStack().enter_async_context(slow.paid(ORDER))
    assert await site.charges() == [-10, 10]


async def test_database_failures_are_settled_later(
    replica_set_uri: str, database: Database, client: Client
) -> None:
    """A failed charge is a 503 that takes nothing. A failed refund is made later."""
    stack = AsyncExitStack()

    async def breaks(_paid: Paid) -> None:
        await stack.enter_async_context(
            failing(client, "breaks", failCommands=["insert", "update"], errorCode=13)
        )
        raise HTTPException(502)

    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname="breaks") as own:
        site = Site(own[database.name], CONFIG)
        async with site.app.router.lifespan_context(site.app):
            await site.ledger.create_user("ann", credits=100)
            site.work = breaks
            async with stack:
                assert (await site.post()).status_code == 502
                assert await site.charges() == [-10]
                refused = await site.post("other")
                assert code_of(refused) == (503, "STORAGE_ERROR")
                assert refused.headers["retry-after"] == "1"
            await _until_settled(site)
            assert sum(await site.charges()) == 0
    await check_promises(database)


async def test_a_settlement_whose_outcome_is_unknown_is_no_refusal(
    replica_set_uri: str, database: Database, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The charge may have been made, so the request stays open and is refunded later."""
    config = CONFIG.model_copy(update={"operation_timeout_seconds": 1})
    applied: dict[str, Any] = {"writeConcernError": {"code": 100, "errmsg": "x"}}
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname="unsettled") as own:
        site = Site(own[database.name], config)
        async with site.app.router.lifespan_context(site.app):
            await site.ledger.create_user("ann", credits=100)
            async with failing(client, "unsettled", failCommands=["commitTransaction"], **applied):
                dead = PaidRequests(site.ledger, site.config, lease_seconds=1)
                await dead._open(ORDER)
                for _ in range(200):
                    if "could not be settled: CommitOutcomeUnknownError" in caplog.text:
                        break
                    await asyncio.sleep(0.05)
            assert "could not be settled: CommitOutcomeUnknownError" in caplog.text
            await _until_settled(site)
            assert await site.charges() == [-10, 10]
    await check_promises(database)


async def test_a_request_that_died_long_ago_is_refunded(site: Site, slow: PaidRequests) -> None:
    """If the ledger may have forgotten the key, the history decides."""
    runs = [await slow._open(replace(ORDER, key=key)) for key in ("charged", "not charged")]
    for _ in range(3):
        await site.ledger.charge("ann", "generate-post")
    await slow._charges.charge(runs[0])
    for run in runs:
        started_at = run["startedAt"] - timedelta(days=1)
        await site.database["paid_requests"].update_one(
            {"_id": run["_id"]}, {"$set": {"startedAt": started_at}}
        )
    await _until_settled(site)
    assert await site.charges() == [-10, -10, -10, -10, 10]


async def test_a_dead_request_that_could_not_pay_is_refunded_nothing(
    site: Site, slow: PaidRequests
) -> None:
    """A charge that would be refused was never made."""
    await slow._open(
        replace(
            ORDER,
            variables=exact_variables({"token": 0.25, "more": Decimal("1E+2"), "none": None}),
            amount=None,
        )
    )
    await slow._open(replace(ORDER, key="another", action="$no-such-action"))
    await slow._open(replace(ORDER, key="third", amount=1000))
    await _until_settled(site)
    assert await site.charges() == [-10, 10]
    assert await site.states() == ["released"] * 3


async def test_a_request_that_ended_meanwhile_is_not_settled(
    site: Site, slow: PaidRequests
) -> None:
    """A process that saw it running and comes too late leaves it as it is."""
    async with slow.paid(ORDER) as paid:
        [seen] = await rows(site.database, "paid_requests")
    assert not await site.paid_requests._settle_if_over(seen)
    assert await site.states() == ["completed"]
    with pytest.raises(RequestCompletedError, match="completed") as caught:
        await AsyncExitStack().enter_async_context(slow.paid(ORDER))
    assert caught.value.transaction_id == paid.transaction_id
    assert await site.charges() == [-10]


@pytest.mark.parametrize("by_hand", [4, 10])
@pytest.mark.parametrize("key", [None, "refund:{}"])
async def test_a_charge_refunded_by_hand_is_not_refunded_again(
    site: Site, by_hand: int, key: str | None
) -> None:
    """Only the rest of the charge is refunded, even if the application used the same key."""

    async def fails(paid: Paid) -> None:
        await site.ledger.refund(
            "ann",
            by_hand,
            action="support",
            transaction_id=paid.transaction_id,
            idempotency_key=key and key.format(paid.transaction_id),
        )
        raise HTTPException(502)

    site.work = fails
    assert (await site.post()).status_code == 502
    assert sum(await site.charges()) == 0
    assert await site.states() == ["released"]


@pytest.mark.parametrize("by_hand", [4, 10])
async def test_a_part_refunded_by_the_handler_leaves_no_failed_refund(
    site: Site, by_hand: int
) -> None:
    """Only the rest is refunded, and the audit log shows no failed attempt."""

    async def fails(paid: Paid) -> None:
        await site.ledger.refund("ann", by_hand, action="part", transaction_id=paid.transaction_id)
        raise HTTPException(502)

    site.work = fails
    assert (await site.post()).status_code == 502
    assert await site.charges() == [-10, by_hand, *([10 - by_hand] if by_hand < 10 else [])]
    assert list(await site.ledger.get_audit_log("ann", status="failed")) == []


async def test_two_concurrent_refunds_never_exceed_the_charge(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application refunds between the integration's look at the charge and its refund."""
    refund = site.ledger.refund

    async def after_another(user_id: str, amount: int, **options: Any) -> Any:
        monkeypatch.setattr(site.ledger, "refund", refund)
        await refund("ann", 3, action="part", transaction_id=options["transaction_id"])
        return await refund(user_id, amount, **options)

    monkeypatch.setattr(site.ledger, "refund", after_another)
    site.work = _fails
    assert (await site.post()).status_code == 502
    assert await site.charges() == [-10, 3, 7]


DAMAGE: tuple[dict[str, Any], ...] = ({"credits": 1.5}, {"seq": "one"}, {"membershipTier": 7})


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: next(iter(damage)))
@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=1)])
async def test_a_request_on_a_damaged_account_is_settled_in_the_end(
    site: Site, slow: PaidRequests, damage: dict[str, Any], age: timedelta
) -> None:
    """The process died before the charge, so nothing was taken and nothing is owed."""
    run = await slow._open(ORDER)
    users = site.database["users"]
    before = await users.find_one({"_id": "ann"})
    assert before is not None
    await users.update_one({"_id": "ann"}, {"$set": damage}, bypass_document_validation=True)
    await site.database["paid_requests"].update_one(
        {"_id": run["_id"]}, {"$set": {"startedAt": run["startedAt"] - age}}
    )
    await _until_settled(site)
    assert await site.states() == ["released"]
    await users.replace_one({"_id": "ann"}, before)
    assert await site.charges() == []


async def test_a_charge_on_a_damaged_account_is_refunded_after_the_repair(
    site: Site, slow: PaidRequests, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then the request stays, because its credits are owed."""
    await slow._charges.charge(await slow._open(ORDER))
    users = site.database["users"]
    before = await users.find_one({"_id": "ann"})
    assert before is not None
    damage = {"$set": {"credits": 1.5}}
    await users.update_one({"_id": "ann"}, damage, bypass_document_validation=True)
    for _ in range(200):
        if "could not be settled: AccountDataError" in caplog.text:
            break
        await asyncio.sleep(0.05)
    assert "could not be settled: AccountDataError" in caplog.text
    assert await site.states() == ["settling"]
    await users.replace_one({"_id": "ann"}, before)
    await _until_settled(site)
    assert await site.charges() == [-10, 10]


async def test_an_erased_user_is_refunded_nothing(site: Site) -> None:
    """Nothing of the request is kept, and no running one counts as done."""

    async def fails(paid: Paid) -> None:
        await site.ledger.delete_user("ann")
        raise HTTPException(502)

    async def succeeds(paid: Paid) -> None:
        await site.ledger.delete_user("ann")

    site.work = fails
    assert (await site.post()).status_code == 502
    assert await site.states() == []
    await site.ledger.create_user("ann", credits=100)
    site.work = succeeds
    assert code_of(await site.post()) == (409, "REQUEST_IN_PROGRESS")
    assert await site.states() == []


@pytest.mark.parametrize("path", ["/posts", "/again"])
async def test_a_key_of_an_erased_account_is_new_to_the_one_opened_anew(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """This holds even while the erasure has not reached the paid requests."""
    site.work = lambda paid: paid.transaction_id
    first = await site.post(path=path)
    assert first.status_code == 200

    async def die(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("credit_mongo.maintenance.erase._Erasing._erase_paid_requests", die)
    with pytest.raises(RuntimeError, match="killed"):
        await site.ledger.delete_user("ann")
    assert code_of(await site.post(path=path)) == (404, "USER_NOT_FOUND")
    await site.ledger.create_user("ann", credits=20)
    again = await site.post(path=path)
    assert again.status_code == 200
    assert again.json() != first.json()
    assert await site.ledger.get_balance("ann") == 10
    monkeypatch.undo()
    await erase_user(database, "ann")
    assert await site.states() == []

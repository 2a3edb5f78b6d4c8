"""Holds in a FastAPI application: plain answers, streams and server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
import pytest_asyncio
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pymongo import AsyncMongoClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from credit_mongo import CreditConfig, CreditLedger, HoldClosedError
from credit_mongo.errors import ConfigurationError, InvalidRequestError
from credit_mongo.integrations.fastapi import (
    Charge,
    Held,
    Hold,
    Paid,
    add_credit_handlers,
    credit_lifespan,
)
from credit_mongo.integrations.fastapi.held_requests import HeldRequests
from tests.integration.paid_site import CONFIG, client_of, code_of, current_user
from tests.integration.promises import Database, Row, failing, rows, with_options

MOST = 60


def most() -> int:
    """Return how much each request holds."""
    return MOST


AskedHold = Annotated[Held, Hold("ai-completion", user=current_user, amount=most, ttl=5)]
Again = Annotated[
    Held, Hold("ai-completion", user=current_user, amount=most, answers_again=True, ttl=5)
]
Keyless = Annotated[
    Held, Hold("ai-completion", user=current_user, amount=most, requires_key=False, ttl=5)
]


class Site:
    """An application with routes that hold, and Ann with 100 credits."""

    def __init__(self, database: Database, config: CreditConfig) -> None:
        self.database = database
        self.runs = 0
        self.work: Callable[[Held], Any] = lambda held: held.use(amount=20)
        self.goes_on = asyncio.Event()
        self.app = FastAPI(lifespan=credit_lifespan(config, database=database, lease_seconds=1))
        add_credit_handlers(self.app)
        self.app.post("/plain")(self._plain)
        self.app.post("/again")(self._again)
        self.app.post("/keyless")(self._keyless)
        self.app.post("/stream")(self._stream)

    async def _do(self, held: Held) -> Any:
        self.runs += 1
        done = self.work(held)
        return await done if inspect.isawaitable(done) else done

    async def _plain(self, held: AskedHold) -> Any:
        return await self._do(held)

    async def _again(self, held: Again) -> Any:
        if not held.replayed:
            await self._do(held)
        return [held.hold_id, held.replayed]

    async def _keyless(self, held: Keyless) -> Any:
        return await self._do(held)

    async def _stream(self, held: AskedHold) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            for number in range(1, 11):
                yield f"{number}\n"
                held.use(amount=number)
                if number == 4:
                    await self._do(held)

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @property
    def ledger(self) -> CreditLedger:
        ledger: CreditLedger = self.app.state.credit_mongo.ledger
        return ledger

    @property
    def held_requests(self) -> HeldRequests:
        held_requests: HeldRequests = self.app.state.credit_mongo.held_requests
        return held_requests

    async def post(self, path: str = "/plain", key: str | None = "k", **options: Any) -> Any:
        """POST as a client would."""
        headers = {"X-User": "ann"} | ({} if key is None else {"Idempotency-Key": key})
        async with client_of(self.app) as client:
            return await client.post(path, headers=headers, **options)

    async def hang_up(self, path: str, after: int, *, key: str = "k") -> int:
        """POST, and hang up when so many chunks have arrived. Returns how many were sent."""
        gone, sent = asyncio.Event(), 0
        is_asked = False

        async def receive() -> dict[str, Any]:
            nonlocal is_asked
            if not is_asked:
                is_asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal sent
            if message["type"] == "http.response.body" and message["body"]:
                sent += 1
                if sent == after:
                    gone.set()

        headers = [(b"x-user", b"ann"), (b"idempotency-key", key.encode())]
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "app": self.app,
        }
        # FastAPI's own events may raise when their reader is gone. A server logs that.
        with contextlib.suppress(Exception):
            await self.app(scope, receive, send)
        return sent

    async def paid(self) -> list[int]:
        """What each capture took. Nothing may be held any more."""
        await self.held_requests.close()
        captures = await rows(self.database, "transactions", operation="capture")
        taken = [-row["amount"] for row in sorted(captures, key=lambda row: int(row["seq"]))]
        user = await self.ledger.get_user("ann")
        assert (user.held, user.credits) == (0, 100 - sum(taken))
        return taken

    async def states(self) -> list[str]:
        """The states of all requests."""
        return [row["state"] for row in await rows(self.database, "paid_requests")]


class Buffer:
    """Middleware that keeps the response until the application has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept: list[Message] = []

        async def keep(message: Message) -> None:
            kept.append(message)

        await self._app(scope, receive, keep)
        for message in kept:
            await send(message)


@pytest_asyncio.fixture
async def site(database: Database, ledger: CreditLedger) -> AsyncIterator[Site]:
    """The application, on a database with its indexes."""
    site = Site(database, CONFIG)
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=100)
        yield site


async def _waits_for_ever(held: Held) -> None:
    await asyncio.Event().wait()


async def _fails(held: Held) -> None:
    raise HTTPException(502)


async def test_a_request_pays_what_it_used_once(site: Site) -> None:
    """A repeat is refused or answered again, never run or paid again."""
    assert (await site.post()).status_code == 200
    again = await site.post()
    assert code_of(again) == (409, "REQUEST_COMPLETED")
    [row] = await rows(site.database, "transactions", operation="capture")
    assert again.json()["transaction_id"] == str(row["_id"])
    first = await site.post("/again", "other")
    assert (await site.post("/again", "other")).json() == [first.json()[0], True]
    assert (site.runs, await site.paid()) == (2, [20, 20])
    assert await site.states() == ["completed", "completed"]


async def test_without_use_an_answer_pays_for_the_whole_hold(site: Site) -> None:
    """An error answers with its own status, and pays nothing."""
    site.work = _fails
    assert (await site.post()).status_code == 502
    assert await site.states() == ["released"]
    site.work = lambda held: held.hold_id
    assert (await site.post()).status_code == 200
    assert await site.paid() == [MOST]


async def test_a_failure_pays_what_it_used_and_a_repeat_is_refused(site: Site) -> None:
    """One key pays once."""

    def fails_late(held: Held) -> None:
        held.use(amount=7)
        raise RuntimeError

    site.work = fails_late
    assert (await site.post()).status_code == 500
    assert code_of(await site.post()) == (409, "REQUEST_COMPLETED")
    assert await site.paid() == [7]


async def test_a_stream_pays_when_it_has_ended(site: Site) -> None:
    """While it runs, its credits are held and a repeat is refused."""
    entered = asyncio.Event()

    async def waits(held: Held) -> None:
        entered.set()
        await site.goes_on.wait()

    site.work = waits
    streaming = asyncio.create_task(site.post("/stream"))
    await entered.wait()
    assert (await site.ledger.get_user("ann")).held == MOST
    assert code_of(await site.post("/stream")) == (409, "REQUEST_IN_PROGRESS")
    site.goes_on.set()
    answer = await streaming
    assert answer.text.split() == [str(number) for number in range(1, 11)]
    assert (site.runs, await site.paid()) == (1, [10])


async def test_a_stream_that_fails_pays_what_it_sent(site: Site) -> None:
    """The client sees it break."""

    def fails(held: Held) -> None:
        raise ZeroDivisionError

    site.work = fails
    answer = await site.post("/stream")
    assert answer.text.split() == ["1", "2", "3", "4"]
    assert await site.paid() == [4]


@pytest.mark.parametrize("after", [1, 4])
async def test_a_client_that_hangs_up_pays_what_it_was_sent(site: Site, after: int) -> None:
    """The stream stops, and a repeat with its key is refused."""
    site.work = _waits_for_ever
    sent = await site.hang_up("/stream", after)
    assert after <= sent <= 4
    assert await site.paid() == [sent]
    assert code_of(await site.post("/stream")) == (409, "REQUEST_COMPLETED")


async def test_a_client_that_hangs_up_before_anything_was_used_pays_nothing(site: Site) -> None:
    """The response was not sent, so it is no normal end."""

    async def no_use(held: Held) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield "1\n"
            await asyncio.Event().wait()

        return StreamingResponse(chunks())

    async def route(held: AskedHold) -> StreamingResponse:
        return await no_use(held)

    site.app.post("/unused")(route)
    assert await site.hang_up("/unused", 1) == 1
    assert (await site.paid(), await site.states()) == ([], ["released"])


async def test_server_sent_events_pay_like_any_stream(site: Site) -> None:
    """FastAPI reads some events ahead of the client, so what is used is noted before each."""

    async def events(held: AskedHold) -> AsyncIterator[int]:
        for number in range(1, 31):
            held.use(amount=number)
            yield number
            if number == 20:
                await site.goes_on.wait()

    site.app.post("/events", response_class=EventSourceResponse)(events)
    sent = await site.hang_up("/events", 5, key="gone")
    [first] = await site.paid()
    assert sent <= first <= 20
    site.goes_on.set()
    await site.ledger.grant("ann", first, action="gift")
    answer = await site.post("/events")
    assert answer.text.count("data:") == 30
    assert sorted(await site.states()) == ["completed", "completed"]
    assert (await site.ledger.get_user("ann")).credits == 70


@pytest.mark.parametrize("path", ["/plain", "/unused"])
async def test_other_middleware_changes_nothing(site: Site, path: str) -> None:
    """It may send the response only after the application has ended."""

    async def unused(held: AskedHold) -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield "1\n"

        return StreamingResponse(chunks())

    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=site.database, indexes=False))
    app.add_middleware(Buffer)
    app.post("/plain")(site._plain)
    app.post("/unused")(unused)
    site.work = lambda held: held.hold_id
    async with app.router.lifespan_context(app):
        site.app, own = app, site.app
        assert (await site.post(path)).status_code == 200
        assert await site.paid() == [MOST]
        site.app = own


async def test_a_request_whose_settlement_is_late_is_completed_by_it(
    site: Site, replica_set_uri: str
) -> None:
    """The response was sent while the database was away. A repeat finds what was paid since."""
    uri = with_options(replica_set_uri, appName="late")
    config = CONFIG.model_copy(update={"operation_timeout_seconds": 1.0})
    async with AsyncMongoClient[Row](uri, tz_aware=True) as own:
        database = own[site.database.name]
        late = Site(database, config)
        async with late.app.router.lifespan_context(late.app):
            point = failing(
                site.ledger._database.client, "late", failCommands=["find"], errorCode=13
            )

            async def fails_late(held: Held) -> None:
                held.use(amount=20)
                await point.__aenter__()
                raise HTTPException(502)

            late.work = fails_late
            assert (await late.post()).status_code == 502
            assert code_of(await site.post())[0] == 409
            await point.__aexit__(None, None, None)
            for _ in range(1000):
                if not (await site.ledger.get_user("ann")).held:
                    break
                await asyncio.sleep(0.01)
        assert code_of(await site.post()) == (409, "REQUEST_COMPLETED")
    assert await site.paid() == [20]


async def test_a_cancelled_request_pays_what_it_used(site: Site) -> None:
    """Even if it is cancelled again while it is settled."""
    entered = asyncio.Event()

    async def waits(held: Held) -> None:
        held.use(amount=3)
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
    assert (await site.paid(), await site.states()) == ([3], ["completed"])


@pytest.mark.parametrize("turns", range(0, 40, 8))
async def test_a_caller_cancelled_at_any_step_leaves_no_hold(site: Site, turns: int) -> None:
    """Before, while or after it is placed."""
    asking = asyncio.create_task(site.post())
    for _ in range(turns):
        await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.wait({asking})
    assert await site.paid() == ([20] if await site.states() == ["completed"] else [])


async def test_refusals_leave_the_key_free(site: Site) -> None:
    """402 and 404 run nothing. With credits, the same key works."""
    await site.ledger.charge("ann", "lesson", amount=50)
    assert code_of(await site.post()) == (402, "INSUFFICIENT_CREDITS")
    assert code_of(await site.post("/keyless", None)) == (402, "INSUFFICIENT_CREDITS")
    assert site.runs == 0
    await site.ledger.grant("ann", 50, action="gift")
    assert (await site.post()).status_code == 200
    for _ in range(2):
        assert (await site.post("/keyless", None)).status_code == 200
    assert site.runs == 3
    assert code_of(await site.post(key=None)) == (400, "IDEMPOTENCY_KEY_MISSING")
    assert code_of(await site.post(json={"a": 1})) == (422, "IDEMPOTENCY_KEY_CONFLICT")


async def test_a_dead_process_leaves_its_request_to_its_hold(site: Site) -> None:
    """While the hold is active, a repeat waits. What was reported is paid, or a repeat is free."""
    entered = asyncio.Event()

    async def dies(held: Held) -> None:
        entered.set()
        await asyncio.Event().wait()

    site.work = dies
    for key, used in (("reported", 5), ("unreported", 0)):
        entered.clear()
        dying = asyncio.create_task(site.post(key=key))
        await entered.wait()
        [hold] = await site.ledger.get_holds("ann", status="active")
        assert code_of(await site.post(key=key)) == (409, "REQUEST_IN_PROGRESS")
        if used:
            await site.ledger.capture_hold(hold.hold_id, amount=used)
        else:
            await site.ledger.release_hold(hold.hold_id)
        # The process has not noted the end of its hold.
        site.work = lambda held: held.use(amount=9)
        answer = await site.post(key=key)
        if used:
            assert code_of(answer) == (409, "REQUEST_COMPLETED")
        else:
            assert answer.status_code == 200
        dying.cancel()
        await asyncio.wait({dying})
        site.work = dies
    assert await site.paid() == [5, 9]
    assert sorted(await site.states()) == ["completed", "completed"]


async def test_a_run_whose_beginning_takes_too_long_is_replaced(site: Site) -> None:
    """A process that died before it placed its hold is in nobody's way for longer than its lease.

    If it lives after all, it finds that out before its handler runs, and gives its hold up.
    """
    reached, goes_on = asyncio.Event(), asyncio.Event()
    note_hold = site.held_requests._note_hold

    async def stalls(run: Row, hold_id: str) -> None:
        reached.set()
        await goes_on.wait()
        await note_hold(run, hold_id)

    site.held_requests._note_hold = stalls  # type: ignore[method-assign]
    stalled = asyncio.create_task(site.post())
    await reached.wait()
    site.held_requests._note_hold = note_hold  # type: ignore[method-assign]
    assert code_of(await site.post()) == (409, "REQUEST_IN_PROGRESS")
    await asyncio.sleep(1.1)
    # Both hold 60 of 100 credits.
    await site.ledger.grant("ann", 20, action="gift")
    assert (await site.post()).status_code == 200
    goes_on.set()
    assert code_of(await stalled) == (409, "REQUEST_IN_PROGRESS")
    assert site.runs == 1
    await site.ledger.charge("ann", "lesson", amount=20)
    assert (await site.ledger.get_user("ann")).credits == 80
    assert await site.states() == ["completed"]


async def test_the_end_of_the_application_settles_what_runs(
    database: Database, ledger: CreditLedger
) -> None:
    """A stream that outlives its server's patience pays what it had used, and stops."""
    site, entered = Site(database, CONFIG), asyncio.Event()
    refusals: list[str] = []

    async def waits(held: Held) -> None:
        held.use(amount=8)
        entered.set()
        await site.goes_on.wait()
        try:
            held.use(amount=9)
        except HoldClosedError as error:
            refusals.append(error.status)

    site.work = waits
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=100)
        running = asyncio.create_task(site.post())
        await entered.wait()
        closing = asyncio.create_task(site.held_requests.close())
        done, _ = await asyncio.wait({closing}, timeout=20)
        site.goes_on.set()
        assert done
        await asyncio.wait({running})
    assert refusals == ["captured"]
    assert (await ledger.get_user("ann")).credits == 92


def test_the_document_tells_the_header_and_the_answers(database: Database) -> None:
    """For charging routes as well as for those that hold."""
    site = Site(database, CONFIG)

    async def charged(paid: Annotated[Paid, Charge("lesson", user=current_user)]) -> None: ...

    site.app.post("/charged")(charged)
    paths = site.app.openapi()["paths"]
    for path in ("/plain", "/stream", "/charged"):
        operation = paths[path]["post"]
        assert {"400", "402", "403", "404", "409", "503"} <= operation["responses"].keys()
        [header] = [each for each in operation["parameters"] if each["name"] == "Idempotency-Key"]
        assert header["required"] is True
    keyless = paths["/keyless"]["post"]["parameters"]
    assert [each["required"] for each in keyless if each["name"] == "Idempotency-Key"] == [False]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"amount": most, "variables": dict}, "amount"),
        ({"ttl": 0.5}, "ttl"),
        ({"overage": "all"}, "overage"),
        ({"on_timeout": "keep"}, "on_timeout"),
    ],
)
def test_wrong_terms_are_refused_when_the_application_is_built(options: Any, field: str) -> None:
    """Before any request."""
    with pytest.raises(InvalidRequestError) as refused:
        Hold("ai-completion", user=current_user, **options)
    assert refused.value.field == field


async def test_a_route_pays_one_way(database: Database, config: CreditConfig) -> None:
    """With a charge and a hold, the application does not start."""
    site = Site(database, CONFIG)

    async def both(
        held: AskedHold, paid: Annotated[Paid, Charge("lesson", user=current_user)]
    ) -> None: ...

    site.app.post("/both")(both)
    with pytest.raises(ConfigurationError, match="/both"):
        async with site.app.router.lifespan_context(site.app):
            raise AssertionError

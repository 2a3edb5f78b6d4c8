"""The example that streams completions, over HTTP: what each client was sent is what it pays.

The server counts what it has sent to each client. A client that hangs up has read some less: what
was on its way to it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from credit_mongo import CreditLedger
from credit_mongo.local.members import _free_port
from examples.streamed_completion import app
from tests.integration.promises import Database, rows

CLIENTS = 200
USERS = 40
TOKENS = 40
MOST = 60  # units: 40 tokens of 1.5 hundredths of a credit
CREDITS = 1000


class SentTokens:
    """Middleware that counts the tokens that were sent, by hold."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.tokens: dict[str, int] = defaultdict(int)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hold_id = ""

        async def counting(message: Message) -> None:
            nonlocal hold_id
            await send(message)
            if message["type"] == "http.response.start":
                hold_id = dict(message["headers"]).get(b"hold-id", b"").decode()
                if hold_id:
                    self.tokens[hold_id] = 0
            elif message["type"] == "http.response.body" and b"token-" in message.get("body", b""):
                self.tokens[hold_id] += 1

        await self._app(scope, receive, counting)


def body_of(tokens: int) -> str:
    """The body of a request for so many tokens."""
    return json.dumps({"prompt": "?", "max_tokens": tokens})


@dataclass
class Served:
    """The example while it is served, and what it has sent."""

    port: int
    sent: SentTokens

    async def complete(self, user: str, key: str, hang_up_after: int | None) -> tuple[str, int]:
        """Ask for a completion, and hang up half-way. Returns the hold and the tokens read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = body_of(TOKENS)
        request = (
            f"POST /completions HTTP/1.1\r\nHost: x\r\nX-User: {user}\r\nIdempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        )
        writer.write(request.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200"), head
        hold_id = head.split("hold-id: ")[1].split("\r\n")[0]
        read = 0
        async for line in reader:
            read += line.startswith(b"data: token-")
            if read == hang_up_after or b"[DONE]" in line:
                break
        writer.transport.abort()
        return hold_id, read


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """Serve the example in this process."""
    sent, port = SentTokens(app), _free_port()
    server = uvicorn.Server(uvicorn.Config(sent, port=port, log_level="warning", lifespan="on"))
    serve = asyncio.create_task(server.serve())
    while not server.started:
        assert not serve.done()
        await asyncio.sleep(0.01)
    try:
        yield Served(port, sent)
    finally:
        server.should_exit = True
        await serve


def price(tokens: int) -> int:
    """What the tokens cost in units: one and a half each, rounded half up."""
    return (3 * tokens + 1) // 2


async def test_what_each_client_was_sent_is_what_it_pays(
    replica_set_uri: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 clients, of whom a third hang up half-way. To the unit, and no hold stays."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ends = [
        dice.randrange(1, TOKENS // 2 + 1) if number % 3 == 0 else None for number in range(CLIENTS)
    ]
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    monkeypatch.setenv("MONGODB_DATABASE", database.name)
    async with serving() as served:
        ledger: CreditLedger = app.state.credit_mongo.ledger
        await asyncio.gather(
            *(ledger.create_user(f"user-{n}", credits=CREDITS) for n in range(USERS))
        )
        completed = await asyncio.gather(
            *(
                served.complete(f"user-{number % USERS}", f"key-{number}", end)
                for number, end in enumerate(ends)
            )
        )
    holds = {str(row["_id"]): row for row in await rows(database, "holds")}
    assert holds.keys() == {hold_id for hold_id, _ in completed} == served.sent.tokens.keys()
    for (hold_id, read), end in zip(completed, ends, strict=True):
        sent, hold = served.sent.tokens[hold_id], holds[hold_id]
        assert (hold["status"], hold["captured"]) == ("captured", price(sent))
        assert read <= sent <= TOKENS
        assert end is not None or read == sent == TOKENS
    hung_up = [
        served.sent.tokens[hold_id]
        for (hold_id, _), end in zip(completed, ends, strict=True)
        if end
    ]
    assert sum(tokens < TOKENS for tokens in hung_up) > len(hung_up) // 2
    await _check_books(database, holds)


async def _check_books(database: Database, holds: dict[str, dict[str, object]]) -> None:
    """Each user has paid the sum of its holds, by one row each, and nothing is held."""
    paid: dict[str, int] = defaultdict(int)
    captures = await rows(database, "transactions", operation="capture")
    assert len(captures) == len(holds) == CLIENTS
    for row in captures:
        assert -row["amount"] == holds[str(row["holdId"])]["captured"]
        paid[row["userId"]] -= row["amount"]
    for user in await rows(database, "users"):
        assert user["credits"] == CREDITS - paid[user["_id"]]
        assert not user.get("creditExtras", {}).get("holds")
    states = [row["state"] for row in await rows(database, "paid_requests")]
    assert states == ["completed"] * CLIENTS


async def test_the_example_says_what_is_held(
    replica_set_uri: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other routes, in credits. A completion that the user can't pay is refused at once."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    monkeypatch.setenv("MONGODB_DATABASE", database.name)
    ann = {"X-User": "ann"}
    async with (
        serving() as served,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", headers=ann) as client,
    ):
        assert (await client.put("/users/ann")).json() == {"user": "ann", "credits": "10.00"}
        streaming = asyncio.create_task(served.complete("ann", "1", None))
        while not served.sent.tokens:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
        assert (await client.get("/balance")).json() == {"credits": "10.00", "held": "0.60"}
        await streaming
        ledger: CreditLedger = app.state.credit_mongo.ledger
        await ledger.charge("ann", "ai-completion", amount=900)
        for key, tokens, status in (("1", TOKENS, 409), ("2", 40, 402), ("3", 401, 422)):
            headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
            answer = await client.post("/completions", headers=headers, content=body_of(tokens))
            assert answer.status_code == status, answer.text
        assert (await client.get("/balance")).json()["credits"] == "0.40"

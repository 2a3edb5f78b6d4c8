"""The example application, served by uvicorn in a process of its own and asked through HTTP."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from credit_mongo.local.members import _free_port
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import (
    Client,
    Database,
    check_promises,
    check_that_no_transaction_stays_open,
    rows,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_app.py"
CLIENTS = 200
POSTS_OF_A_CLIENT = 1
# Eight posts each; that is 80 of their 100 credits.
USERS = CLIENTS * POSTS_OF_A_CLIENT // 8
# Else each client would read the certificates of the machine.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_MOST_TRIES = 200


class Server:
    """The example's process, which can be killed and started again on the same port."""

    def __init__(self, **environment: str) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, **environment, "PORT": str(self.port)}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", str(EXAMPLE)), env=self._environment
        )
        async with httpx.AsyncClient(base_url=self.url, verify=NO_TLS) as client:
            while self._process.returncode is None:
                with suppress(httpx.TransportError):
                    await client.get("/docs")
                    return
                await asyncio.sleep(0.05)
        raise AssertionError(f"the server has ended with {self._process.returncode}")

    async def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """As an operator would; its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return await self._process.wait()


@asynccontextmanager
async def _serving(**environment: str) -> AsyncIterator[Server]:
    server = Server(**environment)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@dataclass
class Load:
    """What the clients ask for, and what they were answered."""

    urls: tuple[str, ...]
    random: random.Random
    posts: dict[tuple[str, str], str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)

    def connect(self) -> httpx.AsyncClient:
        """A client with connections of its own."""
        return httpx.AsyncClient(timeout=10, verify=NO_TLS)

    async def ask(
        self, client: httpx.AsyncClient, user: str, key: str, topic: str, patience: float = 10
    ) -> httpx.Response | None:
        """One try; None if the connection was cut, by either side, or if there was none."""
        headers = {"X-User": user, "Idempotency-Key": key}
        timeout = httpx.Timeout(10, read=patience)
        try:
            # Behind a load balancer, a retry may come to another process.
            url = self.random.choice(self.urls)
            answer = await client.post(
                f"{url}/posts", headers=headers, json={"topic": topic}, timeout=timeout
            )
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer

    async def want(self, client: httpx.AsyncClient, user: str, key: str) -> None:
        """Ask until there is a post, with the same key, however often the connection is cut."""
        for number in range(_MOST_TRIES):
            # The first time, every other client goes away while it is worked on.
            cuts = number == 0 and self.random.random() < 0.5
            patience = self.random.uniform(0.01, 0.1) if cuts else 10
            answer = await self.ask(client, user, key, "tea", patience)
            if answer is not None and answer.is_success:
                self.posts[user, key] = answer.json()["id"]
                return
            await asyncio.sleep(self.random.uniform(0.3, 0.9))
        raise AssertionError((user, key, self.answers))

    async def reaches(self, posts: int) -> None:
        """Wait until there are so many posts."""
        while len(self.posts) < posts:  # noqa: ASYNC110 - the clients know nothing of it
            await asyncio.sleep(0.01)

    async def client(self, number: int) -> None:
        """One client: its posts, and, for some, one that can't be written."""
        user = f"user-{number % USERS}"
        async with self.connect() as client:
            for post in range(POSTS_OF_A_CLIENT):
                if number % 4 == 0:
                    await self.ask(client, user, f"{number}-{post}-trouble", "trouble")
                await self.want(client, user, f"{number}-{post}")


async def _open_accounts(load: Load) -> None:
    async with load.connect() as client:
        urls = [f"{load.urls[0]}/users/user-{n}" for n in range(USERS)]
        opened = await asyncio.gather(*(client.put(url) for url in urls))
    assert {answer.status_code for answer in opened} == {200}


async def _until_settled(database: Database) -> None:
    """What the killed left is settled by the living, without anybody asking."""
    for _ in range(600):
        if not await rows(database, "paid_requests", leaseUntil={"$exists": True}):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await rows(database, "paid_requests", leaseUntil={"$exists": True}))


async def _held_charges(database: Database) -> dict[str, list[str]]:
    """By user, the charges that were not refunded."""
    transactions = await rows(database, "transactions")
    refunded = {row["refundOf"] for row in transactions if row["operation"] == "refund"}
    held: dict[str, list[str]] = defaultdict(list)
    for row in transactions:
        if row["operation"] == "charge" and row["_id"] not in refunded:
            held[row["userId"]].append(str(row["_id"]))
    return held


async def _check_books(database: Database, load: Load) -> None:
    """Each post that somebody has is paid by the one charge it names, and nothing else is."""
    paid: dict[str, list[str]] = defaultdict(list)
    for (user, _), post in load.posts.items():
        paid[user].append(post)
    held = await _held_charges(database)
    assert held.keys() == paid.keys()
    for user, charges in held.items():
        assert sorted(charges) == sorted(paid[user])
    for account in await rows(database, "users"):
        assert account["credits"] == 100 - 10 * len(paid[account["_id"]])
    await check_promises(database)
    verified = await verify(database)
    assert verified.findings == ()


@pytest_asyncio.fixture
async def short_transactions(client: Client) -> AsyncIterator[None]:
    """The server ends what the killed left open after two seconds, not after a minute."""
    seconds = {"transactionLifetimeLimitSeconds": 2}
    before = await client.admin.command({"setParameter": 1, **seconds})
    yield
    await client.admin.command({"setParameter": 1, **dict.fromkeys(seconds, before["was"])})


@pytest.mark.usefixtures("short_transactions")
@pytest.mark.thorough
async def test_under_load_with_cut_connections_and_killed_servers(
    replica_set_uri: str, database: Database, client: Client
) -> None:
    """200 clients get what they pay for, once, and pay for nothing else."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    environment = {
        "MONGODB_URI": replica_set_uri,
        "MONGODB_DATABASE": database.name,
        "LEASE_SECONDS": "1",
    }
    async with _serving(**environment) as one, _serving(**environment) as other:
        load = Load((one.url, other.url), random.Random(seed))
        await _open_accounts(load)
        clients = asyncio.gather(*(load.client(number) for number in range(CLIENTS)))
        for kill, server in enumerate((one, other), 1):
            # At work, and not yet done: a share of the posts is there.
            await load.reaches(kill * CLIENTS * POSTS_OF_A_CLIENT // 4)
            await server.kill()
            await server.start()
        await clients
        await _until_settled(database)
        print(dict(load.answers))
        await _check_books(database, load)
        async with load.connect() as again:
            for (user, key), post in load.posts.items():
                answer = await load.ask(again, user, key, "tea")
                assert answer is not None
                assert (answer.status_code, answer.json()["id"]) == (200, post)
        await _check_books(database, load)
        assert len(load.posts) == CLIENTS * POSTS_OF_A_CLIENT
        assert {await one.stop(), await other.stop()} <= {0, -15}
    await check_that_no_transaction_stays_open(client)


async def test_the_example_runs_with_nothing_else_there() -> None:
    """Without MONGODB_URI it starts a replica set, which ends with it."""
    environment = {name: value for name, value in os.environ.items() if "MONGODB" not in name}
    port = str(_free_port())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLE)),
        env={**environment, "PORT": port},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            answer = await _first_answer(client, process)
            page = (await client.get("/history", headers={"X-User": "ann"})).json()
        assert (answer.status_code, answer.json()) == (200, {"user": "ann", "credits": 100})
        assert [row["balance_after"] for row in page["items"]] == [100]
    finally:
        process.terminate()
        _, errors = await process.communicate()
    assert f"http://127.0.0.1:{port}/docs" in errors.decode()
    assert "Traceback" not in errors.decode()


async def _first_answer(client: httpx.AsyncClient, process: Any) -> httpx.Response:
    while process.returncode is None:
        with suppress(httpx.ConnectError):
            return await client.put("/users/ann")
        await asyncio.sleep(0.05)
    raise AssertionError(f"the example has ended with {process.returncode}")

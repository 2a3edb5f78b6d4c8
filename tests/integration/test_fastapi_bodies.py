"""Bodies of requests that are charged for: read once, limited, and part of what a key means."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import Body, FastAPI, File, Request, Response, UploadFile
from starlette.exceptions import HTTPException

from credit_mongo.errors import ConfigurationError, RequestTooLargeError
from credit_mongo.integrations.fastapi import (
    Charge,
    Paid,
    add_credit_handlers,
    credit_lifespan,
)
from credit_mongo.integrations.fastapi.bodies import Body as RequestBody
from tests.integration.paid_site import CONFIG, Site, client_of, code_of, current_user
from tests.integration.promises import Database, rows

LARGEST = 4 * 1024 * 1024
CHUNK = 64 * 1024
Post = Annotated[Paid, Charge("generate-post", user=current_user)]
Again = Annotated[Paid, Charge("generate-post", user=current_user, answers_again=True)]
Keyless = Annotated[Paid, Charge("generate-post", user=current_user, requires_key=False)]


class Uploads(Site):
    """An application whose handlers read what is sent to them."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, CONFIG)
        self.app = FastAPI(
            lifespan=credit_lifespan(CONFIG, database=database, max_body_bytes=LARGEST)
        )
        add_credit_handlers(self.app)

        @self.app.middleware("http")
        async def read(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Any:
            if "X-Read" in request.headers:
                await request.body()
            return await go_on(request)

        @self.app.post("/body")
        async def body(paid: Post, request: Request) -> str:
            self.runs += 1
            return hashlib.sha256(await request.body()).hexdigest()

        @self.app.post("/unread")
        async def unread(paid: Post) -> int:
            return paid.cost

        @self.app.post("/items/{item:path}")
        async def item(paid: Post, item: str) -> str:
            return item

        @self.app.post("/form")
        async def form(paid: Again, request: Request) -> list[Any]:
            self.runs += not paid.replayed
            async with request.form() as fields:
                return [
                    [name, value if isinstance(value, str) else (await value.read()).decode()]
                    for name, value in fields.multi_items()
                ]

        @self.app.post("/declared-file")
        async def declared_file(paid: Post, file: Annotated[UploadFile, File()]) -> int | None:
            return file.size

        @self.app.post("/declared")
        async def declared(paid: Post, text: Annotated[str, Body()]) -> int:
            return len(text)

        @self.app.post("/keyless")
        async def keyless(paid: Keyless, request: Request) -> int:
            return sum([len(chunk) async for chunk in request.stream()])


@pytest_asyncio.fixture
async def site(database: Database) -> AsyncIterator[Uploads]:
    """With Ann, who has 100 credits, and Bob, who has 9."""
    site = Uploads(database)
    async with site.app.router.lifespan_context(site.app):
        await site.ledger.create_user("ann", credits=100)
        await site.ledger.create_user("bob", credits=9)
        yield site


class Stream:
    """A body that comes in chunks, and counts those that were taken."""

    def __init__(self, size: int, start: bytes = b"") -> None:
        self.left = size
        self.taken = 0
        self.start = start

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.left > 0:
            chunk = (self.start if not self.taken else b"").ljust(min(CHUNK, self.left), b"x")
            self.taken += 1
            self.left -= len(chunk)
            yield chunk


async def upload(
    site: Uploads, body: Stream, path: str = "/body", user: str = "ann", **headers: str
) -> httpx.Response:
    """POST a stream."""
    sent = {"X-User": user, "Idempotency-Key": "k", **headers}
    async with client_of(site.app) as client:
        return await client.post(path, headers=sent, content=aiter(body))


@pytest.mark.parametrize("reads", [{}, {"X-Read": "first"}])
@pytest.mark.parametrize("size", [0, 1, CHUNK + 1, 3 * 1024 * 1024])
async def test_a_handler_reads_the_body_that_was_hashed(
    site: Uploads, size: int, reads: dict[str, str]
) -> None:
    """All of it, from memory or disk, whether or not middleware has read it first."""
    answer = await upload(site, Stream(size), **reads)
    assert answer.json() == hashlib.sha256(b"x" * size).hexdigest()
    assert code_of(await upload(site, Stream(size), **reads)) == (409, "REQUEST_COMPLETED")
    other = await upload(site, Stream(size + 1), **reads)
    assert code_of(other) == (422, "IDEMPOTENCY_KEY_CONFLICT")
    assert await site.charges() == [-10]


async def test_a_handler_need_not_read_the_body(site: Uploads) -> None:
    """It is let go of when the request ends."""
    assert (await upload(site, Stream(3 * 1024 * 1024), "/unread")).json() == 10


async def test_a_form_that_the_handler_reads_is_the_same_with_another_boundary(
    site: Uploads,
) -> None:
    """A retry is answered again; another file, name or field is another request."""
    form: dict[str, Any] = {"data": {"g": "one"}, "files": {"f": ("name", b"AAA")}}
    for _ in range(2):
        answer = await site.post("k", "/form", **form)
        assert answer.json() == [["g", "one"], ["f", "AAA"]]
    others: tuple[dict[str, Any], ...] = (
        {**form, "files": {"f": ("name", b"AAB")}},
        {**form, "files": {"f": ("other", b"AAA")}},
        {"files": {"f": ("name", b"AAA('g', 'one')")}},
    )
    for other in others:
        assert code_of(await site.post("k", "/form", **other))[0] == 422
    assert (site.runs, await site.charges()) == (1, [-10])


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1%0A"), ("1%23", "1%2523"), ("a/b", "a%2Fb"), ("1", "1%3Fa=1"), ("1?a=1", "1?a=%31")],
)
async def test_another_path_is_another_request(site: Uploads, one: str, other: str) -> None:
    """As it was sent, however it is decoded."""
    assert (await site.post("k", f"/items/{one}")).status_code == 200
    answer = await site.post("k", f"/items/{other}")
    assert code_of(answer) == (422, "IDEMPOTENCY_KEY_CONFLICT")


@pytest.mark.parametrize(
    ("user", "expected"),
    [("nobody", (404, "USER_NOT_FOUND")), ("bob", (402, "INSUFFICIENT_CREDITS"))],
)
async def test_who_cannot_pay_is_answered_before_a_large_body_is_taken(
    site: Uploads, user: str, expected: tuple[int, str]
) -> None:
    """However its length is announced; nothing is written down."""
    chunked, announced, unannounced = Stream(LARGEST), Stream(LARGEST), Stream(LARGEST)
    assert code_of(await upload(site, chunked, user=user)) == expected
    length = {"Content-Length": str(LARGEST)}
    assert code_of(await upload(site, announced, user=user, **length)) == expected
    assert chunked.taken == announced.taken == 0
    assert await send(site, unannounced, user) == expected[0]
    assert unannounced.taken == 2
    assert await site.states() == []


async def send(site: Uploads, body: Stream, user: str, *, hangs_up: bool = False) -> int:
    """The status of a request whose headers say nothing of its length, as HTTP/2 may."""
    chunks = aiter(body)
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/body",
        "raw_path": b"/body",
        "query_string": b"",
        "headers": [(b"x-user", user.encode()), (b"idempotency-key", b"k")],
    }

    async def receive() -> dict[str, Any]:
        async for chunk in chunks:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if hangs_up:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def note(message: Any) -> None:
        sent.append(message)

    await site.app(scope, receive, note)
    return int(sent[0]["status"])


async def test_a_repetition_is_told_so_though_its_balance_is_used_up(site: Uploads) -> None:
    """The credits that it lacks are those that it has paid."""
    await site.ledger.grant("bob", 1, action="gift")
    assert (await upload(site, Stream(LARGEST), user="bob")).status_code == 200
    assert await site.ledger.get_balance("bob") == 0
    again = await upload(site, Stream(LARGEST), user="bob")
    assert code_of(again) == (409, "REQUEST_COMPLETED")


@pytest.mark.parametrize("path", ["/body", "/unread", "/declared", "/declared-file", "/keyless"])
async def test_a_body_has_a_limit(site: Uploads, path: str) -> None:
    """Before it is read if its length is announced; whoever reads it; nothing is charged."""
    kind = {"Content-Type": "multipart/form-data; boundary=B"} if path.endswith("file") else {}
    start = b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    unannounced, announced = Stream(4 * LARGEST, start), Stream(LARGEST + 1)
    answer = await upload(site, unannounced, path, **kind)
    assert code_of(answer) == (413, "REQUEST_TOO_LARGE")
    assert answer.json()["largest"] == LARGEST
    assert answer.json()["detail"] == str(RequestTooLargeError(LARGEST))
    assert answer.headers["content-type"] == "application/problem+json"
    assert unannounced.taken == LARGEST // CHUNK + 1
    length = {"Content-Length": str(LARGEST + 1)}
    answer = await upload(site, announced, path, **length, **kind)
    assert code_of(answer) == (413, "REQUEST_TOO_LARGE")
    assert announced.taken == 0
    assert await site.ledger.get_balance("ann") == 100
    assert set(await site.states()) <= {"released"}


async def test_a_body_at_the_limit_is_taken(site: Uploads) -> None:
    """And one byte is not too many."""
    assert (await upload(site, Stream(LARGEST), "/keyless")).json() == LARGEST


async def test_a_client_that_hangs_up_pays_nothing(site: Uploads) -> None:
    """Nothing of its request is kept, and its key is free."""
    assert await send(site, Stream(10 * CHUNK), "ann", hangs_up=True) == 400
    assert (site.runs, await site.states(), await site.charges()) == (0, [], [])
    assert (await upload(site, Stream(CHUNK))).status_code == 200


async def _check_nothing() -> None: ...


async def test_a_body_that_was_lost_in_part_has_no_digest() -> None:
    """Without that part, it would be the digest of another body."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(10 * CHUNK), "more_body": False}

    scope = {"type": "http", "headers": [(b"idempotency-key", b"k")]}
    body = RequestBody(scope, receive, largest=LARGEST, charged_endpoints=())
    reading = asyncio.create_task(body.receive())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(HTTPException, match="lost"):
        await body.read_ahead(_check_nothing)


async def test_of_two_uploads_at_once_one_is_done(site: Uploads) -> None:
    """Though both bodies were taken."""
    answers = await asyncio.gather(*(upload(site, Stream(LARGEST)) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert (site.runs, await site.charges()) == (1, [-10])


@pytest.mark.parametrize("largest", [0, True, 1.5, "16", None, 2**41])
def test_a_wrong_limit_is_refused(largest: Any) -> None:
    """By its name."""
    with pytest.raises(ConfigurationError, match="max_body_bytes"):
        credit_lifespan(CONFIG, max_body_bytes=largest)


async def test_memory_stays_flat(database: Database, replica_set_uri: str) -> None:
    """An upload of 48 MiB takes a process of its own less than 12 MiB more than one of 2."""
    script = Path(__file__).with_name("uploading.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), replica_set_uri, database.name),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    small, large = map(int, output.split())
    assert large - small < 12 * 1024
    assert [row["state"] for row in await rows(database, "paid_requests")] == ["completed"] * 2

"""Applications as they are put together: routers, mounts, two charges, the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from credit_mongo import ConfigurationError, CreditLedger, InsufficientCreditsError
from credit_mongo.integrations.fastapi import (
    Charge,
    Paid,
    add_credit_handlers,
    credit_lifespan,
    get_ledger,
    required_idempotency_key,
)
from tests.integration.paid_site import CONFIG, client_of, code_of, current_user
from tests.integration.promises import Client, Database, rows

POST = Charge("generate-post", user=current_user)
Post = Annotated[Paid, POST]
HEADERS = {"X-User": "ann", "Idempotency-Key": "k"}


def selling(app: FastAPI | APIRouter) -> Any:
    """The application or router, which charges at /posts."""

    @app.post("/posts")
    async def post(paid: Post) -> int:
        return paid.cost

    @app.get("/balance")
    async def balance(ledger: Annotated[CreditLedger, Depends(get_ledger)]) -> int:
        return await ledger.get_balance("ann")

    return app


def mounted(app: FastAPI, path: str) -> FastAPI:
    """An application that is mounted in another."""
    app.mount(path, inner := FastAPI())
    return inner


def in_application(app: FastAPI) -> None:
    """Mounted."""
    selling(mounted(app, "/in"))


def in_nested_applications(app: FastAPI) -> None:
    """Mounted in what is mounted."""
    selling(mounted(mounted(app, "/i"), "/n"))


def behind_middleware(app: FastAPI) -> None:
    """Mounted behind middleware of its own."""
    app.router.routes.append(Mount("/in", app=GZipMiddleware(selling(FastAPI()))))


def in_router(app: FastAPI) -> None:
    """Included, in what is included."""
    outer = APIRouter(prefix="/i")
    outer.include_router(selling(APIRouter(prefix="/n")))
    app.include_router(outer)


def mounted_in_router(app: FastAPI) -> None:
    """Mounted in what is included."""
    router = APIRouter()
    router.mount("/n", selling(FastAPI()))
    app.include_router(router, prefix="/i")


PLACES: dict[Callable[[FastAPI], None], str] = {
    in_application: "/in",
    in_nested_applications: "/i/n",
    behind_middleware: "/in",
    in_router: "/i/n",
    mounted_in_router: "/i/n",
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_a_part_uses_the_ledger_of_the_whole(
    database: Database, place: Callable[[FastAPI], None]
) -> None:
    """Its routes charge, its errors are problems, its bodies have the limit."""
    lifespan = credit_lifespan(CONFIG, database=database, max_body_bytes=10)
    app = FastAPI(lifespan=lifespan)
    add_credit_handlers(app)
    place(app)
    prefix = PLACES[place]
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.credit_mongo.ledger.create_user("ann", credits=15)
        answer = await client.post(f"{prefix}/posts", headers=HEADERS)
        assert (answer.status_code, answer.json()) == (200, 10)
        assert (await client.get(f"{prefix}/balance")).json() == 5
        again = await client.post(f"{prefix}/posts", headers=HEADERS)
        assert code_of(again) == (409, "REQUEST_COMPLETED")
        other = {**HEADERS, "Idempotency-Key": "other"}
        poor = await client.post(f"{prefix}/posts", headers=other)
        assert code_of(poor) == (402, "INSUFFICIENT_CREDITS")
        large = await client.post(f"{prefix}/posts", headers=other, content=b"x" * 11)
        assert code_of(large) == (413, "REQUEST_TOO_LARGE")


async def test_a_part_may_have_a_ledger_and_handlers_of_its_own(
    database: Database, client: Client
) -> None:
    """Then these are used there, and only there."""
    second = client[f"{database.name}_second"]
    inner = FastAPI(lifespan=credit_lifespan(CONFIG, database=second))
    add_credit_handlers(inner, statuses={InsufficientCreditsError: 418})

    @asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database, lifespan=both))
    add_credit_handlers(app)
    selling(app)
    app.mount("/in", selling(inner))
    async with app.router.lifespan_context(app), client_of(app) as browser:
        await app.state.credit_mongo.ledger.create_user("ann", credits=1)
        await inner.state.credit_mongo.ledger.create_user("ann", credits=2)
        assert (await browser.get("/balance")).json() == 1
        assert (await browser.get("/in/balance")).json() == 2
        assert (await browser.post("/posts", headers=HEADERS)).status_code == 402
        assert (await browser.post("/in/posts", headers=HEADERS)).status_code == 418
    await client.drop_database(second)


def twice_in_a_handler(app: FastAPI) -> None:
    """Two parameters."""

    @app.post("/twice")
    async def twice(
        one: Post, other: Annotated[Paid, Charge("lesson", user=current_user)]
    ) -> None: ...


def twice_with_a_router(app: FastAPI) -> None:
    """One for all routes of a router."""
    router = APIRouter(dependencies=[Charge("lesson", user=current_user)])
    app.include_router(selling(router))


def twice_by_inclusion(app: FastAPI) -> None:
    """One where a router is included."""
    app.include_router(selling(APIRouter()), dependencies=[Charge("lesson", user=current_user)])


async def lesson(paid: Annotated[Paid, Charge("lesson", user=current_user)]) -> Paid:
    """What another dependency was paid."""
    return paid


def twice_deep_down(app: FastAPI) -> None:
    """One within a dependency, in a mounted application."""

    @mounted(app, "/in").post("/twice")
    async def twice(one: Post, other: Annotated[Paid, Depends(lesson)]) -> None: ...


@pytest.mark.parametrize(
    "twice", [twice_in_a_handler, twice_with_a_router, twice_by_inclusion, twice_deep_down]
)
async def test_two_charges_on_a_route_are_refused_when_the_application_starts(
    database: Database, twice: Callable[[FastAPI], None]
) -> None:
    """With the route's path, and before the database is touched."""
    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database))
    twice(app)
    with pytest.raises(ConfigurationError, match=r"Charge: is used 2 times by the route /"):
        async with app.router.lifespan_context(app):
            pytest.fail("it has started")
    assert await database.list_collection_names() == []


async def test_two_charges_on_a_route_that_came_later_charge_nothing(database: Database) -> None:
    """Such a route could not be looked at when the application started."""
    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database))
    add_credit_handlers(app)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.credit_mongo.ledger.create_user("ann", credits=100)
        twice_in_a_handler(app)
        answer = await client.post("/twice", headers=HEADERS)
        assert code_of(answer) == (500, "CONFIGURATION_ERROR")
        assert await app.state.credit_mongo.ledger.get_balance("ann") == 100


async def test_one_charge_that_two_dependencies_share_is_one(database: Database) -> None:
    """FastAPI asks it once."""
    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database))
    app.include_router(selling(APIRouter(dependencies=[POST])))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.credit_mongo.ledger.create_user("ann", credits=100)
        assert (await client.post("/posts", headers=HEADERS)).json() == 10
        assert await app.state.credit_mongo.ledger.get_balance("ann") == 90


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[None]:
    """The application's life as a server runs it."""
    told: asyncio.Queue[Any] = asyncio.Queue()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    serving = asyncio.create_task(app({"type": "lifespan", "app": app}, told.get, heard.put))
    for message in ("startup", "shutdown"):
        await told.put({"type": f"lifespan.{message}"})
        assert (await heard.get())["type"] == f"lifespan.{message}.complete"
        if message == "startup":
            yield
    await serving


async def test_a_served_application_can_start_again(database: Database) -> None:
    """With the middleware of both, once; web sockets find the ledger, too."""
    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database))
    app.add_middleware(GZipMiddleware)
    selling(app)

    @app.websocket("/balance")
    async def balance(
        socket: WebSocket, ledger: Annotated[CreditLedger, Depends(get_ledger)]
    ) -> None:
        await socket.accept()
        await socket.send_json(await ledger.get_balance("ann"))

    for left in (90, 80):
        async with served(app), client_of(app) as client:
            if left == 90:
                await app.state.credit_mongo.ledger.create_user("ann", credits=100)
            headers = {**HEADERS, "Idempotency-Key": str(left)}
            assert (await client.post("/posts", headers=headers)).json() == 10
            sent: asyncio.Queue[Any] = asyncio.Queue()
            scope = {"type": "websocket", "path": "/balance", "query_string": b"", "headers": []}
            await app(scope, _connect, sent.put)
            assert await sent.get() == {
                "type": "websocket.accept",
                "subprotocol": None,
                "headers": [],
            }
            assert (await sent.get())["text"] == str(left)


async def _connect() -> dict[str, str]:
    return {"type": "websocket.connect"}


# OpenAPI

ANSWERS = {"400", "402", "403", "404", "409", "413", "422", "503"}


def documented() -> FastAPI:
    """An application with a route of each kind, which was never started."""
    app = FastAPI()
    add_credit_handlers(app, statuses={InsufficientCreditsError: 499})
    selling(app)
    app.include_router(selling(APIRouter(prefix="/in")))

    @app.post("/keyless")
    async def keyless(
        paid: Annotated[Paid, Charge("lesson", user=current_user, requires_key=False)],
    ) -> None: ...

    @app.post("/keyed", responses={409: {"description": "Taken"}})
    async def keyed(key: Annotated[str, Depends(required_idempotency_key)]) -> None: ...

    @app.post("/own", responses={404: {"description": "No such book"}})
    async def own(paid: Post) -> None: ...

    return app


def test_the_document_says_what_a_charge_needs_and_answers() -> None:
    """However often it is asked for."""
    app = documented()
    for _ in range(2):
        schema = app.openapi()
        operations = {
            path: item.get("post") or item["get"] for path, item in schema["paths"].items()
        }
        required = {}
        for path, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "Idempotency-Key":
                    required[path] = parameter["required"]
        assert required == {
            **dict.fromkeys(("/posts", "/in/posts", "/keyed", "/own"), True),
            "/keyless": False,
        }
        for path in ("/posts", "/in/posts", "/keyless", "/own"):
            answers = operations[path]["responses"]
            assert answers.keys() == ANSWERS - {"402"} | {"499", "200"}
            for status in answers.keys() - {"200"}:
                content = answers[status]["content"]["application/problem+json"]
                assert content["schema"]["$ref"] == "#/components/schemas/CreditProblem"
        assert (
            operations["/posts"]["responses"]["499"]["description"] == "Error: Insufficient credits"
        )
        assert (
            operations["/own"]["responses"]["404"]["description"] == "No such book: User not found"
        )
        assert "application/json" in operations["/posts"]["responses"]["422"]["content"]
        assert operations["/keyed"]["responses"]["409"] == {"description": "Taken"}
        assert operations["/balance"]["responses"].keys() == {"200"}
        assert "CreditProblem" in schema["components"]["schemas"]


async def test_the_document_of_a_mounted_application_says_it_too(database: Database) -> None:
    """It has one of its own."""
    app = FastAPI(lifespan=credit_lifespan(CONFIG, database=database))
    add_credit_handlers(app)
    in_application(app)
    async with app.router.lifespan_context(app), client_of(app) as client:
        schema = (await client.get("/in/openapi.json")).json()
    assert schema["paths"]["/posts"]["post"]["responses"].keys() == ANSWERS | {"200"}
    assert await rows(database, "paid_requests") == []

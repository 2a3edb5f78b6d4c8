"""An application that charges for its requests, and the requests that tests send it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Form, Header, UploadFile

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.integrations.fastapi import Charge, Paid, add_credit_handlers, credit_lifespan
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from tests.integration.promises import Database, rows

CONFIG = CreditConfig(
    costs={
        "generate-post": {"default": 10},
        "ai-completion": {"default": "{token} * 0.001 + 10"},
        "lesson": {"default": 1},
    }
)


def current_user(x_user: Annotated[str, Header()]) -> str:
    """Return the user that the request names."""
    return x_user


def price_of_query(price: int) -> int:
    """Return the price in the request."""
    return price


def token_of_query(token: str) -> dict[str, Any]:
    """Return the request's token as variables, as a number if it is one."""
    return {"token": int(token) if token.isdigit() else token}


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Open a client that calls the application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the code of a problem."""
    return answer.status_code, answer.json()["code"]


class Site:
    """The application under test, which counts what its handlers do."""

    def __init__(self, database: Database, config: CreditConfig) -> None:
        self.database = database
        self.config = config
        self.work: Callable[[Paid], Any] = lambda paid: paid.transaction_id
        self.runs = 0
        self.app = FastAPI(lifespan=credit_lifespan(config, database=database, lease_seconds=1))
        add_credit_handlers(self.app)
        self.app.post("/posts")(self._post)
        self.app.post("/again")(self._again)
        self.app.post("/ai")(self._ai)
        self.app.post("/form")(self._form)
        self.app.post("/keyless")(self._keyless)

    async def _do(self, paid: Paid) -> Any:
        self.runs += 1
        done = self.work(paid)
        return await done if inspect.isawaitable(done) else done

    async def _post(self, paid: Annotated[Paid, Charge("generate-post", user=current_user)]) -> Any:
        return await self._do(paid)

    async def _again(
        self,
        paid: Annotated[Paid, Charge("generate-post", user=current_user, answers_again=True)],
    ) -> Any:
        return [paid.transaction_id, paid.cost, paid.replayed]

    async def _ai(
        self,
        paid: Annotated[
            Paid,
            Charge("ai-completion", user=current_user, variables=token_of_query),
        ],
    ) -> Any:
        return await self._do(paid)

    async def _form(
        self,
        name: Annotated[str, Form()],
        file: UploadFile,
        paid: Annotated[Paid, Charge("generate-post", user=current_user)],
    ) -> Any:
        return [name, (await file.read()).decode(), paid.cost]

    async def _keyless(
        self,
        paid: Annotated[
            Paid,
            Charge("lesson", user=current_user, amount=price_of_query, requires_key=False),
        ],
    ) -> Any:
        return await self._do(paid)

    @property
    def ledger(self) -> CreditLedger:
        ledger: CreditLedger = self.app.state.credit_mongo.ledger
        return ledger

    @property
    def paid_requests(self) -> PaidRequests:
        paid_requests: PaidRequests = self.app.state.credit_mongo.paid_requests
        return paid_requests

    async def post(
        self, key: str | None = "k", path: str = "/posts", user: str = "ann", **options: Any
    ) -> httpx.Response:
        """POST as a client would."""
        headers = {"X-User": user} | ({} if key is None else {"Idempotency-Key": key})
        async with client_of(self.app) as client:
            return await client.post(path, headers=headers, **options)

    async def charges(self) -> list[int]:
        """Return what each charge took and each refund gave back, in order."""
        found = await rows(self.database, "transactions", userId="ann")
        found.sort(key=lambda row: int(row["seq"]))
        return [int(row["amount"]) for row in found[1:]]

    async def states(self) -> list[str]:
        """Return the states of all paid requests."""
        return [row["state"] for row in await rows(self.database, "paid_requests")]

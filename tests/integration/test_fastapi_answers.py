"""Routes that return what the ledger returns: results, rows and pages, with any metadata."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
from bson import Binary, Decimal128, MinKey, ObjectId, Regex, Timestamp
from fastapi import Depends, FastAPI
from pydantic import TypeAdapter

from credit_mongo import (
    AuditPage,
    ChargeResult,
    CreditLedger,
    GrantResult,
    HistoryPage,
    Quote,
    RefundResult,
    TierChangeResult,
    Transaction,
    User,
)
from credit_mongo.integrations.fastapi import credit_lifespan, get_ledger
from tests.integration.paid_site import client_of
from tests.integration.promises import Database

Ledger = Annotated[CreditLedger, Depends(get_ledger)]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ID = UUID("8e03978e-40d5-43e8-bc93-6894a57f9324")
METADATA: dict[str, Any] = {
    "id": ObjectId("65a000000000000000000000"),
    "uuid": ID,
    "at": MOMENT,
    "price": Decimal128("0.10"),
    "text": b"text",
    "bytes": b"\xff\x00",
    "binary": Binary(b"\xfe", 7),
    "large": 2**60,
    "share": 0.5,
    "pattern": Regex("a+"),
    "time": Timestamp(1, 2),
    "least": MinKey(),
    "nested": {"list": [None, True, {"id": ObjectId("65a000000000000000000001")}]},
}
AS_JSON: dict[str, Any] = {
    "id": "65a000000000000000000000",
    "uuid": str(ID),
    "at": MOMENT.isoformat(),
    "price": "0.10",
    "text": "text",
    "bytes": "/wA=",
    "binary": "/g==",
    "large": 2**60,
    "share": 0.5,
    "pattern": str(Regex("a+")),
    "time": "Timestamp(1, 2)",
    "least": "MinKey()",
    "nested": {"list": [None, True, {"id": "65a000000000000000000001"}]},
}


def application(database: Database, config: Any) -> FastAPI:
    """Each result in three ways: by an annotation, as a response model, and without a type."""
    app = FastAPI(lifespan=credit_lifespan(config, database=database))

    @app.get("/annotated/history")
    async def history(ledger: Ledger, cursor: str | None = None) -> HistoryPage:
        return await ledger.get_history("ann", limit=2, cursor=cursor)

    @app.get("/annotated/audit")
    async def audit(ledger: Ledger, cursor: str | None = None) -> AuditPage:
        return await ledger.get_audit_log("ann", limit=2, cursor=cursor)

    app.get("/model/history", response_model=HistoryPage)(history)
    app.get("/model/audit", response_model=AuditPage)(audit)
    app.get("/plain/history", response_model=None)(history)
    app.get("/plain/audit", response_model=None)(audit)

    @app.get("/rows")
    async def rows(ledger: Ledger) -> list[Transaction]:
        return list(await ledger.get_history("ann"))

    @app.get("/within", response_model=None)
    async def within(ledger: Ledger) -> dict[str, Any]:
        return {"page": await ledger.get_history("ann", limit=2)}

    return app


@pytest_asyncio.fixture
async def browser(database: Database, config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of an application whose ledger has three rows of Ann's, with metadata of all kinds."""
    app = application(database, config)
    async with app.router.lifespan_context(app), client_of(app) as browser:
        ledger: CreditLedger = app.state.credit_mongo.ledger
        await ledger.create_user("ann", credits=100, metadata=METADATA)
        for _ in range(2):
            await ledger.grant("ann", 1, action="gift", metadata=METADATA)
        yield browser


@pytest.mark.parametrize("way", ["annotated", "model", "plain"])
@pytest.mark.parametrize("kind", ["history", "audit"])
async def test_a_page_is_json_with_its_cursor(
    browser: httpx.AsyncClient, way: str, kind: str
) -> None:
    """Page by page, to the last; metadata that JSON has no values for is text."""
    page = (await browser.get(f"/{way}/{kind}")).json()
    assert page.keys() == {"items", "next_cursor"}
    assert [item["metadata"] for item in page["items"]] == [AS_JSON, AS_JSON]
    assert page["items"][0]["user_id"] == "ann"
    assert datetime.fromisoformat(page["items"][0]["created_at"]).tzinfo is not None
    last = await browser.get(f"/{way}/{kind}", params={"cursor": page["next_cursor"]})
    assert (len(last.json()["items"]), last.json()["next_cursor"]) == (1, None)


async def test_rows_and_pages_stand_anywhere_in_an_answer(browser: httpx.AsyncClient) -> None:
    """In lists by type, and within what has no type."""
    found = (await browser.get("/rows")).json()
    assert [row["metadata"] for row in found] == [AS_JSON] * 3
    within = (await browser.get("/within")).json()
    assert [row["seq"] for row in within["page"]["items"]] == [row["seq"] for row in found[:2]]
    assert within["page"]["next_cursor"]


async def test_the_document_shows_what_pages_are(browser: httpx.AsyncClient) -> None:
    """Its schemas are those of the answers."""
    document = (await browser.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    page = schemas["HistoryPage"]
    assert page["properties"]["items"]["items"] == {"$ref": "#/components/schemas/Transaction"}
    assert page["required"] == ["items", "next_cursor"]
    row = schemas["Transaction"]["properties"]
    assert row["created_at"] == {"type": "string", "format": "date-time", "title": "Created At"}
    assert row["metadata"]["anyOf"][0]["type"] == "object"
    [content] = document["paths"]["/annotated/history"]["get"]["responses"]["200"][
        "content"
    ].values()
    assert content["schema"] == {"$ref": "#/components/schemas/HistoryPage"}


async def test_every_result_is_json_and_back(database: Database, ledger: CreditLedger) -> None:
    """By pydantic alone, as a response model would have it."""
    user = await ledger.create_user("ann", credits=100)
    charge = await ledger.charge("ann", "post", amount=3, metadata=METADATA)
    results: list[tuple[type[Any], Any]] = [
        (User, user),
        (ChargeResult, charge),
        (GrantResult, await ledger.grant("ann", 1, action="gift", metadata=METADATA)),
        (
            RefundResult,
            await ledger.refund(
                "ann", 1, action="back", transaction_id=charge.transaction_id, metadata=METADATA
            ),
        ),
        (Quote, Quote("post", None, 3, 99, True)),
    ]
    page = await ledger.get_history("ann")
    results += [(HistoryPage, page), (AuditPage, await ledger.get_audit_log("ann"))]
    for kind, result in results:
        adapter = TypeAdapter(kind)
        text = adapter.dump_json(result)
        again = adapter.validate_json(text)
        assert adapter.dump_json(again) == text
        assert isinstance(again, kind)
        assert json.loads(text)
    assert TypeAdapter(TierChangeResult).json_schema(mode="serialization")["type"] == "object"
    # Only JSON is another: in Python, the values stay what they are.
    python = TypeAdapter(ChargeResult).dump_python(charge)
    assert python["metadata"]["id"] == METADATA["id"]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
async def test_numbers_that_json_lacks_are_null(ledger: CreditLedger, number: float) -> None:
    """Rather than an answer that no parser takes."""
    await ledger.create_user("ann")
    await ledger.grant("ann", 1, action="gift", metadata={"share": number})
    text = TypeAdapter(HistoryPage).dump_json(await ledger.get_history("ann"))
    assert json.loads(text)["items"][0]["metadata"] == {"share": None}

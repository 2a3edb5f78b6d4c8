"""An application that sells posts for credits: `make example`, or `python examples/fastapi_app.py`.

It uses MONGODB_URI and MONGODB_DATABASE. Without MONGODB_URI, it starts a temporary replica set. It
listens on 127.0.0.1, on PORT (8000). Then try:

curl -X PUT localhost:8000/users/ann
curl -X POST localhost:8000/posts -H 'X-User: ann' -H 'Idempotency-Key: 1' --json '{"topic": "tea"}'
curl localhost:8000/balance -H 'X-User: ann'
curl localhost:8000/history -H 'X-User: ann'
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel, Field
from pymongo import AsyncMongoClient

from credit_mongo import CreditConfig, CreditLedger, HistoryPage, Settings
from credit_mongo.integrations.fastapi import (
    Charge,
    Paid,
    add_credit_handlers,
    credit_lifespan,
    get_ledger,
    required_idempotency_key,
)
from credit_mongo.local import LocalReplicaSet

CONFIG = CreditConfig(
    costs={
        "generate-post": {"default": 10, "premium": 8},
        "translate": {"default": "ceil({words} / 10)"},
    },
    membership={"tiers": {"free": 0, "premium": 1}, "credits_caps": {"free": 100, "premium": 2000}},
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The application's own start and end. Its posts are in the ledger's database here."""
    settings = Settings()
    async with AsyncMongoClient[dict[str, Any]](settings.uri, tz_aware=True) as client:
        app.state.posts = client[settings.database]["posts"]
        yield


app = FastAPI(
    title="Posts for credits",
    lifespan=credit_lifespan(
        CONFIG, lifespan=lifespan, lease_seconds=float(os.environ.get("LEASE_SECONDS", "30"))
    ),
)
add_credit_handlers(app)


def current_user(x_user: Annotated[str, Header()]) -> str:
    """The caller's id. A real application checks a token instead of trusting a header."""
    return x_user


class Draft(BaseModel):
    """The topic of a post."""

    topic: str = Field(max_length=200)


class Text(BaseModel):
    """The text to translate."""

    text: str = Field(max_length=100_000)


def words(text: Text) -> dict[str, int]:
    """The variables of a translation's price."""
    return {"words": len(text.text.split())}


Ledger = Annotated[CreditLedger, Depends(get_ledger)]
User = Annotated[str, Depends(current_user)]
Key = Annotated[str, Depends(required_idempotency_key)]


@app.put("/users/{user_id}")
async def open_account(user_id: str, ledger: Ledger) -> Mapping[str, Any]:
    """Open an account with 100 credits. Answers 409 if the user has one."""
    user = await ledger.create_user(user_id, credits=100, membership_tier="free")
    return {"user": user.user_id, "credits": user.credits}


@app.get("/balance")
async def balance(user: User, ledger: Ledger) -> Mapping[str, int]:
    """The user's credits."""
    return {"credits": await ledger.get_balance(user)}


@app.get("/history")
async def history(user: User, ledger: Ledger, cursor: str | None = None) -> HistoryPage:
    """The user's transactions, newest first. ``next_cursor`` gives the next page."""
    return await ledger.get_history(user, limit=20, cursor=cursor)


@app.post("/upgrade")
async def upgrade(user: User, ledger: Ledger, key: Key) -> Mapping[str, Any]:
    """Become a premium member. The ledger gives a repeat the same answer."""
    change = await ledger.upgrade_tier(user, "premium", idempotency_key=f"upgrade:{user}:{key}")
    return {"tier": change.new_tier, "credits": change.new_credits}


@app.post("/posts", status_code=201)
async def generate_post(
    request: Request,
    response: Response,
    draft: Draft,
    paid: Annotated[Paid, Charge("generate-post", user=current_user, answers_again=True)],
) -> Mapping[str, Any]:
    """Write a post for credits. A repeat returns the same post. A failure costs nothing."""
    posts = request.app.state.posts
    if paid.replayed:
        response.status_code = 200
    else:
        text = await write(draft.topic)
        post = {"_id": paid.transaction_id, "user": paid.user_id, "text": text}
        await posts.insert_one({**post, "cost": paid.cost})
    found: dict[str, Any] = await posts.find_one({"_id": paid.transaction_id})
    return {"id": found["_id"], "text": found["text"], "cost": found["cost"]}


@app.post("/translations")
async def translate(
    text: Text,
    paid: Annotated[Paid, Charge("translate", user=current_user, variables=words)],
) -> Mapping[str, Any]:
    """Translate a text, priced by its words. A repeat is refused, because no answer is stored."""
    return {"text": text.text.upper(), "cost": paid.cost}


async def write(topic: str) -> str:
    """Stands for a model that writes a post. It fails on the topic "trouble"."""
    await asyncio.sleep(0.05)
    if topic == "trouble":
        raise HTTPException(502, "the model has failed")
    return f"All about {topic}."


async def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    port = int(os.environ.get("PORT", "8000"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    if "MONGODB_URI" in os.environ:
        await server.serve()
        return
    print("Starting a temporary replica set …", file=sys.stderr, flush=True)
    async with LocalReplicaSet() as replica_set:
        os.environ["MONGODB_URI"] = replica_set.uri
        print(f"http://127.0.0.1:{port}/docs", file=sys.stderr, flush=True)
        await server.serve()


if __name__ == "__main__":
    asyncio.run(main())

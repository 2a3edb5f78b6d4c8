"""Streamed completions that cost what was sent: `python examples/streamed_completion.py`.

A completion's price depends on its tokens, which are known only when the model has stopped or the
client has hung up. So the route holds the price of the most tokens, and pays for those it has sent.

The application uses MONGODB_URI and MONGODB_DATABASE. Without MONGODB_URI, it starts a temporary
replica set. It listens on 127.0.0.1, on PORT (8000). Then try, and end the second with Ctrl-C:

curl -X PUT localhost:8000/users/ann
curl -N localhost:8000/completions -H 'X-User: ann' -H 'Idempotency-Key: 1' --json '{"prompt": "?"}'
curl localhost:8000/balance -H 'X-User: ann'
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.integrations.fastapi import (
    Held,
    Hold,
    add_credit_handlers,
    credit_lifespan,
    get_ledger,
)
from credit_mongo.local import LocalReplicaSet

# Credits with two decimal places, and 1.5 hundredths of a credit for each token.
CONFIG = CreditConfig(costs={"ai-completion": {"default": "{tokens} * 0.015"}}, decimal_places=2)
MOST_TOKENS = 400

app = FastAPI(title="Streamed completions", lifespan=credit_lifespan(CONFIG))
add_credit_handlers(app)


def current_user(x_user: Annotated[str, Header()]) -> str:
    """The caller's id. A real application checks a token instead of trusting a header."""
    return x_user


class Prompt(BaseModel):
    """What to complete, and by how many tokens at most."""

    prompt: str = Field(max_length=1000)
    max_tokens: int = Field(default=40, ge=1, le=MOST_TOKENS)


def most_tokens(prompt: Prompt) -> dict[str, int]:
    """The variables of the price to hold: the completion may become so long."""
    return {"tokens": prompt.max_tokens}


Ledger = Annotated[CreditLedger, Depends(get_ledger)]
User = Annotated[str, Depends(current_user)]
# If this process dies, the hold ends within a minute, and what was last reported is paid.
CompletionHold = Annotated[Held, Hold("ai-completion", user=current_user, variables=most_tokens)]


@app.put("/users/{user_id}")
async def open_account(user_id: str, ledger: Ledger) -> Mapping[str, Any]:
    """Open an account with 10 credits. Answers 409 if the user has one."""
    user = await ledger.create_user(user_id, credits=1000)
    return {"user": user.user_id, "credits": ledger.format(user.credits)}


@app.get("/balance")
async def balance(user: User, ledger: Ledger) -> Mapping[str, str]:
    """The user's credits, and what is held of them."""
    account = await ledger.get_user(user)
    return {"credits": ledger.format(account.credits), "held": ledger.format(account.held)}


@app.post("/completions", response_class=StreamingResponse)
async def complete(prompt: Prompt, held: CompletionHold) -> StreamingResponse:
    """Stream a completion as server-sent events. It costs the tokens that were sent."""

    async def events() -> AsyncIterator[str]:
        tokens = 0
        async for token in model(prompt):
            yield f"data: {token}\n\n"
            # The event was sent: from here on it is paid, whatever happens next.
            tokens += 1
            held.use(variables={"tokens": tokens})
        yield "data: [DONE]\n\n"

    headers = {"Hold-Id": held.hold_id}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def model(prompt: Prompt) -> AsyncIterator[str]:
    """Stands for a model that takes seconds."""
    for number in range(prompt.max_tokens):
        await asyncio.sleep(0.05)
        yield f"token-{number}"


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

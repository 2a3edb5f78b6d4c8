"""Prints this process's peak memory in KiB after a small upload, and after a large one."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Header, Request
from pymongo import AsyncMongoClient

from credit_mongo import CreditConfig
from credit_mongo.integrations.fastapi import Charge, Paid, credit_lifespan

MIB = 1 << 20
SIZES = (2 * MIB, 48 * MIB)


async def chunks(size: int) -> AsyncIterator[bytes]:
    """Yield a body in chunks, as a server does."""
    for _ in range(size // 65536):
        yield bytes(65536)


def current_user() -> str:
    """Return the user to charge."""
    return "ann"


async def main() -> None:
    """Upload to an application in this process."""
    uri, name = sys.argv[1:]
    async with AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        config = CreditConfig(costs={"upload": {"default": 1}})
        app = FastAPI(
            lifespan=credit_lifespan(config, database=client[name], max_body_bytes=max(SIZES))
        )

        @app.post("/")
        async def upload(
            request: Request,
            paid: Annotated[Paid, Charge("upload", user=current_user)],
            x_size: Annotated[int, Header()],
        ) -> None:
            assert sum([len(chunk) async for chunk in request.stream()]) == x_size

        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as browser,
        ):
            await app.state.credit_mongo.ledger.create_user("ann", credits=2)
            for size in SIZES:
                headers = {"Idempotency-Key": str(size), "X-Size": str(size)}
                (await browser.post("/", content=chunks(size), headers=headers)).raise_for_status()
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


asyncio.run(main())

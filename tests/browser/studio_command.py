"""``credit-mongo studio`` as a process, on a ledger with something on every page."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from credit_mongo import CreditConfig, CreditError, CreditLedger
from tests.integration.promises import Database

__all__ = ["CONFIG", "HOSTILE", "Filled", "fill", "running"]

HOSTILE: Final = "<script>window.hacked = 1</script>"
"""Somebody's name, and what is in metadata, sources, actions and reasons."""

CONFIG: Final[dict[str, Any]] = {
    "costs": {
        "generate-post": {"default": 10, "premium": 8},
        "ai-completion": {"default": "{token} * 0.001 + 1", "premium": "{token} * 0.0008 + 1"},
        HOSTILE: {"default": 1},
    },
    "membership": {
        "tiers": {"free": 0, "premium": 1},
        "creditsCaps": {"free": 100, "premium": 2000},
    },
    "decimalPlaces": 2,
}


@dataclass(frozen=True, slots=True)
class Filled:
    """Ids of what the pages show."""

    charge: str
    grant: str
    hold: str


async def fill(database: Database) -> Filled:
    """Three users, among them one with a hostile name, and every kind of row."""
    async with CreditLedger(database, CreditConfig(**CONFIG)) as ledger:
        await ledger.ensure_indexes()
        for user_id in ("ann", "bob", HOSTILE):
            await ledger.create_user(user_id, credits=100_000, membership_tier="free")
            for number in range(12):
                await ledger.charge(
                    user_id, "ai-completion", variables={"token": 900 * (number + 1)}
                )
            with pytest.raises(CreditError):
                await ledger.charge(user_id, "generate-post", amount=10**9)
        end = datetime.now(timezone.utc) + timedelta(days=30)
        granted = await ledger.grant(
            "ann", 25_000, action="campaign", expires_at=end, source=HOSTILE
        )
        charge = await ledger.charge(
            "ann",
            HOSTILE,
            amount=30_000,
            metadata={HOSTILE: HOSTILE, "order": 7},
            idempotency_key=HOSTILE,
        )
        await ledger.refund("ann", 500, action="goodwill", transaction_id=charge.transaction_id)
        hold = await ledger.place_hold("ann", "ai-completion", amount=2_000, ttl=86_400)
        return Filled(charge.transaction_id, granted.transaction_id, hold.hold_id)


@asynccontextmanager
async def running(uri: str, database: str, directory: Path) -> AsyncIterator[str]:
    """The command, and the link that it has printed."""
    config = directory / "config.json"
    config.write_text(json.dumps(CONFIG))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "credit_mongo", "studio", "--port", "0", "--json"),
        *("--uri", uri, "--database", database, "--config", str(config), "--operator", "carol"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        text = b""
        async with _in_time():
            while not text.rstrip().endswith(b"}"):
                line = await process.stdout.readline()
                assert line, "Studio has ended"
                text += line
        yield json.loads(text)["url"]
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    task = asyncio.current_task()
    assert task is not None
    alarm = asyncio.get_running_loop().call_later(60, task.cancel)
    try:
        yield
    finally:
        alarm.cancel()

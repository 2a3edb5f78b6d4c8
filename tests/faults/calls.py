"""What callers call of a ledger and what they are told, in a form that can be checked and repeated.

Each call has a mark in its metadata, by which its rows are found: those of calls without a key, and
those of refusals, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from uuid import uuid4

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo import CreditError, CreditLedger

__all__ = [
    "HANGING_SECONDS",
    "Answer",
    "Call",
    "HangingError",
    "Outcome",
    "make_call",
    "make_calls",
    "outcome_of",
]

# Far beyond every deadline of these tests: who has not ended by then never does.
HANGING_SECONDS: Final = 60.0

Outcome: TypeAlias = Any
"""A result, or the exception that a call ended with."""


@dataclass(frozen=True)
class Call:
    """One call of a method: what it is to be refused with, and whether it was done before."""

    method: str
    user_id: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    refused_with: type[CreditError] | None = None
    is_repeated: bool = False
    mark: str = field(default_factory=lambda: uuid4().hex)

    async def on(self, ledger: CreditLedger, session: AsyncClientSession | None = None) -> Any:
        """Make the call."""
        return await getattr(ledger, self.method)(
            self.user_id,
            *self.arguments,
            **self.options,
            metadata={"mark": self.mark},
            idempotency_key=self.key,
            session=session,
        )


@dataclass(frozen=True)
class Answer:
    """What a caller was told, and after how many seconds."""

    call: Call
    outcome: Outcome
    seconds: float = 0.0


class HangingError(Exception):
    """What is told of a call that does not end: no more than that."""


async def outcome_of(work: Awaitable[Any], seconds: float = HANGING_SECONDS) -> Outcome:
    """What a call ends with. That of a cancelled caller is its CancelledError."""
    task = asyncio.ensure_future(work)
    # Not wait_for, which would wait until the cancelled call has ended.
    if not (await asyncio.wait([task], timeout=seconds))[0]:
        return HangingError(f"it has not ended after {seconds} s")
    try:
        return task.result()
    except (Exception, asyncio.CancelledError) as error:
        return error


async def make_call(call: Call, ledger: CreditLedger) -> Answer:
    """Call, and keep what is told."""
    begun = time.monotonic()
    outcome = await outcome_of(call.on(ledger))
    return Answer(call, outcome, time.monotonic() - begun)


async def make_calls(calls: list[Call], ledger: CreditLedger) -> list[Answer]:
    """Call all at once."""
    return list(await asyncio.gather(*(make_call(call, ledger) for call in calls)))

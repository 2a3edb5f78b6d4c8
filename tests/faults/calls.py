"""A call of a ledger and its answer, in a form that can be repeated and checked.

Each call puts a mark of its own into the metadata. The checks find its rows by the mark, including
those of refusals and of calls without a key.
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

# Far beyond every deadline of these tests: a call that hasn't ended by then is hanging.
HANGING_SECONDS: Final = 60.0

Outcome: TypeAlias = Any
"""A result, or the exception that a call ended with."""


@dataclass(frozen=True)
class Call:
    """One call: method, arguments, the error it should end with, and whether it was made before.

    ``subject`` is the first argument if that is not the user: the id of a hold or a grant.
    ``leaves`` are the fields of the hold that show the effect of a call that makes no transaction.
    Without any of them, the mark shows it, as it shows transactions.
    """

    method: str
    user_id: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    refused_with: type[CreditError] | None = None
    is_repeated: bool = False
    subject: str | None = None
    leaves: Mapping[str, Any] | None = None
    mark: str = field(default_factory=lambda: uuid4().hex)

    async def on(self, ledger: CreditLedger, session: AsyncClientSession | None = None) -> Any:
        """Make the call on this ledger."""
        return await getattr(ledger, self.method)(
            self.user_id if self.subject is None else self.subject,
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
    """Stands in for the outcome of a call that never ended."""


async def outcome_of(work: Awaitable[Any], seconds: float = HANGING_SECONDS) -> Outcome:
    """Return a call's result or error. A cancelled call's outcome is its CancelledError."""
    task = asyncio.ensure_future(work)
    # Not wait_for, which would wait until the cancelled call has ended.
    if not (await asyncio.wait([task], timeout=seconds))[0]:
        return HangingError(f"the call has not ended after {seconds} s")
    try:
        return task.result()
    except (Exception, asyncio.CancelledError) as error:
        return error


async def make_call(call: Call, ledger: CreditLedger) -> Answer:
    """Make the call and return its answer."""
    begun = time.monotonic()
    outcome = await outcome_of(call.on(ledger))
    return Answer(call, outcome, time.monotonic() - begun)


async def make_calls(calls: list[Call], ledger: CreditLedger) -> list[Answer]:
    """Make all calls at once."""
    return list(await asyncio.gather(*(make_call(call, ledger) for call in calls)))

"""Many callers at once, for as long as a disturbance lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from credit_mongo import CreditLedger
from tests.faults.calls import Answer, Call, make_call
from tests.faults.operations import OPENING_CREDITS, charge_of, new_key, refused_charge_of

__all__ = ["Callers"]

# The average pause between two calls, so that a run has few enough calls to check them all.
_BETWEEN_SECONDS: Final = 0.01


class Callers:
    """Callers who charge, grant and refund for a handful of users, each call with its own key."""

    def __init__(self, ledger: CreditLedger, count: int, dice: Random) -> None:
        self.ledger = ledger
        self._count = count
        self._dice = dice
        self._users = [f"user-{number}" for number in range(max(count // 5, 2))]

    async def open_accounts(self) -> None:
        """Create the users, before anything is disturbed."""
        opening = (self.ledger.create_user(u, credits=OPENING_CREDITS) for u in self._users)
        await asyncio.gather(*opening)

    async def during(self, disturb: Callable[[], Awaitable[None]]) -> list[Answer]:
        """Run the callers while ``disturb`` runs, and return the answers to all their calls."""
        answers: list[Answer] = []
        is_over = asyncio.Event()
        callers = [
            asyncio.create_task(self._keep_calling(answers, is_over)) for _ in range(self._count)
        ]
        try:
            await disturb()
        finally:
            is_over.set()
            await asyncio.gather(*callers)
        return answers

    async def _keep_calling(self, answers: list[Answer], is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            each = await make_call(self._next_call(), self.ledger)
            answers.append(each)
            await asyncio.sleep(self._dice.uniform(0, 2 * _BETWEEN_SECONDS * self._count))

    def _next_call(self) -> Call:
        user_id = self._dice.choice(self._users)
        kind = self._dice.random()
        if kind < 0.1:
            return refused_charge_of(user_id)
        if kind < 0.2:
            return Call("grant", user_id, (3,), {"action": "bonus"}, key=new_key())
        if kind < 0.3:
            return Call("refund", user_id, (2,), {"action": "sorry"}, key=new_key())
        return charge_of(user_id)

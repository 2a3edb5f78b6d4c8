"""What the peers with this library's four collections share: a client, a database, its books."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import ACTION
from benchmarks.load import COST, Load, Outcome, drive
from benchmarks.mongo_books import check_books
from credit_mongo import CreditConfig, CreditLedger

__all__ = ["CONFIG", "MongoPeer", "open_books"]

CONFIG: Final = CreditConfig(
    costs={ACTION: {"default": COST, "premium": 8}},
    membership={
        "tiers": {"free": 0, "premium": 1},
        "credits_caps": {"free": 100, "premium": 2000},
    },
)
# Transactions of callers that were cut off are aborted by then.
_SETTLE_SECONDS: Final = 0.5


async def open_books(
    database: AsyncDatabase[dict[str, Any]], users: Sequence[str], opening_credits: int
) -> None:
    """Give an empty database the collections, all their indexes, and these users.

    The same for all peers on MongoDB.
    """
    async with CreditLedger(database, CONFIG) as ledger:
        report = await ledger.ensure_indexes()
        assert not report.conflicts
        await asyncio.gather(
            *(ledger.create_user(user_id, credits=opening_credits) for user_id in users)
        )


class MongoPeer(ABC):
    """A peer with a client and a database of its own.

    With ``at_a_time``, at most so many charges are under way at once, the others wait their turn.
    """

    def __init__(self, uri: str, at_a_time: int = 0) -> None:
        self.uri = uri
        self._at_a_time = at_a_time
        self.database_name = f"benchmark_{uuid4().hex[:12]}"
        self.opening_credits = 0
        self._client: AsyncMongoClient[dict[str, Any]] | None = None

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is."""

    @property
    def name(self) -> str:
        """What the report calls it: what it is, with its limit."""
        return f"{self.kind}, {self._at_a_time} at a time" if self._at_a_time else self.kind

    @property
    def client(self) -> AsyncMongoClient[dict[str, Any]]:
        """The client, once started."""
        assert self._client is not None
        return self._client

    @property
    def database(self) -> AsyncDatabase[dict[str, Any]]:
        """The peer's own database."""
        return self.client[self.database_name]

    async def start(self) -> None:
        """Connect."""
        self._client = AsyncMongoClient(self.uri, tz_aware=True)
        await self._client.admin.command("ping")

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Have no books but those of these users."""
        self.opening_credits = opening_credits
        await self.client.drop_database(self.database_name)
        await open_books(self.database, users, opening_credits)

    @abstractmethod
    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge a user; raise if that may not have happened."""

    async def run(self, load: Load) -> Outcome:
        """Take the load."""
        return await drive(self.charge, load, self._at_a_time)

    async def verify(self, outcome: Outcome) -> None:
        """Compare the books with what was acknowledged. Raises BooksAreOffError."""
        if outcome.unknown:
            await asyncio.sleep(_SETTLE_SECONDS)
        await check_books(self.database, self.opening_credits, outcome)

    async def stop(self) -> None:
        """Remove the books and disconnect."""
        if self._client is not None:
            await self._client.drop_database(self.database_name)
            await self._client.close()
            self._client = None

"""This library: a key on every charge, all four collections, its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from benchmarks.hand_written import ACTION
from benchmarks.load import COST, Outcome
from benchmarks.mongo_books import Base, check_books
from benchmarks.peers import BooksAreOffError
from benchmarks.peers.mongodb import CONFIG, MongoPeer
from credit_mongo import CreditLedger
from credit_mongo.engine.lane_count import LaneCount

__all__ = ["LedgerPeer"]

# So many charges are sent again after a run, with their keys.
_REPLAYS: Final = 20
# How long the server may take to end what the run left behind.
_IDLE_SECONDS: Final = 4.0


class _FixedLanes(LaneCount):
    """Lanes that stay open."""

    def __init__(self, lanes: int) -> None:
        super().__init__(lambda: 0.0)
        self.open = lanes

    def grow(self, waiting: int, now: float) -> None:
        """Opens none."""

    def shrink(self) -> None:
        """Closes none."""


class LedgerPeer(MongoPeer):
    """credit_mongo, on a client of its own."""

    kind = "credit_mongo"

    def __init__(self, uri: str, database_name: str = "", lanes: int = 0) -> None:
        """``database_name`` is of books that are there; left out, the peer has its own.

        ``lanes`` stay open, so many; left out, the ledger opens and closes them.
        """
        super().__init__(uri)
        self._fixed_lanes = lanes
        self.database_name = database_name or self.database_name
        self._ledger: CreditLedger | None = None

    @property
    def name(self) -> str:
        """What the report calls it."""
        lanes = self._fixed_lanes
        return f"{self.kind}, {lanes} lane{'s' if lanes > 1 else ''}" if lanes else self.kind

    @property
    def ledger(self) -> CreditLedger:
        """The ledger, once opened."""
        assert self._ledger is not None
        return self._ledger

    async def open(self) -> None:
        """Open the ledger on books that are there."""
        ledger = CreditLedger.connect(self.uri, database=self.database_name, config=CONFIG)
        self._ledger = await ledger.__aenter__()
        if self._fixed_lanes:
            lanes = _FixedLanes(self._fixed_lanes)
            ledger._lanes._count = lanes
            for lane in ledger._lanes._shared:
                lane._when_empty = lanes.shrink

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Have no books but those of these users, and a ledger that has done nothing yet."""
        await super().prepare(users, opening_credits)
        await self.open()

    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge what the action costs, which is ``cost``."""
        assert cost == COST
        await self.ledger.charge(user_id, ACTION, idempotency_key=key)

    async def verify(self, outcome: Outcome) -> None:
        """Also: what is sent again is answered as before, and no transaction is left open."""
        await self.check_leftovers()
        await check_books(self.database, self.opening_credits, outcome)

    async def verify_since(self, base: Base, outcome: Outcome) -> None:
        """The same for books that had rows already."""
        await self.check_leftovers()
        await check_books(self.database, self.opening_credits, outcome, base)

    async def check_leftovers(self) -> None:
        """Before the books are checked: sending a charge again must not change them."""
        await self._check_replays()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _IDLE_SECONDS
        while still_open := await self._open_transactions():
            if loop.time() > deadline:
                raise BooksAreOffError(f"{still_open} transactions are still open")
            await asyncio.sleep(0.05)

    async def _open_transactions(self) -> int:
        status = await self.client.admin.command("serverStatus")
        return int(status["transactions"]["currentOpen"])

    async def _check_replays(self) -> None:
        charges = self.database["transactions"].find({"operation": "charge"})
        async for row in charges.sort("_id", -1).limit(_REPLAYS):
            result = await self.ledger.charge(
                row["userId"], ACTION, idempotency_key=row["idempotencyKey"]
            )
            known = (str(row["_id"]), row["balanceAfter"], True)
            if (result.transaction_id, result.balance_after, result.replayed) != known:
                raise BooksAreOffError("a charge that was sent again had another result")

    async def stop(self) -> None:
        """Close the ledger, remove the books and disconnect."""
        await self.close()
        await super().stop()

    async def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            await self._ledger.close()
            self._ledger = None

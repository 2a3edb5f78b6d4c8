"""The same batches, written by hand: the ceiling of what sharing transactions can give.

One task for each of four lanes of users; whatever waits, up to 512 charges, goes into its next
transaction: one read of the users, one bulk command for each of the four collections, the commit.
No prices, tiers, keys to look up, deadlines, audit of refusals or repeats by request: only the
balance is guarded.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_preferences import ReadPreference

from benchmarks.hand_written import READ_CONCERN, WRITE_CONCERN, charge_rows
from benchmarks.peers.mongodb import MongoPeer

__all__ = ["BatchesByHandPeer"]

_LANES: Final = 4
_LARGEST_BATCH: Final = 512


class _Waiting(NamedTuple):
    user_id: str
    cost: int
    key: str
    answer: asyncio.Future[bool]


class BatchesByHandPeer(MongoPeer):
    """Group commit without a library."""

    kind = "batches by hand"

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._queues: list[deque[_Waiting]] = [deque() for _ in range(_LANES)]
        self._tasks: list[asyncio.Task[None] | None] = [None] * _LANES

    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge a user; raise if that may not have happened."""
        lane = zlib.crc32(user_id.encode()) % _LANES
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        self._queues[lane].append(_Waiting(user_id, cost, key, answer))
        if self._tasks[lane] is None:
            self._tasks[lane] = loop.create_task(self._empty(lane))
        assert await answer

    async def stop(self) -> None:
        """End the lanes, remove the books and disconnect."""
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().stop()

    async def _empty(self, lane: int) -> None:
        queue = self._queues[lane]
        try:
            while queue:
                batch = [queue.popleft() for _ in range(min(len(queue), _LARGEST_BATCH))]
                try:
                    paid = await self._commit(batch)
                except Exception as error:
                    for waiting in batch:
                        if not waiting.answer.done():
                            waiting.answer.set_exception(error)
                else:
                    for waiting in batch:
                        if not waiting.answer.done():
                            waiting.answer.set_result(paid[waiting.key])
        finally:
            self._tasks[lane] = None

    async def _commit(self, batch: list[_Waiting]) -> dict[str, bool]:
        async def write(session: AsyncClientSession) -> dict[str, bool]:
            return await self._write(batch, session)

        async with self.client.start_session() as session:
            return await session.with_transaction(
                write, READ_CONCERN, WRITE_CONCERN, ReadPreference.PRIMARY
            )

    async def _write(self, batch: list[_Waiting], session: AsyncClientSession) -> dict[str, bool]:
        """Write a batch in the session's transaction; returns by key whether it was paid."""
        now = datetime.now(timezone.utc)
        user_ids = list({waiting.user_id for waiting in batch})
        users = self.database["users"].find(
            {"_id": {"$in": user_ids}}, {"credits": 1, "seq": 1}, session=session, batch_size=1000
        )
        before = {user["_id"]: user for user in await users.to_list(None)}
        after = {user_id: (user["credits"], user["seq"]) for user_id, user in before.items()}
        rows: list[tuple[dict[str, Any], ...]] = []
        paid: dict[str, bool] = {}
        for user_id, cost, key, _ in batch:
            balance, seq = after[user_id]
            paid[key] = balance >= cost
            if paid[key]:
                after[user_id] = (balance - cost, seq + 1)
                rows.append(charge_rows(user_id, seq + 1, balance, cost=cost, key=key, now=now))
        updates = [
            {
                "q": {"_id": user_id, "credits": {"$gte": user["credits"] - after[user_id][0]}},
                "u": {
                    "$inc": {
                        "credits": after[user_id][0] - user["credits"],
                        "seq": after[user_id][1] - user["seq"],
                    },
                    "$set": {"updatedAt": now},
                },
            }
            for user_id, user in before.items()
        ]
        await self._command({"update": "users", "updates": updates}, session)
        if rows:
            names = ("transactions", "audit_logs", "idempotency_records")
            for name, documents in zip(names, zip(*rows, strict=True), strict=True):
                await self._command({"insert": name, "documents": list(documents)}, session)
        return paid

    async def _command(self, command: dict[str, Any], session: AsyncClientSession) -> None:
        # Raw commands: insert_many(), with its result for every row, takes more of the client.
        reply = await self.database.command(command, session=session)
        assert "writeErrors" not in reply, reply["writeErrors"]

"""PostgreSQL: the four writes in a stored function, called through asyncpg with a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.hand_written import ACTION
from benchmarks.load import COST, Load, Outcome, drive
from benchmarks.peers import BooksAreOffError

__all__ = ["PostgresPeer"]

_SCHEMA: Final = Path(__file__).with_suffix(".sql")

_OPEN: Final = """
INSERT INTO users (id, credits, seq, created_at, updated_at)
SELECT id, $2, 1, now(), now() FROM unnest($1::text[]) AS id;
"""
_OPENING_TRANSACTIONS: Final = """
WITH opening AS (
    INSERT INTO transactions (
        user_id, seq, operation, action, amount, balance_before, balance_after, created_at
    ) SELECT id, 1, 'create_user', 'create_user', credits, 0, credits, now() FROM users
    RETURNING id, user_id
)
INSERT INTO audit_logs (id, user_id, operation, action, status, created_at)
SELECT id, user_id, 'create_user', 'create_user', 'success', now() FROM opening;
"""
# What each user has, and what its transactions make of it: one row a user.
_BALANCES: Final = """
SELECT u.id, u.credits, u.seq, coalesce(t.total, 0) AS total, coalesce(t.count, 0) AS count,
    coalesce(t.last, 0) AS last, coalesce(t.unbroken, false) AS unbroken
FROM users u LEFT JOIN (
    SELECT user_id, sum(amount)::bigint AS total, count(*) AS count, max(seq) AS last,
        bool_and(balance_before = before AND balance_after = before + amount AND seq = number)
            AS unbroken
    FROM (
        SELECT *, coalesce(lag(balance_after) OVER of_one_user, 0) AS before,
            row_number() OVER of_one_user AS number
        FROM transactions WINDOW of_one_user AS (PARTITION BY user_id ORDER BY seq)
    ) AS chain
    GROUP BY user_id
) AS t ON t.user_id = u.id
"""
# Rows of one table without their match in the others.
_UNMATCHED: Final = """
SELECT
    (SELECT count(*) FROM transactions t FULL JOIN audit_logs a USING (id)
     WHERE t.id IS NULL OR a.id IS NULL OR a.status <> 'success')
    + (SELECT count(*) FROM (SELECT * FROM transactions WHERE operation = 'charge') t
       FULL JOIN idempotency_records r ON r.key = t.idempotency_key
       WHERE t.id IS NULL OR r.key IS NULL
       OR (r.result ->> 'transaction_id')::bigint <> t.id OR r.user_id <> t.user_id)
"""


async def _leave_as_it_is(connection: object) -> None:
    """A charge leaves nothing behind in its session."""


class PostgresPeer:
    """PostgreSQL with a pool of one size."""

    kind = "PostgreSQL"

    def __init__(self, connection: Mapping[str, Any], pool_size: int) -> None:
        self.name = f"{self.kind}, {pool_size} connections"
        self._connection = connection
        self._pool_size = pool_size
        self._pool: Any = None
        self._used_key_error: type[Exception] = Exception
        self._opening_credits = 0

    async def start(self) -> None:
        """Connect, with all connections of the pool."""
        import asyncpg  # noqa: PLC0415 - optional; the server has said so if it is not there

        self._used_key_error = asyncpg.UniqueViolationError
        self._pool = await asyncpg.create_pool(
            **self._connection,
            min_size=self._pool_size,
            max_size=self._pool_size,
            # asyncpg's own way to reset a connection is another round trip for every charge.
            reset=_leave_as_it_is,
        )

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Have no books but those of these users."""
        self._opening_credits = opening_credits
        async with self._pool.acquire() as connection:
            await connection.execute(_SCHEMA.read_text())
            await connection.execute(_OPEN, list(users), opening_credits)
            await connection.execute(_OPENING_TRANSACTIONS)
            await connection.execute("ANALYZE")

    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge a user; raise if that may not have happened."""
        try:
            balance = await self._pool.fetchval(
                "SELECT charge($1, $2, $3, $4)", user_id, ACTION, cost, key
            )
        except self._used_key_error:
            balance = await self._pool.fetchval(
                "SELECT (result ->> 'balance_after')::bigint FROM idempotency_records"
                " WHERE key = $1 AND user_id = $2",
                key,
                user_id,
            )
        assert balance is not None

    async def run(self, load: Load) -> Outcome:
        """Take the load."""
        return await drive(self.charge, load)

    async def verify(self, outcome: Outcome) -> None:
        """Compare the books with what was acknowledged. Raises BooksAreOffError."""
        missing = set(outcome.acknowledged)
        for user in await self._pool.fetch(_BALANCES):
            missing.discard(user["id"])
            name, charges = user["id"], user["count"] - 1
            if not user["unbroken"] or not user["seq"] == user["last"] == user["count"]:
                raise BooksAreOffError(f"{name}: the chain of transactions is broken")
            if user["credits"] != user["total"]:
                raise BooksAreOffError(f"{name}: the balance is not the sum of its transactions")
            least = outcome.acknowledged.get(name, 0)
            if not least <= charges <= least + outcome.unknown.get(name, 0):
                raise BooksAreOffError(f"{name}: {charges} charges stored, {least} acknowledged")
            if user["credits"] != self._opening_credits - COST * charges:
                raise BooksAreOffError(f"{name}: did not pay {COST} for each of {charges} charges")
        if missing:
            raise BooksAreOffError(f"{len(missing)} users that were charged are not there")
        if unmatched := await self._pool.fetchval(_UNMATCHED):
            raise BooksAreOffError(f"{unmatched} rows have no match in the other tables")

    async def stop(self) -> None:
        """Remove the books and disconnect."""
        if self._pool is not None:
            await self._pool.execute(
                "DROP TABLE IF EXISTS users, transactions, audit_logs, idempotency_records"
            )
            await self._pool.close()
            self._pool = None

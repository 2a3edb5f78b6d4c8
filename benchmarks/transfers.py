"""Transfers in the application's own transactions beside plain calls, on the same few users.

``python -m benchmarks.transfers [--transfers 120] [--plain 48] [--users 4]`` does the same work in
turns through the ledger and by hand: each transfer takes from one user and gives to another in one
transaction, and each plain call gives to one user in a transaction of its own. Everybody begins at
once. A plain call by hand fails at the ledger's deadline too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo import CreditConfig, CreditError, CreditLedger
from credit_mongo.local import LocalReplicaSet

__all__ = ["main"]

_CONFIG: Final = CreditConfig(costs={"transfer": {"default": 1}})
_DEADLINE_SECONDS: Final = _CONFIG.operation_timeout_seconds
_CREDITS: Final = 1_000_000
_Step: TypeAlias = Callable[[str, int, AsyncClientSession], Awaitable[object]]
_Plain: TypeAlias = Callable[[str], Awaitable[object]]
_Client: TypeAlias = AsyncMongoClient[dict[str, Any]]


async def _run(
    client: _Client, move: _Step, give: _Plain, options: argparse.Namespace, seed: int
) -> str:
    """Return one line about one run."""
    draw = random.Random(seed)
    users = [f"user-{number}" for number in range(options.users)]
    pairs = [draw.sample(users, 2) for _ in range(options.transfers)]
    began = time.monotonic()

    async def transfer(source: str, target: str) -> float:
        async def work(session: AsyncClientSession) -> None:
            await move(source, -1, session)
            await move(target, 1, session)

        async with client.start_session() as session:
            await session.with_transaction(work)
        return time.monotonic() - began

    async def plain(user: str) -> float | None:
        try:
            await asyncio.wait_for(give(user), _DEADLINE_SECONDS + 1)
        except (CreditError, asyncio.TimeoutError):
            return None
        return time.monotonic() - began

    transfers = asyncio.gather(*(transfer(*pair) for pair in pairs), return_exceptions=True)
    plains = await asyncio.gather(*(plain(draw.choice(users)) for _ in range(options.plain)))
    ends = await transfers
    failed = [end for end in ends if isinstance(end, BaseException)]
    done = sorted(end for end in plains if end is not None)
    median = f"{statistics.median(done):5.2f} s" if done else "never"
    return (
        f"{plains.count(None):>3} of {len(plains)} plain calls failed, median {median}; "
        f"{len(failed)} of {len(ends)} transfers failed, all over after "
        f"{time.monotonic() - began:5.1f} s"
    )


async def _by_hand(client: _Client, options: argparse.Namespace, seed: int) -> str:
    books = client["by_hand"]
    for name in ("users", "rows"):
        await books[name].delete_many({})
    documents: Any = [{"_id": f"user-{n}", "credits": _CREDITS} for n in range(options.users)]
    await books["users"].insert_many(documents)

    async def move(user: str, amount: int, session: AsyncClientSession) -> None:
        changed = await books["users"].update_one(
            {"_id": user, "credits": {"$gte": -amount}},
            {"$inc": {"credits": amount}},
            session=session,
        )
        assert changed.matched_count == 1
        await books["rows"].insert_one({"userId": user, "amount": amount}, session=session)

    async def give(user: str) -> None:
        async with client.start_session() as session:
            await session.with_transaction(lambda own: move(user, 1, own))

    return await _run(client, move, give, options, seed)


async def _by_the_ledger(client: _Client, options: argparse.Namespace, seed: int) -> str:
    async with CreditLedger(client[f"ledger_{seed}"], _CONFIG) as ledger:
        await ledger.ensure_indexes()
        for number in range(options.users):
            await ledger.create_user(f"user-{number}", credits=_CREDITS)

        async def move(user: str, amount: int, session: AsyncClientSession) -> None:
            if amount < 0:
                await ledger.charge(user, "transfer", amount=-amount, session=session)
            else:
                await ledger.grant(user, amount, action="transfer", session=session)

        async def give(user: str) -> object:
            return await ledger.grant(user, 1, action="gift")

        return await _run(client, move, give, options, seed)


async def _measure(options: argparse.Namespace) -> int:
    async with (
        LocalReplicaSet(1) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        for number in range(options.rounds):
            print(f"the ledger: {await _by_the_ledger(client, options, number)}", flush=True)
            print(f"by hand:    {await _by_hand(client, options, number)}", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.transfers`` and return its exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("--transfers", type=int, default=120)
    parser.add_argument("--plain", type=int, default=48)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    return asyncio.run(_measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())

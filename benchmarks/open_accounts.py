"""Accounts for existing users: ``python -m benchmarks.open_accounts [--documents 1000000]``.

An application's documents get accounts by ``credit-mongo migrate open-accounts``, as a process of
its own: documents a second from its start to its end, and its peak memory. Before that, what
charges meet while it works: windows of the same load with and without it take turns. At the end,
verification looks at all accounts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.commands import charge_beside, run_command
from benchmarks.load import OPENING_CREDITS, Load, user_ids
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CollectionNames, CreditLedger, UserMapping
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify

__all__ = ["main"]

_DOCUMENTS_AT_ONCE: Final = 10_000
_WARM_UP_SECONDS: Final = 3.0
_CONFIG: Final = CONFIG.model_copy(
    update={"collections": CollectionNames(users="members"), "users": UserMapping()}
)
# Those of every ten documents with a balance of the application's own, if asked for.
_OLD_BALANCES: Final = (12.5, "7", -3.25)

_Database = AsyncDatabase[dict[str, Any]]


async def _fill(database: _Database, documents: int, *, with_balances: bool) -> None:
    """Insert the application's documents, and set the ledger up beside them."""
    joined = datetime.now(timezone.utc)
    for first in range(0, documents, _DOCUMENTS_AT_ONCE):
        made: list[dict[str, Any]] = [
            {
                "_id": f"member-{number:08}",
                "name": f"Member {number}",
                "email": f"member-{number}@example.org",
                "createdAt": joined,
                "settings": {"language": "en", "theme": "dark"},
            }
            for number in range(first, min(first + _DOCUMENTS_AT_ONCE, documents))
        ]
        if with_balances:
            for number, document in enumerate(made):
                if number % 10 < len(_OLD_BALANCES):
                    document["credits"] = _OLD_BALANCES[number % 10]
        await database["members"].insert_many(made, ordered=False)
    async with CreditLedger(database, _CONFIG) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
    await database.client.admin.command("fsync")


async def _charge_beside(
    uri: str, database: _Database, options: argparse.Namespace, command: Sequence[str]
) -> None:
    users = user_ids(options.users)
    await _fill(database, options.documents, with_balances=False)
    async with CreditLedger(database, _CONFIG) as ledger:
        await asyncio.gather(*(ledger.create_user(each, credits=OPENING_CREDITS) for each in users))
    load = Load(options.callers, users, options.seconds, _WARM_UP_SECONDS)
    await charge_beside(
        *command,
        grows="transactions",
        database=database,
        uri=uri,
        config=_CONFIG,
        load=load,
        rounds=options.rounds,
    )
    opened = await database["transactions"].count_documents({"operation": "create_user"})
    print(f"{opened - len(users):,} accounts were opened beside it", flush=True)


async def _measure(options: argparse.Namespace, directory: Path) -> int:
    file = directory / "config.json"
    file.write_text(_CONFIG.to_json(), encoding="utf-8")
    command = ("migrate", "open-accounts", "--credits", "100", "--config", str(file))
    async with (
        LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        uri = replica_set.uri
        if options.rounds:
            await _charge_beside(uri, client["beside"], options, command)
            await client.drop_database("beside")
        if options.only_beside:
            return 0
        database, documents = client["members"], options.documents
        await _fill(database, documents, with_balances=options.balances)
        rules = ("--floats", "round", "--negative", "debt") if options.balances else ()
        for what in ("the accounts", "the same again"):
            cost = await run_command(*command, *rules, database=database, uri=uri)
            cost.tell(what, documents, "documents")
        opened = await database["members"].count_documents({"seq": {"$gte": 1}})
        found = await verify(database, collections=_CONFIG.collections, users=_CONFIG.users)
        print(f"{opened:,} accounts; {found.findings_total} findings of the verification")
        return 1 if opened != documents or found.findings_total else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks.open_accounts`` and return its exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.open_accounts", description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--balances", action="store_true", help="3 of 10 have an old balance")
    parser.add_argument("--users", type=int, default=1_000, help="who are charged beside it")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="windows beside it")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--only-beside", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_measure(options, Path(directory)))


if __name__ == "__main__":
    sys.exit(main())

"""Backup and restore at work: ``python -m benchmarks.backup [--rows 1000000]``.

Transactions with their audit logs and keys are inserted. Then the commands back them up, prove the
backup and restore it, as processes of their own: documents a second from their start to their end,
and their peak memory. Before that, what charges meet while a backup is made: windows of the same
load with and without it take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.commands import charge_beside, run_command
from benchmarks.load import Load, user_ids
from benchmarks.old_books import fill
from benchmarks.peers.mongodb import CONFIG
from credit_mongo.local import LocalReplicaSet

__all__ = ["main"]

_WARM_UP_SECONDS: Final = 3.0

Database: TypeAlias = AsyncDatabase[dict[str, Any]]


async def _charge_beside(
    uri: str, database: Database, options: argparse.Namespace, place: Path
) -> None:
    """Windows of the same load, by turns without a backup and with one."""
    users = user_ids(options.users)
    await fill(database, users, options.rows // 2, with_keys=True)
    await charge_beside(
        *("backup", str(place), "--keep", "0h"),
        database=database,
        uri=uri,
        config=CONFIG,
        load=Load(options.callers, users, options.seconds, _WARM_UP_SECONDS),
        rounds=options.rounds,
        repeats=True,
    )


async def _measure(options: argparse.Namespace, directory: Path) -> int:
    async with (
        LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        uri = replica_set.uri
        if options.rounds:
            await _charge_beside(uri, client["beside"], options, directory / "beside")
            await client.drop_database("beside")
        if options.only_beside:
            return 0
        database, place = client["backup"], str(directory / "place")
        await fill(database, user_ids(options.users), options.rows, with_keys=True)
        documents = 3 * options.rows + options.users
        cost = await run_command("backup", place, database=database, uri=uri)
        cost.tell("full backup", documents, "documents")
        cost = await run_command("backup", place, "--incremental", database=database, uri=uri)
        cost.tell("incremental backup of nothing", 1, "mark")
        cost = await run_command("restore", place, database=client["restored"], uri=uri)
        cost.tell("restore with verify", documents, "documents")
        cost = await run_command("backup", "verify", place, database=client["restored"], uri=uri)
        cost.tell("backup verify", documents, "documents")
        return 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="windows beside a backup")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--only-beside", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_measure(options, Path(directory)))


if __name__ == "__main__":
    sys.exit(main())

"""The archive and the export at work: ``python -m benchmarks.archive [--rows 1000000]``.

Years of transactions with their audit logs are inserted, then the commands move and export them, as
processes of their own: rows a second from their start to their end, and their peak memory. Before
that, what charges meet while the archive works: windows of the same load with and without it take
turns. At the end, verification looks at all that was moved.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.commands import charge_beside, run_command
from benchmarks.load import Load, user_ids
from benchmarks.old_books import fill
from benchmarks.peers.mongodb import CONFIG
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify

__all__ = ["main"]

# All rows are older.
_CUT_OFF: Final = ("--older-than", "6mo")
_WARM_UP_SECONDS: Final = 3.0

_Database = AsyncDatabase[dict[str, Any]]


async def _charge_beside(uri: str, database: _Database, options: argparse.Namespace) -> None:
    """Windows of the same load, by turns without the archive and with it."""
    users = user_ids(options.users)
    await fill(database, users, options.rows // 2)
    load = Load(options.callers, users, options.seconds, _WARM_UP_SECONDS)
    await charge_beside(
        *("archive", *_CUT_OFF),
        grows="transactions_archive",
        database=database,
        uri=uri,
        config=CONFIG,
        load=load,
        rounds=options.rounds,
    )
    moved = await database["transactions_archive"].estimated_document_count()
    print(f"{moved:,} transactions moved")


async def _measure(options: argparse.Namespace) -> int:
    async with (
        LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        uri = replica_set.uri
        if options.rounds:
            await _charge_beside(uri, client["beside"], options)
            await client.drop_database("beside")
        if options.only_beside:
            return 0
        database, users = client["archive"], user_ids(options.users)
        await fill(database, users, options.rows)
        with tempfile.TemporaryDirectory() as directory:
            for ending in ("csv", "jsonl", "parquet"):
                output = Path(directory, f"all.{ending}")
                cost = await run_command(
                    "export", "--output", str(output), database=database, uri=uri
                )
                cost.tell(f"export as {ending}", options.rows)
                await asyncio.to_thread(output.unlink)
            for kind in ("transactions", "audit-logs"):
                cost = await run_command(
                    "archive", *_CUT_OFF, "--only", kind, *options.to, database=database, uri=uri
                )
                cost.tell(f"archive of {kind} {' '.join(options.to[2:])}", options.rows)
        left = await database["transactions"].estimated_document_count()
        found = await verify(database)
        print(f"{left} transactions left; {len(found.findings)} findings of the verification")
        return 1 if left or found.findings else 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="windows beside the archive")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--only-beside", action="store_true")
    parser.add_argument("--format", choices=("bson", "parquet"), help="archive to files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        to_files = ["--to", f"{directory}/archive", "--format", options.format]
        options.to = to_files if options.format else []
        return asyncio.run(_measure(options))


if __name__ == "__main__":
    sys.exit(main())

"""The import of a Credit SDK deployment: ``python -m benchmarks.imports [--rows 1000000]``.

A deployment is filled in a SQL database, and the command imports it, as a process of its own: rows
a second from its start to its end, and its peak memory. A row is one of the deployment's, of any of
its four tables. Then some users are charged in the deployment, and the command is run again, as it
would be during the switch. At the end, verification looks at everything.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from pymongo import AsyncMongoClient

from benchmarks.credit_sdk import TABLES, create_tables, fill
from benchmarks.mariadb_server import MariaDbServer
from benchmarks.peers.postgresql_server import PostgresServer
from credit_mongo import CreditConfig, CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_CONFIG: Final = CreditConfig(costs={"generate-post": {"default": 10}})
_CHARGED: Final = 1_000


@asynccontextmanager
async def _sqlite() -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"sqlite:///{directory}/sdk.db"


@asynccontextmanager
async def _postgresql() -> AsyncIterator[str]:
    async with PostgresServer(0.25, 10) as server:
        login = f"{server.user}:{server.password}@127.0.0.1:{server.port}"
        yield f"postgresql+psycopg://{login}/postgres"


@asynccontextmanager
async def _mariadb() -> AsyncIterator[str]:
    async with MariaDbServer() as server:
        login = f"{server.user}:{server.password}@127.0.0.1:{server.port}"
        yield f"mysql+pymysql://{login}/{server.database}"


_KINDS: Final[dict[str, Callable[[], AbstractAsyncContextManager[str]]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "mariadb": _mariadb,
}


async def _import(url: str, uri: str, database: str) -> tuple[float, float]:
    """Run the command, and return its seconds and its peak memory in megabytes."""
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "credit_mongo", "import", "credit-sdk"),
        *("--uri", uri, "--database", database),
        cwd=_ROOT,
        env={**os.environ, "CREDIT_SDK_URL": url},
        stdout=asyncio.subprocess.PIPE,
    )
    highest = 0
    reading = asyncio.ensure_future(process.communicate())
    while not reading.done():
        highest = max(highest, _peak_bytes(process.pid))
        await asyncio.wait([reading], timeout=0.05)
    output, _ = await reading
    print(output.decode(), end="")
    assert process.returncode == 0, process.returncode
    return time.perf_counter() - begun, highest / 1e6


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else 0


def _charge_more(engine: sa.Engine, rows: int) -> None:
    """Charge some users in the deployment."""
    users, transactions = (TABLES.tables[name] for name in ("User", "Transaction"))
    with engine.begin() as connection:
        latest = sa.select(sa.func.max(transactions.c.createdAt))
        at = connection.execute(latest).scalar_one()
        some = sa.select(users.c.id, users.c.credits).order_by(users.c.id).limit(_CHARGED)
        made = [
            {"id": f"clnew{rows + number:020d}", "userId": user_id, "action": "generate-post"}
            | {"amount": -10, "balanceBefore": before, "balanceAfter": before - 10}
            | {"metadata": {}, "createdAt": at}
            for number, (user_id, before) in enumerate(connection.execute(some).all())
        ]
        connection.execute(transactions.insert(), made)
        charged = users.update().where(users.c.id == sa.bindparam("userId"))
        changes = [{name: row[name] for name in ("userId", "balanceAfter")} for row in made]
        connection.execute(charged.values(credits=sa.bindparam("balanceAfter")), changes)


async def _measure(kind: str, options: argparse.Namespace, uri: str) -> bool:
    rows, users, keys = options.rows, options.users, options.rows // 100
    async with _KINDS[kind]() as url, AsyncMongoClient[dict[str, Any]](uri) as client:
        engine = sa.create_engine(url)
        create_tables(engine)
        await asyncio.to_thread(fill, engine, users=users, transactions=rows, keys=keys)
        database = client[f"from_{kind}"]
        async with CreditLedger(database, _CONFIG) as ledger:
            await ledger.ensure_indexes()
        own_url = url.replace("+psycopg", "").replace("+pymysql", "")
        seconds, megabytes = await _import(own_url, uri, database.name)
        total = users + 2 * rows + keys
        print(
            f"{kind}: {rows:,} transactions of {users:,} users ({total:,} rows) "
            f"in {seconds:.1f} s: {total / seconds:,.0f} rows/s, "
            f"{rows / seconds:,.0f} transactions/s, "
            f"{megabytes:.0f} MB",
            flush=True,
        )
        await asyncio.to_thread(_charge_more, engine, rows)
        seconds, megabytes = await _import(own_url, uri, database.name)
        print(f"{kind}: {_CHARGED:,} charges more in {seconds:.1f} s, {megabytes:.0f} MB")
        engine.dispose()
        found = await verify(database)
        print(f"{kind}: {len(found.findings)} findings of the verification", flush=True)
        await client.drop_database(database.name)
        return not found.findings


async def _run(options: argparse.Namespace) -> int:
    async with LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set:
        agree = [await _measure(kind, options, replica_set.uri) for kind in options.kinds]
    return 0 if all(agree) else 1


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="transactions")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=["sqlite", "postgresql"])
    return asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())

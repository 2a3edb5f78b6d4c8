"""Studio's pages at scale: ``python -m benchmarks.studio [--rows 1000000] [--users 100000]``.

Two years of transactions with their audit logs are inserted, with refused attempts and holds. Then
each page is asked for again and again, each time for another user or place: the time from the
request to the whole answer, without a network, and its weight. At the end, the cost of the live
view: processor time of the server for one reading. Studio reads at most every two seconds, however
many people look.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import unescape
from typing import Any, Final

from bson import Int64, ObjectId
from httpx import ASGITransport, AsyncClient
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.hand_written import charge_rows
from benchmarks.peers.mongodb import CONFIG
from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.usage.activity import activity_of
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.studio.application import studio

__all__ = ["main"]

_ROWS_AT_ONCE: Final = 5_000
_PAST: Final = timedelta(days=730)
_OPENING: Final = 1_000_000
_COST: Final = 10
_REFUSED_EVERY: Final = 25
_HOLD_EVERY: Final = 50
_ACTIVE_HOLDS: Final = 2_000
_TIERS: Final = (None, None, None, "free", "premium")
_FIGURES: Final = ("day", "week", "month")
_LIVE_READINGS: Final = 200
_LIVE_EVERY_SECONDS: Final = 2.0

_Database = AsyncDatabase[dict[str, Any]]


async def _fill(database: _Database, users: int, rows: int) -> None:
    """Each user's chain of charges after the opening credits; the users take turns."""
    async with CreditLedger(database, CONFIG) as ledger:
        await ledger.ensure_indexes()
    begun, step = datetime.now(timezone.utc) - _PAST, _PAST / rows
    for first in range(0, rows, _ROWS_AT_ONCE):
        numbers = range(first, min(first + _ROWS_AT_ONCE, rows))
        made = [_row(number, users, begun + step * number) for number in numbers]
        transactions, audit_logs = (list(each) for each in zip(*made, strict=True))
        audit_logs += [_refusal(row) for row in audit_logs[::_REFUSED_EVERY]]
        holds = [_hold(row) for row in transactions[::_HOLD_EVERY]]
        for name, documents in (
            ("transactions", transactions),
            ("audit_logs", audit_logs),
            ("holds", holds),
        ):
            await _insert(database, name, documents)
        if first % 100_000 == 0:
            print(f"{first:,} transactions inserted", flush=True)
    for first in range(0, users, _ROWS_AT_ONCE):
        numbers = range(first, min(first + _ROWS_AT_ONCE, users))
        await _insert(
            database, "users", [_user(each, users, rows, begun, step) for each in numbers]
        )
    # The newest holds are active, as far as their documents tell.
    newest = database["holds"].find({}, {"_id": 1}, sort=[("_id", -1)], limit=_ACTIVE_HOLDS)
    ids = [row["_id"] async for row in newest]
    await database["holds"].update_many({"_id": {"$in": ids}}, {"$set": {"status": "active"}})
    await database.client.admin.command("fsync")


async def _insert(database: _Database, name: str, documents: Sequence[dict[str, Any]]) -> None:
    await database.command(
        {"insert": name, "documents": list(documents), "ordered": False, "writeConcern": {"w": 1}}
    )


def _user_id(number: int) -> str:
    return f"user-{number:07}"


def _row(number: int, users: int, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    earlier, user = divmod(number, users)
    balance = _OPENING - _COST * (earlier - 1) if earlier else 0
    cost = _COST if earlier else -_OPENING
    transaction, audit_log, _ = charge_rows(
        _user_id(user), earlier + 1, balance, cost=cost, key=f"{number:032x}", now=now
    )
    transaction["_id"] = audit_log["_id"] = _id(now, number)
    if not earlier:
        transaction["operation"] = audit_log["operation"] = "create_user"
    names = ("amount", "balanceBefore", "balanceAfter")
    audit_log["details"] = {**{name: transaction[name] for name in names}, "tier": None}
    return transaction, audit_log


def _id(now: datetime, number: int) -> ObjectId:
    """An id of its time, as the ledger's are."""
    return ObjectId(int(now.timestamp()).to_bytes(4, "big") + number.to_bytes(8, "big"))


def _refusal(audit_log: dict[str, Any]) -> dict[str, Any]:
    refused = {"status": "failed", "details": {"code": "INSUFFICIENT_CREDITS"}}
    error = {"errorMessage": "user has 5 of the 10 units required"}
    return {
        **audit_log,
        **refused,
        **error,
        "_id": ObjectId(audit_log["_id"].binary[:4] + b"r" * 8),
    }


def _hold(transaction: dict[str, Any]) -> dict[str, Any]:
    row_id = transaction["_id"].binary
    amounts = {"amount": Int64(20), "captured": Int64(10), "uncollected": Int64(0)}
    return {
        "_id": ObjectId(row_id[:4] + b"h" + row_id[5:]),
        "userId": transaction["userId"],
        "action": transaction["action"],
        **amounts,
        "used": Int64(10),
        "status": "captured",
        "expiresAt": transaction["createdAt"] + timedelta(minutes=1),
        "onTimeout": "settle",
        "overage": "available",
        "price": Int64(10),
        "tier": None,
        "createdAt": transaction["createdAt"],
        "updatedAt": transaction["createdAt"] + timedelta(seconds=30),
        "changedBy": transaction["_id"],
        "metadata": None,
    }


def _user(number: int, users: int, rows: int, begun: datetime, step: timedelta) -> dict[str, Any]:
    count = rows // users + (number < rows % users)
    last = begun + step * (number + users * (count - 1))
    return {
        "_id": _user_id(number),
        "email": f"person.{number * 7919 % users}@example.com",
        "credits": Int64(_OPENING - _COST * (count - 1)),
        "seq": Int64(count),
        "membershipTier": _TIERS[number % len(_TIERS)] if number % 1000 else "enterprise",
        "membershipExpiresAt": None,
        "createdAt": begun,
        "updatedAt": last,
    }


@dataclass(frozen=True)
class _Measured:
    """The times of one page in milliseconds, and its weight in bytes."""

    name: str
    times: list[float]
    weight: int

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.times, n=20)[-1] if len(self.times) > 1 else self.times[0]

    def tell(self) -> None:
        print(
            f"{self.name:44} median {statistics.median(self.times):6.1f} ms, "
            f"p95 {self.p95:6.1f} ms, {self.weight / 1000:6.1f} kB",
            flush=True,
        )


class _Visitor:
    """Asks for pages, each time for something else."""

    def __init__(self, client: AsyncClient, database: _Database, users: int) -> None:
        self._client = client
        self._database = database
        self._users = users
        self._random = random.Random(11)

    def user(self) -> str:
        return _user_id(self._random.randrange(self._users))

    async def transaction(self) -> str:
        row = await self._database["transactions"].find_one({"userId": self.user()}, {"_id": 1})
        assert row is not None
        return str(row["_id"])

    async def hold(self) -> str:
        found = self._database["holds"].aggregate([{"$sample": {"size": 1}}])
        [row] = await (await found).to_list()
        return str(row["_id"])

    async def measure(self, name: str, paths: Sequence[str]) -> _Measured:
        times, weight = [], 0
        for path in paths:
            begun = time.perf_counter()
            answer = await self._client.get(path)
            times.append((time.perf_counter() - begun) * 1000)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[-600:])
            weight = max(weight, len(answer.content))
        return _Measured(name, times, weight)

    async def walk(self, name: str, path: str, pages: int) -> _Measured:
        """From page to page."""
        times, weight = [], 0
        for _ in range(pages):
            one = await self.measure(name, [path])
            times += one.times
            weight = max(weight, one.weight)
            links = re.findall(r'href="([^"]*)" rel="next"', (await self._client.get(path)).text)
            if not links:
                break
            path = unescape(links[0]).partition("#")[0]
        return _Measured(name, times, weight)


async def _pages(visitor: _Visitor, turns: int) -> list[_Measured]:
    users = [visitor.user() for _ in range(turns)]
    transactions = [await visitor.transaction() for _ in range(turns)]
    holds = [await visitor.hold() for _ in range(turns)]
    measure, walk = visitor.measure, visitor.walk
    return [
        *[
            await measure(f"figures of a {each}, first time", [f"/overview/figures?period={each}"])
            for each in _FIGURES
        ],
        await measure(
            "figures, kept", [f"/overview/figures?period={_FIGURES[n % 3]}" for n in range(turns)]
        ),
        await measure("overview", ["/"] * turns),
        await measure("overview, live", ["/overview/live"] * turns),
        await walk("users", "/users", turns),
        await measure(
            "users by the beginning of an id", [f"/users?search={each[:9]}" for each in users]
        ),
        await measure(
            "users by e-mail", [f"/users?by=email&search=person.{n}" for n in range(turns)]
        ),
        await walk("users of a tier with a fifth of all", "/users?tier=premium", turns),
        await walk("users of a tier with a thousandth", "/users?tier=enterprise", turns),
        await walk("users with a balance that few have", "/users?least=2000000", turns),
        await measure(
            "users of a tier by balance", ["/users?tier=enterprise&order=highest"] * turns
        ),
        await measure("one user", [f"/user?id={each}" for each in users]),
        await measure(
            "one user, by operation", [f"/user?id={each}&operation=grant" for each in users]
        ),
        await measure("one transaction", [f"/transaction?id={each}" for each in transactions]),
        await walk("refused attempts", "/refused", turns),
        await walk("refused attempts of a code that is not there", "/refused?code=X", turns),
        await walk("audit log", "/audit-log", turns),
        await walk("audit log of an action that is not there", "/audit-log?action=x", turns),
        await measure("audit log of a user", [f"/audit-log?user={each}" for each in users]),
        await walk("holds", "/holds", turns),
        await walk("holds, active", "/holds?status=active", turns),
        await measure("one hold", [f"/hold?id={each}" for each in holds]),
        await measure("archives", ["/archives"] * turns),
        await measure("verification", ["/verification"] * turns),
        await measure("prices", ["/settings?action=generate-post"] * turns),
    ]


async def _static_bytes(client: AsyncClient) -> int:
    page = (await client.get("/")).text
    files = re.findall(r'(?:src|href)="(/static/[^"]*)"', page)
    return sum([len((await client.get(unescape(each))).content) for each in files])


async def _live_cost(database: _Database) -> float:
    """Processor time of the server for one reading of the live view, in milliseconds."""
    ledger = LedgerDatabase.of(database)
    begun = await _cpu_of_server(database)
    for _ in range(_LIVE_READINGS):
        await activity_of(ledger, datetime.now(timezone.utc))
    return (await _cpu_of_server(database) - begun) / _LIVE_READINGS * 1000


async def _cpu_of_server(database: _Database) -> float:
    used = (await database.command("serverStatus"))["extra_info"]
    return float(used["user_time_us"] + used["system_time_us"]) / 1e6


async def _measure(options: argparse.Namespace) -> int:
    async with (
        LocalReplicaSet(members=1, cache_gigabytes=options.cache_gigabytes) as replica_set,
        AsyncMongoClient[dict[str, Any]](replica_set.uri, tz_aware=True) as client,
    ):
        database = client["studio"]
        await _fill(database, options.users, options.rows)
        await database["users"].create_index("email")
        async with CreditLedger(database, CONFIG) as ledger:
            pages = studio(ledger, authorize=lambda _: "ann", search_fields=["email"])
            transport = ASGITransport(pages)
            async with AsyncClient(transport=transport, base_url="http://localhost") as browser:
                measured = await _pages(_Visitor(browser, database, options.users), options.turns)
                files = await _static_bytes(browser)
        for each in measured:
            each.tell()
        cost = await _live_cost(database)
        share = cost / 1000 / _LIVE_EVERY_SECONDS
        print(f"style sheet, scripts and icon: {files / 1000:.1f} kB")
        print(f"live view: {cost:.2f} ms of the server a reading, {share:.2%} of one core")
        # The page comes before its figures, and shows the last ones while it makes new ones.
        slow = [
            each.name
            for each in measured
            if each.p95 > options.most_milliseconds and not each.name.endswith("first time")
        ]
        heavy = [each.name for each in measured if each.weight + files > options.most_bytes]
        print(f"slower than {options.most_milliseconds:.0f} ms: {slow or 'none'}; ", end="")
        print(f"heavier than {options.most_bytes / 1000:.0f} kB: {heavy or 'none'}")
        return 1 if slow or heavy else 0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=40, help="requests for each page")
    parser.add_argument("--cache-gigabytes", type=float, default=2.0, help="of the server")
    parser.add_argument("--most-milliseconds", type=float, default=300.0)
    parser.add_argument("--most-bytes", type=int, default=300_000)
    return asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())

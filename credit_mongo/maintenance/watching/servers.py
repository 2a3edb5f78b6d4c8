"""How the servers do: latencies, connections, transactions that stay open, members."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["Latencies", "LatencyMeter", "OpenTransaction", "open_transactions"]

LONG_OPEN_SECONDS: Final = 1.0
_MOST_TRANSACTIONS: Final = 5
# Of serverStatus, those that cost most and that nobody reads here.
_WITHOUT: Final = dict.fromkeys(("metrics", "wiredTiger", "repl", "locks", "tcmalloc"), 0)
_KINDS: Final = ("reads", "writes", "commands", "transactions")


class Latencies(NamedTuple):
    """How long the primary took for an operation, on average since the look before."""

    reads: float | None
    """In milliseconds, as the others. None if there was no such operation."""
    writes: float | None
    commands: float | None
    transactions: float | None
    """Commands in transactions, commits included."""
    connections: int
    """How many connections are open."""
    active: int
    """How many of them have a command under way."""


class LatencyMeter:
    """Compares the server's counters with those of the look before."""

    def __init__(self) -> None:
        self._server = ""
        self._before: dict[str, tuple[int, int]] = {}

    async def read(self, database: LedgerDatabase) -> Latencies:
        """Raises PyMongoError."""
        status = await database.ask_admin({"serverStatus": 1, **_WITHOUT})
        found = status["opLatencies"]
        now = {kind: (int(found[kind]["latency"]), int(found[kind]["ops"])) for kind in _KINDS}
        # Another primary, or one that was started anew, has counters of its own.
        server = f"{status['host']} {status['pid']}"
        before = self._before if server == self._server else now
        self._server, self._before = server, now
        connections: Raw = status["connections"]
        reads, writes, commands, transactions = (
            _average(before[kind], now[kind]) for kind in _KINDS
        )
        open_ones, active = connections["current"], connections.get("active", 0)
        return Latencies(reads, writes, commands, transactions, open_ones, active)


def _average(before: tuple[int, int], now: tuple[int, int]) -> float | None:
    microseconds, operations = now[0] - before[0], now[1] - before[1]
    return microseconds / operations / 1000 if operations > 0 else None


class OpenTransaction(NamedTuple):
    """A transaction that has been open for long. It may keep users from being charged."""

    seconds: float
    """For how long."""
    application: str
    """The name that the client has given itself; empty if it has none."""
    client: str
    """The client's address."""
    is_idle: bool
    """Whether no command of it is under way."""


async def open_transactions(database: LedgerDatabase) -> tuple[OpenTransaction, ...]:
    """Those that are open for a second or longer, the oldest first. Raises PyMongoError."""
    opened: Raw = {"transaction.timeOpenMicros": {"$gte": int(LONG_OPEN_SECONDS * 1_000_000)}}
    reply = await database.ask_admin(
        {
            "aggregate": 1,
            "pipeline": [
                {"$currentOp": {"allUsers": True, "idleSessions": True}},
                {"$match": opened},
                {"$sort": {"transaction.timeOpenMicros": -1}},
                {"$limit": _MOST_TRANSACTIONS},
                {
                    "$project": {
                        "open": "$transaction.timeOpenMicros",
                        "appName": 1,
                        "client": 1,
                        "type": 1,
                    }
                },
            ],
            "cursor": {},
        }
    )
    return tuple(_transaction(row) for row in reply["cursor"]["firstBatch"])


def _transaction(row: dict[str, Any]) -> OpenTransaction:
    return OpenTransaction(
        seconds=int(row["open"]) / 1_000_000,
        application=str(row.get("appName", "")),
        client=str(row.get("client", "")),
        is_idle=row.get("type") == "idleSession",
    )

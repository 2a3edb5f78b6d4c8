"""The runs of the archive, as their manifests tell, and what is where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bson import ObjectId

from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw

__all__ = ["ArchiveRun", "Contents", "archive_runs", "contents_of"]

_MOST_MANIFESTS: Final = 50
_FIRST_ID: Final = ObjectId("0" * 24)
_KINDS: Final = {"transactions": "transactions", "auditLogs": "audit logs", "holds": "holds"}


@dataclass(frozen=True, slots=True)
class ArchiveRun:
    """One lane of a run. ``amount`` is the sum of its transactions, in smallest units."""

    manifest_id: str
    state: str
    """"running", "done" or "interrupted"."""
    started_at: datetime | None
    ended_at: datetime | None
    cut_off: datetime | None
    destination: str
    moved: Mapping[str, int]
    amount: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows a collection has by the server's estimate, and its oldest row's time."""

    name: str
    documents: int
    oldest: datetime | None


async def archive_runs(ledger: LedgerDatabase) -> tuple[ArchiveRun, ...]:
    """The last runs, the newest first. Without those whose manifests can't be read."""
    rows = (
        await ledger[ledger.names.archive_manifests]
        .find({"_id": {"$gte": _FIRST_ID}}, sort=[("_id", -1)], limit=_MOST_MANIFESTS)
        .to_list()
    )
    return tuple(_run(row) for row in rows)


async def contents_of(ledger: LedgerDatabase) -> tuple[Contents, ...]:
    """What the collections of transactions have, live and archived."""
    found = []
    for name in (ledger.names.transactions, ledger.names.transactions_archive):
        oldest = await ledger[name].find_one(
            {"createdAt": {"$type": "date"}}, {"createdAt": 1}, sort=[("createdAt", 1)]
        )
        count = await ledger[name].estimated_document_count()
        found.append(Contents(name, count, _moment(oldest or {}, "createdAt")))
    return tuple(found)


def _run(row: Raw) -> ArchiveRun:
    tallies = {kind: row.get(kind) for kind in _KINDS}
    counts = {
        words: int(tally["count"])
        for kind, words in _KINDS.items()
        if isinstance(tally := tallies[kind], Mapping) and isinstance(tally.get("count"), int)
    }
    transactions = tallies["transactions"]
    amount = transactions.get("amount") if isinstance(transactions, Mapping) else 0
    files = row.get("files")
    return ArchiveRun(
        manifest_id=str(row["_id"]),
        state=str(row.get("state")),
        started_at=_moment(row, "startedAt"),
        ended_at=_moment(row, "endedAt"),
        cut_off=_moment(row, "cutOff"),
        destination=_words(row.get("destination")),
        moved=counts,
        amount=int(amount) if isinstance(amount, int) else 0,
        files=tuple(
            str(each.get("name"))
            for each in (files if isinstance(files, list) else ())
            if isinstance(each, Mapping)
        ),
    )


def _words(destination: Any) -> str:
    if isinstance(destination, Mapping):
        return " ".join(str(value) for value in destination.values())
    return "" if destination is None else str(destination)


def _moment(row: Mapping[str, Any], name: str) -> datetime | None:
    moment = in_utc(row.get(name))
    return moment if isinstance(moment, datetime) else None

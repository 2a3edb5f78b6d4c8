"""The last backups of a ledger, noted in its database for those who look later.

The note stands in the document that marks the ledger's backups. It tells nothing that a restore
needs: a backup's own manifest does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from credit_mongo.config import BACKUPS_COLLECTION
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.numbers import in_utc

__all__ = ["BackupRun", "backup_runs", "note_run"]

_MOST_RUNS: Final = 50


@dataclass(frozen=True, slots=True)
class BackupRun:
    """A backup that was finished."""

    name: str
    kind: str
    """"full" or "incremental"."""
    ended_at: datetime | None
    moment: datetime | None
    """The second that it shows."""
    documents: int
    """How many documents it holds; of an incremental backup: how many changes."""
    bytes: int
    place: str
    """Without what a URL has of a name and a password."""


async def note_run(ledger: LedgerDatabase, run: BackupRun) -> None:
    """Note a backup that is whole. Raises PyMongoError."""
    noted = {
        "name": run.name,
        "kind": run.kind,
        "endedAt": run.ended_at,
        "moment": run.moment,
        "documents": run.documents,
        "bytes": run.bytes,
        "place": run.place,
    }
    await ledger[BACKUPS_COLLECTION].update_one(
        {"_id": ledger.names.transactions},
        {"$push": {"runs": {"$each": [noted], "$slice": -_MOST_RUNS}}},
    )


async def backup_runs(ledger: LedgerDatabase) -> tuple[BackupRun, ...]:
    """Return the last backups, the newest first. Leaves out what is no such note."""
    row = await ledger[BACKUPS_COLLECTION].find_one({"_id": ledger.names.transactions}, {"runs": 1})
    noted = [] if row is None else row.get("runs")
    runs = noted if isinstance(noted, list) else []
    return tuple(_run(each) for each in reversed(runs) if isinstance(each, Mapping))


def _run(row: Mapping[str, Any]) -> BackupRun:
    return BackupRun(
        name=str(row.get("name")),
        kind=str(row.get("kind")),
        ended_at=_moment(row, "endedAt"),
        moment=_moment(row, "moment"),
        documents=_count(row, "documents"),
        bytes=_count(row, "bytes"),
        place=str(row.get("place")),
    )


def _moment(row: Mapping[str, Any], name: str) -> datetime | None:
    moment = in_utc(row.get(name))
    return moment if isinstance(moment, datetime) else None


def _count(row: Mapping[str, Any], name: str) -> int:
    number = row.get(name)
    return int(number) if isinstance(number, int) else 0

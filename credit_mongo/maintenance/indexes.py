"""The collections, indexes and validators that the ledger wants, brought about without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config import CollectionNames

__all__ = ["IndexChange", "IndexReport", "ensure_indexes"]


@dataclass(frozen=True, slots=True)
class IndexChange:
    """One thing that was wanted, and how it stands."""

    collection: str
    name: str
    kind: str
    state: str
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What was created, kept, changed, and what is in the way."""

    changes: tuple[IndexChange, ...]


async def ensure_indexes(
    database: AsyncDatabase[Any],
    names: CollectionNames,
    *,
    validators: bool = True,
    dry_run: bool = False,
) -> IndexReport:
    """Create what is missing."""
    raise NotImplementedError

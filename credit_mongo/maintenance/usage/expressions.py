"""Aggregation expressions and stages for the queries of a usage report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from credit_mongo.storage.rows import Raw

__all__ = ["either", "exact_sum", "looked_up", "part_of", "with_integers"]


def exact_sum(amount: Any) -> Raw:
    """Sum exactly, as a decimal of 34 digits. An int64 sum could become a double."""
    return {"$sum": {"$toDecimal": amount}}


def either(condition: Raw, value: Any, otherwise: Any = 0) -> Raw:
    """Return ``value`` if the condition holds, else ``otherwise``."""
    return {"$cond": [condition, value, otherwise]}


def part_of(bounds: Sequence[datetime], first: int = 0) -> Any:
    """Find the part a row is in, counted from 0. Binary search: there may be a hundred parts."""
    if len(bounds) == 1:
        return first
    half = len(bounds) // 2
    return either(
        {"$lt": ["$createdAt", bounds[half]]},
        part_of(bounds[:half], first),
        part_of(bounds[half:], first + half),
    )


def looked_up(name: str, collections: Sequence[str], field: str, by: str = "refundOf") -> list[Raw]:
    """Look up the row whose id is in the field ``by``, as a list of one row or none."""
    lists = [f"{name}{number}" for number in range(len(collections))]
    stages: list[Raw] = [
        {
            "$lookup": {
                "from": collection,
                "localField": by,
                "foreignField": "_id",
                "pipeline": [{"$project": {field: 1}}],
                "as": each,
            }
        }
        for each, collection in zip(lists, collections, strict=True)
    ]
    return [*stages, {"$set": {name: {"$concatArrays": [f"${each}" for each in lists]}}}]


def with_integers(row: Raw) -> Raw:
    """Convert decimals, which are all whole numbers, to ints."""
    for name, value in row.items():
        if isinstance(value, list) and name != "_id":
            row[name] = [with_integers(each) for each in value]
        elif hasattr(value, "to_decimal"):
            row[name] = int(value.to_decimal())
    return row

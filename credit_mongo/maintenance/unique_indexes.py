"""Finds unique indexes of the application that would refuse the ledger's rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

__all__ = ["refuses_rows"]

# Fields whose values differ between any two rows.
_ALWAYS_UNIQUE: Final = ({"_id"}, {"userId", "seq"})
_METADATA: Final = "metadata."


def refuses_rows(index: Mapping[str, Any], written: Collection[str]) -> bool:
    """Return whether the index would refuse a second row with the fields ``written``.

    A unique index treats all rows that lack its fields as equal, because null equals null. If the
    index is sparse, or partial by a field that the ledger doesn't write, it contains no rows of the
    ledger. The application may use such an index for its own metadata.
    """
    keys = set(index["key"])
    if not index.get("unique"):
        return False
    if any(unique <= keys for unique in _ALWAYS_UNIQUE):
        return False
    partial: Mapping[str, Any] = index.get("partialFilterExpression") or {}
    if any(_is_foreign(field, written) and _needs_it(partial[field]) for field in partial):
        return False
    return not (index.get("sparse") and all(_is_foreign(field, written) for field in keys))


def _is_foreign(field: str, written: Collection[str]) -> bool:
    return field.startswith(_METADATA) or field.split(".", maxsplit=1)[0] not in written


def _needs_it(condition: object) -> bool:
    """Return whether the condition excludes all documents that lack the field."""
    if not isinstance(condition, Mapping):
        return condition is not None
    if condition.get("$exists") is False:
        return False
    return "$eq" not in condition or condition["$eq"] is not None

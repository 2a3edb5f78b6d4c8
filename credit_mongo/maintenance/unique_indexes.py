"""Unique indexes of the application's that would refuse the ledger's rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

__all__ = ["refuses_rows"]

# What no two rows of a user have in common.
_ALWAYS_UNIQUE: Final = ({"_id"}, {"userId", "seq"})
_METADATA: Final = "metadata."


def refuses_rows(index: Mapping[str, Any], written: Collection[str]) -> bool:
    """Whether a second row of the ledger's would be refused, which has the fields ``written``.

    To a unique index, all rows that lack its fields have the same values: null. One that is sparse,
    or partial by a field that the ledger does not write, has none of the ledger's rows; and what an
    application keeps apart in its own metadata that way is its own affair.
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
    """Whether a condition on a field holds for no document that lacks it."""
    if not isinstance(condition, Mapping):
        return condition is not None
    if condition.get("$exists") is False:
        return False
    return "$eq" not in condition or condition["$eq"] is not None

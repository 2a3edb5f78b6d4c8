"""Queries for values that don't have the type that the ledger writes.

The server has no bounds in an index for "not of this type", and scans all of it. It has bounds for
each of the other types, which are empty in healthy books.
"""

from __future__ import annotations

from typing import Final

from credit_mongo.storage.rows import Raw

__all__ = ["DATE", "STRING", "of_other_types"]

STRING: Final = 2
DATE: Final = 9
# The numbers of all BSON types but two. Null is queried with missing fields. An array matches by
# what it holds.
_NULL, _ARRAY = 10, 4
_TYPES: Final = frozenset({-1, *range(1, 20), 127}) - {_NULL, _ARRAY, 6, 12}


def of_other_types(field: str, number: int) -> Raw:
    """Return the query for documents in which a field is missing or has another type.

    ``number`` is the number of the BSON type. An array matches if it is empty, or holds a value of
    another type.
    """
    other = sorted(_TYPES - {number})
    return {"$or": [{field: {"$in": [None, []]}}, {field: {"$type": other}}]}

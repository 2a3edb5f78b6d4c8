"""Ids, numbers and moments in the form in which the database keeps them."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Final

from bson import Int64, ObjectId

__all__ = ["in_utc", "to_int64", "to_moment", "to_object_id"]

# The same few numbers stand in several rows. The garbage collector looks at each Int64, and a dozen
# for each charge would be a third of what it has to look at.
to_int64: Final = lru_cache(maxsize=8192)(Int64)


def to_object_id(transaction_id: str) -> ObjectId | str:
    """Return a transaction id as it is stored. Rows of other software may have other ids."""
    return ObjectId(transaction_id) if ObjectId.is_valid(transaction_id) else transaction_id


@lru_cache(maxsize=1024)
def to_moment(moment: datetime) -> datetime:
    """How a moment is stored: the driver encodes a naive one, in UTC, in a third of the time.

    A batch is decided as of one moment, which stands in all of its rows.
    """
    return moment.astimezone(timezone.utc).replace(tzinfo=None)


def in_utc(value: Any) -> Any:
    """Return a datetime with its time zone, whether or not it was decoded with it. Else the value.

    The users of a batch are decoded without (``FOR_USERS``).
    """
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=timezone.utc)
    return value

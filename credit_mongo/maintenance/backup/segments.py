"""Which changes come on top of what was read, if a backup took several snapshots."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from credit_mongo.maintenance.backup.documents import Change, order_of_id
from credit_mongo.maintenance.backup.manifest import Segment, Time

__all__ = ["Segments"]


class Segments:
    """Knows at which cluster time each document was read."""

    def __init__(self, segments: Mapping[str, Sequence[Segment]]) -> None:
        self._times: dict[str, list[Time]] = {}
        self._bounds: dict[str, list[tuple[Any, ...]]] = {}
        for collection, parts in segments.items():
            self._times[collection] = [each.time for each in parts]
            self._bounds[collection] = [
                order_of_id(bytes.fromhex(each.after)) for each in parts if each.after is not None
            ]

    def is_later(self, change: Change) -> bool:
        """Whether a change was committed after its document was read."""
        times = self._times.get(change.collection)
        if times is None:
            return True
        if len(times) == 1:
            return change.time > times[0]
        bounds = self._bounds[change.collection]
        # A bound is the last id that was read before the next part.
        part = bisect_left(bounds, order_of_id(change.id))
        return change.time > times[part]

"""Borders: how far a user's transactions are archived, and the balance there. Pure.

The archive holds the beginning of a user's chain, from ``seq`` 1 up to the border. The border moves
in the same database transaction as the rows. So the remaining rows go on from the border at every
moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from bson import Int64

from credit_mongo.core.operations.correction import CorrectionRequest
from credit_mongo.storage.rows import Raw

__all__ = [
    "NO_BORDER",
    "Border",
    "Place",
    "Segment",
    "border_from",
    "border_or_none",
    "follow",
    "settled_by",
]

Place: TypeAlias = Literal["collection", "files"]
_WHOLE: Final = frozenset({int, Int64})


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive transactions that were moved to the same kind of place."""

    place: Place
    seq: int
    """The ``seq`` of the last transaction."""
    balance: int
    """The balance after the last transaction, in smallest units."""
    created_at: Any
    """When the last transaction was made."""


@dataclass(frozen=True, slots=True)
class Border:
    """How far a user's transactions are archived: up to and including ``seq``."""

    user_id: str
    segments: tuple[Segment, ...] = ()
    settles: tuple[Raw, ...] = field(default=(), repr=False)
    """The findings that archived corrections have settled."""

    @property
    def seq(self) -> int:
        """The last archived ``seq``, which is also the number of archived transactions, or 0."""
        return self.segments[-1].seq if self.segments else 0

    @property
    def balance(self) -> int:
        """The balance after the last archived transaction: the sum of all archived amounts."""
        return self.segments[-1].balance if self.segments else 0

    @property
    def created_at(self) -> Any:
        """When the last archived transaction was made, or None if there is none."""
        return self.segments[-1].created_at if self.segments else None

    @property
    def has_files(self) -> bool:
        """Whether some archived transactions are in files, and so not in the database."""
        return any(segment.place == "files" for segment in self.segments)

    def is_filed(self, moment: object) -> bool:
        """Whether a transaction made at this moment may be in a file."""
        begin: Any = None
        for segment in self.segments:
            try:
                after_begin = begin is None or moment >= begin
                if segment.place == "files" and after_begin and moment <= segment.created_at:
                    return True
            except TypeError:
                return False
            begin = segment.created_at
        return False

    def filed_up_to(self, seq: int | None) -> Segment | None:
        """Return the segment in files that ends with the transaction ``seq``, or None."""
        for segment in self.segments:
            if segment.place == "files" and segment.seq == seq:
                return segment
        return None

    def opening_of(self, segment: Segment) -> tuple[int, int]:
        """Return ``seq`` and balance before a segment's first transaction."""
        number = self.segments.index(segment)
        before = self.segments[number - 1] if number else None
        return (before.seq, before.balance) if before is not None else (0, 0)

    def moved_to(
        self, place: Place, rows: Sequence[Mapping[str, Any]], settles: Sequence[Raw]
    ) -> Border:
        """Return the border after ``rows``, the user's next transactions."""
        last = rows[-1]
        segment = Segment(place, int(last["seq"]), int(last["balanceAfter"]), last["createdAt"])
        kept = self.segments
        if kept and kept[-1].place == place:
            kept = kept[:-1]
        return Border(self.user_id, (*kept, segment), (*self.settles, *settles))

    def to_row(self) -> Raw:
        """Return the form in which the border is stored."""
        return {
            "_id": self.user_id,
            "seq": Int64(self.seq),
            "balance": Int64(self.balance),
            "count": Int64(self.seq),
            "createdAt": self.created_at,
            "segments": [
                {
                    "place": segment.place,
                    "seq": Int64(segment.seq),
                    "balance": Int64(segment.balance),
                    "createdAt": segment.created_at,
                }
                for segment in self.segments
            ],
            "settles": list(self.settles),
        }


NO_BORDER: Final = Border("")


def border_from(row: Mapping[str, Any]) -> Border:
    """Read a stored border. Raises KeyError, TypeError or ValueError if it is malformed."""
    segments = tuple(
        Segment(s["place"], _whole(s["seq"]), _whole(s["balance"]), s["createdAt"])
        for s in row["segments"]
    )
    border = Border(row["_id"], segments, tuple(row.get("settles", ())))
    seqs = [segment.seq for segment in segments]
    if not segments or sorted(set(seqs)) != seqs or seqs[0] < 1:
        raise ValueError("segments")
    facts = (row["seq"], row["balance"], row["count"])
    if facts != (border.seq, border.balance, border.seq):
        raise ValueError("seq")
    return border


def border_or_none(row: Mapping[str, Any]) -> Border | None:
    """Read a stored border. Return None if it is malformed."""
    try:
        return border_from(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def follow(border: Border, rows: Sequence[Raw]) -> tuple[int, str]:
    """Count the rows (oldest first) that go on from the border. Say why the next one doesn't."""
    seq, balance, moment = border.seq, border.balance, border.created_at
    for number, row in enumerate(rows):
        after, amount, created_at = row.get("balanceAfter"), row.get("amount"), row.get("createdAt")
        if row.get("seq") is None:
            return number, "has no seq"
        kinds = {type(row["seq"]), type(after), type(amount), type(row.get("balanceBefore"))}
        if not kinds <= _WHOLE or type(created_at) is not datetime:
            return number, "has a field of the wrong type"
        if row["seq"] != seq + 1 or (moment is not None and created_at < moment):
            return number, "does not follow the one before"
        if row["balanceBefore"] != balance or balance + row["amount"] != after:
            return number, "does not go on from the balance before"
        seq, balance, moment = seq + 1, after, created_at
    return len(rows), ""


def settled_by(rows: Iterable[Raw]) -> list[Raw]:
    """Return the findings that corrections among the rows have settled."""
    return [
        record
        for row in rows
        if row.get("operation") == CorrectionRequest.operation
        and isinstance(row.get("correction"), dict)
        for record in row["correction"].get("settles", ())
    ]


def _whole(value: Any) -> int:
    if type(value) not in _WHOLE:
        raise TypeError
    return int(value)

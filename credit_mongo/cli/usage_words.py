"""Numbers, moments and names of a usage report as people read them."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from typing import Final

from credit_mongo.maintenance.usage import Sums, Usage, UsedBy
from credit_mongo.printing import printable

__all__ = ["UNIT", "compact", "cut", "named", "period", "share", "totals"]

UNIT: Final = "credits (smallest units)"
NO_TIER: Final = "no tier"
OTHERS: Final = "all others"
_SCALES: Final = (
    (10**21, "sextillion"),
    (10**18, "quintillion"),
    (10**15, "quadrillion"),
    (10**12, "trillion"),
    (10**9, "billion"),
    (10**6, "million"),
)


def cut(text: str, columns: int) -> str:
    """The text in as many columns (wide characters take two), cut off with an ellipsis."""
    width = 0
    kept: list[str] = []
    for character in text:
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            break
        kept.append(character)
    if len(kept) == len(text):
        return text
    return "".join(kept[:-1]).rstrip() + "…"


def compact(amount: float) -> str:
    """An amount to the third digit: 999,999, 1.23 million, 12.3 quadrillion."""
    for size, word in _SCALES:
        # What rounds up to the next word is written with it.
        if abs(amount) >= size * 0.9995:
            scaled = amount / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0  # noqa: PLR2004
            number = f"{scaled:,.{digits}f}"
            return f"{number.rstrip('0').rstrip('.') if digits else number} {word}"
    return f"{amount:,.0f}" if amount == int(amount) else f"{amount:,g}"


def share(amount: int, total: int) -> str:
    """How much of the total it is, in percent."""
    if total <= 0:
        return ""
    percent = 100 * amount / total
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"  # noqa: PLR2004


def period(usage: Usage) -> str:
    """From when to when; only days if it is whole days."""
    moments = (usage.start, usage.end)
    if all(
        moment == moment.replace(hour=0, minute=0, second=0, microsecond=0) for moment in moments
    ):
        last = usage.end - timedelta(days=1)
        if last == usage.start:
            return f"{last:%Y-%m-%d} (UTC)"
        return f"{usage.start:%Y-%m-%d} to {last:%Y-%m-%d}, both included (UTC)"
    return f"{_moment(usage.start)} up to {_moment(usage.end)} (UTC)"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment.second == 0 else f"{moment:%Y-%m-%d %H:%M:%S}"


def totals(sums: Sums) -> list[tuple[str, int]]:
    """What became of credits, by name; what did not happen only if it usually does."""
    rows = [
        ("granted", sums.granted),
        ("spent", sums.spent),
        ("refunded", sums.refunded),
    ]
    rare = [
        ("added by tier changes", sums.tier_changes_added),
        ("taken by tier changes", sums.tier_changes_taken),
        ("added by corrections", sums.corrections_added),
        ("taken by corrections", sums.corrections_taken),
        ("added by other software", sums.other_added),
        ("taken by other software", sums.other_taken),
    ]
    return rows + [(name, amount) for name, amount in rare if amount]


def named(places: tuple[UsedBy, ...], others: int, other_name: str) -> list[UsedBy]:
    """The places of a list, and last what is not named in it."""
    rows = [
        UsedBy(
            NO_TIER if each.name is None else printable(each.name),
            each.amount,
            each.transactions,
            each.refunded,
        )
        for each in places
    ]
    return [*rows, UsedBy(other_name, others, 0)] if others else rows

"""Write a usage report's numbers, moments and names for people."""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final, NamedTuple

from credit_mongo.core.pricing import in_credits
from credit_mongo.maintenance.usage.periods import zone_of
from credit_mongo.maintenance.usage.results import Sums, Usage, UsedBy
from credit_mongo.printing import moment_to_seconds, printable

__all__ = [
    "Listed",
    "Scale",
    "change",
    "compact",
    "fold",
    "lists_of",
    "period",
    "period_before",
    "share",
    "totals",
]

NO_TIER: Final = "no tier"
OTHERS: Final = "all others"
UNKNOWN: Final = "not known"
_SCALES: Final = (
    (10**21, "sextillion"),
    (10**18, "quintillion"),
    (10**15, "quadrillion"),
    (10**12, "trillion"),
    (10**9, "billion"),
    (10**6, "million"),
)


class Scale(NamedTuple):
    """How to write amounts: in credits, if the ledger has decimal places."""

    decimal_places: int

    @property
    def unit(self) -> str:
        """The unit of the amounts."""
        return "credits" if self.decimal_places else "credits (smallest units)"

    def exact(self, amount: int) -> str:
        """An amount to the last unit: 1,234.50."""
        return in_credits(amount, self.decimal_places)

    def compact(self, amount: int) -> str:
        """An amount with three digits: 1.23 million."""
        return compact(amount / 10**self.decimal_places)

    def drawn(self, amount: int) -> float:
        """An amount as a length in a picture."""
        return float(amount / 10**self.decimal_places)


class Listed(NamedTuple):
    """One list of a report: the largest rows, and the sum of all others."""

    title: str
    of: str
    counted: str
    rows: tuple[UsedBy, ...]
    others: UsedBy | None
    total: int
    is_spent: bool
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The rows' names as shown."""
        rows = (*self.rows, *([self.others] if self.others else []))
        return tuple(NO_TIER if each.name is None else printable(each.name) for each in rows)


_TIER_NOTE: Final = (
    "Each charge counts for the tier in force at its time. That tier is not known if the charge's "
    "audit row is no longer in the database. Neither is the tier of a refund that names no charge."
)
_ACTION_NOTE: Final = (
    "A refund counts for the action of the charge that it names. If it names none, it counts for "
    "its own action."
)


def lists_of(usage: Usage) -> tuple[Listed, Listed, Listed, Listed]:
    """The lists of a report: spent by action, tier and user, and granted by action."""
    spent, granted = usage.totals.spent, usage.totals.granted
    return (
        Listed(
            "Spent by action",
            "action",
            "charges",
            usage.spent_by_action,
            _others(OTHERS, usage.spent_by_other_actions, usage.refunded_of_other_actions),
            spent,
            is_spent=True,
            note=_ACTION_NOTE,
        ),
        Listed(
            "Spent by tier",
            "tier",
            "charges",
            usage.spent_by_tier,
            _others(UNKNOWN, usage.spent_by_other_tiers, usage.refunded_of_other_tiers),
            spent,
            is_spent=True,
            note=_TIER_NOTE,
        ),
        Listed(
            "Top spenders",
            "user",
            "charges",
            usage.top_spenders,
            _others(OTHERS, usage.spent_by_other_users, usage.refunded_to_other_users),
            spent,
            is_spent=True,
        ),
        Listed(
            "Granted by action",
            "action",
            "grants",
            usage.granted_by_action,
            _others(OTHERS, usage.granted_by_other_actions, 0),
            granted,
            is_spent=False,
        ),
    )


def _others(name: str, amount: int, refunded: int) -> UsedBy | None:
    # Their transactions were not counted.
    return UsedBy(name, amount, 0, refunded) if amount or refunded else None


def fold(text: str, columns: int, lines: int = 1) -> str:
    """The text in at most ``lines`` lines of ``columns`` columns. Wide characters take two columns.

    A longer text loses its middle. Both ends stay, because ids that begin alike differ at the end.
    """
    if _width(text) > columns * lines:
        kept = columns * lines - 1
        begin, end = _first(text, kept - kept // 2), _first(text[::-1], kept // 2)[::-1]
        text = f"{begin}…{end}"
    folded = []
    while text:
        folded.append(_first(text, columns))
        text = text[len(folded[-1]) :]
    return "\n".join(folded)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _first(text: str, columns: int) -> str:
    """The first characters of the text: as many as fit, and at least one."""
    number = min(len(text), columns)
    while number > 1 and _width(text[:number]) > columns:
        number -= 1
    return text[:number]


def compact(amount: float) -> str:
    """A number with three digits and a word: 999,999, 1.23 million, 12.3 quadrillion."""
    for size, word in _SCALES:
        # A number that rounds up to the next word is written with that word.
        if abs(amount) >= size * 0.9995:
            scaled = amount / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0  # noqa: PLR2004
            number = f"{scaled:,.{digits}f}"
            return f"{number.rstrip('0').rstrip('.') if digits else number} {word}"
    if abs(amount) >= 1000 or amount == int(amount):  # noqa: PLR2004
        return f"{amount:,.0f}"
    return f"{amount:,.3g}" if abs(amount) >= 0.001 else f"{amount:.1e}"  # noqa: PLR2004


def share(amount: int, total: int) -> str:
    """The amount's share of the total, in percent."""
    if total <= 0:
        return ""
    percent = 100 * amount / total
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"  # noqa: PLR2004


def change(amount: int, before: int) -> str:
    """The change from the amount before: in percent, and as a factor from 1000 % on."""
    if before <= 0 or amount < 0:
        return ""
    percent = 100 * (amount - before) / before
    if -0.5 <= percent <= 0.5:  # noqa: PLR2004
        return "0 %"
    return f"{percent:+,.0f} %" if percent < 1000 else f"× {amount / before:,.0f}"  # noqa: PLR2004, RUF001


def period(usage: Usage) -> str:
    """The report's period in its time zone. Whole days are written without times."""
    return _period(usage.start, usage.end, usage.timezone)


def period_before(usage: Usage) -> str:
    """The period before, to compare with."""
    return _period(usage.before.start, usage.before.end, usage.timezone)


def _period(start: datetime, end: datetime, zone_name: str) -> str:
    zone = zone_of(zone_name)
    first, end_of_last = (moment.astimezone(zone).replace(tzinfo=None) for moment in (start, end))
    if all(each.time() == datetime.min.time() for each in (first, end_of_last)):
        last = end_of_last - timedelta(days=1)
        days = f"{first.date()}" if last <= first else f"{first.date()} to {last.date()}"
        return f"{days} ({zone_name})"
    return f"{_moment(start, zone)} up to {_moment(end, zone)} ({zone_name})"


def _moment(moment: datetime, zone: tzinfo) -> str:
    if zone is timezone.utc:
        return moment_to_seconds(moment)
    return moment.astimezone(zone).isoformat("T", "seconds")


def totals(sums: Sums) -> list[tuple[str, int]]:
    """The sums by name. Rare kinds are listed only if they happened."""
    rows = [
        ("granted", sums.granted),
        ("spent", sums.spent),
        ("refunded", sums.refunded),
        ("net spend", sums.net_spent),
    ]
    rare = [
        ("expired", sums.expired),
        ("revoked", sums.revoked),
        ("added by tier changes", sums.tier_changes_added),
        ("taken by tier changes", sums.tier_changes_taken),
        ("added by corrections", sums.corrections_added),
        ("taken by corrections", sums.corrections_taken),
        ("added by other software", sums.other_added),
        ("taken by other software", sums.other_taken),
    ]
    return rows + [(name, amount) for name, amount in rare if amount]

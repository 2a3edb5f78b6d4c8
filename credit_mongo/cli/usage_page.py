"""The page of a usage report: one HTML file that loads nothing. It needs the extra ``report``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from credit_mongo.cli.ledgers import in_credits
from credit_mongo.cli.usage_words import OTHERS, UNIT, named, period, share, totals
from credit_mongo.maintenance.usage import Usage, UsedBy
from credit_mongo.printing import printable

__all__ = ["write_page"]

_TEMPLATE: Final = Path(__file__).with_name("usage_page.html")
_TIER_NOTE: Final = (
    "By the tier in force at the time of each charge. Not known are charges whose audit row is not "
    "in the database."
)


def write_page(usage: Usage, database: str, chart: str, decimal_places: int) -> str:
    """The page. ``chart`` is an SVG element without anybody's names; all else is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        database=printable(database),
        period=period(usage),
        unit=UNIT,
        scale=10**decimal_places if decimal_places else 0,
        in_credits=lambda amount: in_credits(amount, decimal_places),
        usage=usage,
        totals=totals(usage.totals),
        chart=Markup(chart),  # noqa: S704 - our own drawing, of numbers and dates alone
        lists=list(_lists(usage)),
    )


def _lists(usage: Usage) -> Iterator[dict[str, Any]]:
    spent, granted = usage.totals.spent, usage.totals.granted
    actions = named(usage.spent_by_action, usage.spent_by_other_actions, OTHERS)
    tiers = named(usage.spent_by_tier, usage.spent_by_other_tiers, "not known")
    spenders = named(usage.top_spenders, usage.spent_by_other_users, OTHERS)
    grants = named(usage.granted_by_action, usage.granted_by_other_actions, OTHERS)
    yield _list("Spent by action", "action", "charges", actions, spent)
    yield _list("Spent by tier", "tier", "charges", tiers, spent, note=_TIER_NOTE)
    yield _list("Top spenders", "user", "charges", spenders, spent)
    yield _list("Granted by action", "action", "grants", grants, granted, color="granted")


def _list(
    title: str,
    of: str,
    counted: str,
    rows: Sequence[UsedBy],
    total: int,
    *,
    color: str = "spent",
    note: str = "",
) -> dict[str, Any]:
    largest = max((each.amount for each in rows), default=0)
    return {
        "title": title,
        "of": of,
        "counted": counted,
        "note": note,
        "rows": [
            {
                "name": each.name,
                "amount": each.amount,
                "share": share(each.amount, total),
                "percent": 100 * each.amount // largest if largest else 0,
                # Nobody counted what is not named.
                "counted": f"{each.transactions:,}" if each.transactions else "",
                "color": color if each.transactions else "others",
            }
            for each in rows
        ],
    }

"""A usage report as one HTML page that loads nothing else. It needs the extra ``report``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from credit_mongo.maintenance.usage.results import Usage
from credit_mongo.maintenance.usage.words import (
    Listed,
    Scale,
    change,
    lists_of,
    period,
    period_before,
    share,
    totals,
)
from credit_mongo.printing import printable

__all__ = ["write_page"]

_TEMPLATE: Final = Path(__file__).with_name("usage_page.html")


def write_page(usage: Usage, database: str, chart: str, scale: Scale) -> str:
    """Write the page. ``chart`` is an SVG element without any names. All other text is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        database=printable(database),
        period=period(usage),
        period_before=period_before(usage),
        unit=scale.unit,
        units=10**scale.decimal_places,
        usage=usage,
        totals=list(_totals(usage, scale)),
        chart=Markup(chart),  # noqa: S704 - our own drawing, of numbers and dates alone
        lists=[_list(each, scale) for each in lists_of(usage)],
    )


def _totals(usage: Usage, scale: Scale) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the totals: name, this period, the period before, and the change."""
    now, before = dict(totals(usage.totals)), dict(totals(usage.before.totals))
    # Every name that occurs in either period.
    for name in {**now, **before}:
        amount, earlier = now.get(name, 0), before.get(name, 0)
        yield name, scale.exact(amount), scale.exact(earlier), change(amount, earlier)
    for name, count, earlier in (
        ("transactions", usage.transactions, usage.before.transactions),
        ("active users", usage.active_users, usage.before.active_users),
    ):
        yield name, f"{count:,}", f"{earlier:,}", change(count, earlier)


def _list(listed: Listed, scale: Scale) -> dict[str, Any]:
    # The unnamed rest has no bar, as it may be a thousand times the rest of the list.
    largest = max((each.amount for each in listed.rows), default=0)
    others = [] if listed.others is None else [listed.others]
    return {
        "title": listed.title,
        "of": listed.of,
        "counted": listed.counted,
        "note": listed.note,
        "color": "spent" if listed.is_spent else "granted",
        "has_refunds": listed.is_spent and any(row.refunded for row in (*listed.rows, *others)),
        "rows": [
            {
                "name": name,
                "amount": scale.exact(each.amount),
                "refunded": scale.exact(each.refunded),
                "net": scale.exact(each.net),
                "share": share(each.amount, listed.total),
                "percent": 100 * each.amount / largest if largest else 0,
                "is_named": each is not listed.others,
                "counted": f"{each.transactions:,}" if each is not listed.others else "",
            }
            for name, each in zip(listed.names, (*listed.rows, *others), strict=True)
        ],
    }

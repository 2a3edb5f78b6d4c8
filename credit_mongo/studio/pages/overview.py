"""The overview: what was granted, spent, held and refused, and what happens right now.

The figures of a month can take seconds where there are many transactions. So the page comes at
once, and its script asks for the figures. Without a script, a link does.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from starlette.responses import Response

from credit_mongo.maintenance.usage.words import Listed, Scale, change, lists_of, share
from credit_mongo.studio.charts import Series, bars
from credit_mongo.studio.reads import Figures
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]

_PERIODS: Final = {"week": 7, "day": 1, "month": 30}
_NAMES: Final = {"day": "24 hours", "week": "7 days", "month": "30 days"}


async def _show(visit: Visit) -> Response:
    period = visit.asked_one_of("period", tuple(_PERIODS))
    facts: dict[str, Any] = {
        "periods": _NAMES,
        "period": period,
        "title": "Overview",
        "is_update": False,
    }
    activity = await visit.reads.activity()
    if visit.asked("with") == "figures":
        facts |= await _facts(visit, period)
    return visit.render("overview.html", activity=activity, with_figures="usage" in facts, **facts)


async def _show_figures(visit: Visit) -> Response:
    period = visit.asked_one_of("period", tuple(_PERIODS))
    return visit.render("overview_figures.html", **await _facts(visit, period))


async def _show_live(visit: Visit) -> Response:
    activity = await visit.reads.activity()
    return visit.render("overview_update.html", activity=activity, is_update=True)


PAGES: Final = (
    Page("/", _show, title="Overview"),
    Page("/overview/figures", _show_figures),
    Page("/overview/live", _show_live),
)


async def _facts(visit: Visit, period: str) -> dict[str, Any]:
    figures = await visit.reads.figures(_PERIODS[period])
    usage, scale = figures.usage, Scale(visit.studio.config.decimal_places)
    names = [_name_of_part(each.start, usage.width) for each in usage.over_time]
    credits_over_time = [
        Series("granted", "granted", [each.sums.granted for each in usage.over_time]),
        Series("spent", "spent", [each.sums.spent for each in usage.over_time]),
        Series("expired", "expired", [each.sums.expired for each in usage.over_time]),
    ]
    shown = [each for each in credits_over_time if any(each.values) or each.name != "expired"]
    return {
        "figures": figures,
        "usage": usage,
        "period_name": _NAMES[period],
        "cards": list(_cards(figures, scale)),
        "series": shown,
        "parts": names,
        "chart": bars(
            f"Credits granted and spent by {usage.width}",
            names,
            shown,
            write=lambda value: scale.compact(int(value)),
            exact=lambda value: scale.exact(int(value)),
        ),
        "refused_chart": _refused_chart(figures, names),
        "lists": [_list(each, scale) for each in lists_of(usage)],
    }


class _Card(NamedTuple):
    name: str
    value: str
    change: str
    before: str
    link: str = ""


def _cards(figures: Figures, scale: Scale) -> Iterator[_Card]:
    usage = figures.usage
    now, before = usage.totals, usage.before.totals
    amounts = [
        ("granted", now.granted, before.granted),
        ("spent", now.spent, before.spent),
        ("refunded", now.refunded, before.refunded),
        ("net spend", now.net_spent, before.net_spent),
        ("expired", now.expired, before.expired),
    ]
    for name, amount, earlier in amounts:
        yield _Card(name, scale.exact(amount), change(amount, earlier), scale.exact(earlier))
    refused = sum(figures.refused)
    counts = [
        ("active users", usage.active_users, usage.before.active_users, ""),
        ("transactions", usage.transactions, usage.before.transactions, ""),
        ("refused attempts", refused, figures.refused_before, "/refused"),
    ]
    for name, count, earlier, link in counts:
        yield _Card(name, f"{count:,}", change(count, earlier), f"{earlier:,}", link)


def _refused_chart(figures: Figures, names: list[str]) -> Markup:
    if not any(figures.refused):
        return Markup("")
    return bars(
        f"Refused attempts by {figures.usage.width}",
        names,
        [Series("refused", "refused", figures.refused)],
        write=lambda value: f"{value:,.0f}",
        exact=lambda value: f"{value:,.0f}",
    )


def _name_of_part(start: datetime, width: str) -> str:
    return start.strftime("%H:%M" if width == "hour" else "%d %b")


def _list(listed: Listed, scale: Scale) -> dict[str, Any]:
    largest = max((each.amount for each in listed.rows), default=0)
    rows = [*listed.rows, *([listed.others] if listed.others else [])]
    return {
        "title": listed.title,
        "of": listed.of,
        "counted": listed.counted,
        "color": "spent" if listed.is_spent else "granted",
        "note": listed.note,
        "rows": [
            {
                "name": name,
                "user_id": each.name if listed.of == "user" and each is not listed.others else None,
                "amount": scale.exact(each.amount),
                "net": scale.exact(each.net) if listed.is_spent else "",
                "share": share(each.amount, listed.total),
                "width": round(100 * each.amount / largest, 1) if largest else 0,
                "is_named": each is not listed.others,
                "counted": f"{each.transactions:,}" if each is not listed.others else "",
            }
            for name, each in zip(listed.names, rows, strict=True)
        ],
        "is_spent": listed.is_spent,
    }

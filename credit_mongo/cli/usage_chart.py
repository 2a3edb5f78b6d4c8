"""The pictures of a usage report. They need matplotlib, of the extra ``report``."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib import dates, font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from credit_mongo.cli.usage_words import (
    OTHERS,
    UNIT,
    compact,
    cut,
    named,
    period,
    share,
    totals,
)
from credit_mongo.maintenance.usage import Sums, Usage, UsedBy
from credit_mongo.printing import printable

__all__ = ["draw_over_time", "draw_report"]

_GRANTED: Final = "#0b6e4f"
_REFUNDED: Final = "#3b6ea5"
_SPENT: Final = "#b5541c"
_TIERS: Final = "#7a5195"
_CORRECTIONS: Final = "#8c6d1f"
_OTHERS: Final = "#9a9a9a"
_GRID: Final = "#dddddd"
_DOTS_PER_INCH: Final = 150
_LONGEST_NAME: Final = 26
_INCHES_WIDE: Final = 12.5
_INCHES_A_ROW: Final = 0.27
# Draws the box that stands for what is missing, for every character there is.
_NO_FONT: Final = "Last Resort"

# Each with a scale of its own: one month's grant may be a hundred days' charges.
_TAKEN: Final = (("spent", "spent", "", _SPENT),)
_GIVEN: Final = (
    ("granted", "granted", "", _GRANTED),
    ("refunded", "refunded", "", _REFUNDED),
)
# Above the line what was given, below it what was taken.
_RARE: Final = (
    ("tier changes", "tier_changes_added", "tier_changes_taken", _TIERS),
    ("corrections", "corrections_added", "corrections_taken", _CORRECTIONS),
    ("other software", "other_added", "other_taken", _OTHERS),
)


def draw_over_time(usage: Usage) -> str:
    """What was granted and spent over time, as an SVG element without any text from outside."""
    with _style([]):
        figure = Figure(figsize=(11, 5 + 1.6 * _has_rare(usage.totals)), layout=_layout())
        _draw_over_time(figure, usage)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    svg = written.getvalue()
    return svg[svg.index("<svg") :]


def draw_report(usage: Usage, database: str) -> bytes:
    """Everything on one picture, as PNG."""
    actions = named(usage.spent_by_action, usage.spent_by_other_actions, OTHERS)
    tiers = named(usage.spent_by_tier, usage.spent_by_other_tiers, "not known")
    spenders = named(usage.top_spenders, usage.spent_by_other_users, OTHERS)
    grants = named(usage.granted_by_action, usage.granted_by_other_actions, OTHERS)
    lists = (actions, tiers, spenders, grants)
    with _style([database, *(each.name or "" for rows in lists for each in rows)]) as drawable:
        top = 5.6 + 1.6 * _has_rare(usage.totals)
        middle, bottom = (
            0.9 + _INCHES_A_ROW * max(len(left), len(right), 3)
            for left, right in ((actions, tiers), (spenders, grants))
        )
        figure = Figure(figsize=(_INCHES_WIDE, top + middle + bottom), layout=_layout())
        parts: Any = figure.subfigures(3, 1, height_ratios=(top, middle, bottom))
        above, *below = parts
        _write_heading(above, usage, cut(drawable(printable(database)), 50))
        _draw_over_time(above, usage)
        spent, granted = usage.totals.spent, usage.totals.granted
        pairs = (
            (
                _List("Spent by action", actions, spent, _SPENT),
                _List("Spent by tier", tiers, spent, _SPENT),
            ),
            (
                _List("Top spenders", spenders, spent, _SPENT),
                _List("Granted by action", grants, granted, _GRANTED),
            ),
        )
        for part, pair in zip(below, pairs, strict=True):
            # All bars as thick as each other, also where there are few.
            slots = max(3, *(len(each.rows) for each in pair))
            for panel, each in zip(part.subplots(1, 2), pair, strict=True):
                _draw_list(panel, each, slots, drawable)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_DOTS_PER_INCH)
    return written.getvalue()


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)


def _write_heading(figure: Any, usage: Usage, database: str) -> None:
    facts = "   ".join(f"{name} {compact(amount)}" for name, amount in totals(usage.totals)[:3])
    lines = [
        f"Credits granted and spent: {database}",
        f"{period(usage)}   ·   {usage.transactions:,} transactions   ·   amounts in {UNIT}",
        facts if not usage.is_empty else "Nothing happened in this period.",
    ]
    rare = totals(usage.totals)[3:]
    if rare:
        lines.append("   ".join(f"{name} {compact(amount)}" for name, amount in rare))
    figure.suptitle("\n".join(lines), fontsize=11, linespacing=1.6)


# Over time


def _has_rare(sums: Sums) -> bool:
    return any(
        getattr(sums, field) for _, added, taken, _ in _RARE for field in (added, taken) if field
    )


def _draw_over_time(figure: Any, usage: Usage) -> None:
    rare = [kind for kind in _RARE if _happened(kind, usage.totals)]
    parts = [
        (f"Spent by {usage.width}", _TAKEN, 1.2),
        (f"Granted and refunded by {usage.width}", _GIVEN, 1.0),
        *([("Tier changes and corrections", rare, 0.9)] if rare else []),
    ]
    ratios = [ratio for *_, ratio in parts]
    panels = figure.subplots(len(parts), 1, sharex=True, height_ratios=ratios)
    for panel, (title, kinds, _) in zip(panels, parts, strict=True):
        _draw_bars(panel, usage, kinds)
        panel.set_title(title, loc="left", fontsize=11)


def _happened(kind: tuple[str, str, str, str], sums: Sums) -> bool:
    return any(getattr(sums, field) for field in kind[1:3])


def _draw_bars(panel: Any, usage: Usage, kinds: Sequence[tuple[str, str, str, str]]) -> None:
    starts = [each.start.replace(tzinfo=None) for each in usage.over_time]
    ends = [*starts[1:], _end_of_last(usage, starts)]
    widths = [(end - start) * 0.86 for start, end in zip(starts, ends, strict=True)]
    above = below = [0.0] * len(starts)
    for name, added, taken, color in kinds:
        for field, sign in ((added, 1), (taken, -1)):
            if not field:
                continue
            base = above if sign > 0 else below
            heights = [float(sign * getattr(each.sums, field)) for each in usage.over_time]
            label = name if field == (added or taken) else None
            panel.bar(starts, heights, widths, bottom=base, align="edge", color=color, label=label)
            reached = [low + height for low, height in zip(base, heights, strict=True)]
            above, below = (reached, below) if sign > 0 else (above, reached)
    panel.axhline(0, color="#555555", linewidth=0.8)
    # It has no types of its own.
    ticks: Any = dates
    locator = ticks.AutoDateLocator(minticks=3, maxticks=9)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ticks.ConciseDateFormatter(locator))
    # Without the end itself, which may be the first moment of another month.
    panel.set_xlim(starts[0], ends[-1] - timedelta(seconds=1))
    panel.use_sticky_edges = False
    panel.margins(y=0.06)
    if not any(above) and not any(below):
        panel.set_ylim(-1, 1)
        panel.set_yticks([0])
    panel.yaxis.set_major_formatter(lambda value, _: compact(abs(value)))
    both = any(taken for _, _, taken, _ in kinds)
    panel.set_ylabel(f"{UNIT}\ntaken ↓     given ↑" if both else UNIT, fontsize=9)
    panel.tick_params(labelsize=9)
    panel.grid(visible=True, axis="y", color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(kinds),
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )


def _end_of_last(usage: Usage, starts: Sequence[datetime]) -> datetime:
    """Where the last part of the period would end if it were a whole one."""
    if len(starts) > 1:
        return starts[-1] + (starts[-1] - starts[-2])
    spans = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 30.0, "year": 365.0}
    return starts[-1] + timedelta(days=spans[usage.width])


# Lists


class _List(NamedTuple):
    title: str
    rows: Sequence[UsedBy]
    total: int
    color: str


def _draw_list(panel: Any, drawn: _List, slots: int, drawable: Callable[[str], str]) -> None:
    panel.set_title(drawn.title, loc="left", fontsize=11)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.set_xticks([])
    rows = drawn.rows
    if not rows:
        panel.spines["left"].set_visible(False)
        panel.set_yticks([])
        panel.text(0.0, 0.85, "nothing", transform=panel.transAxes, color="#666666", fontsize=10)
        return
    heights = range(len(rows))
    colors = [drawn.color if each.transactions else _OTHERS for each in rows]
    panel.barh(heights, [float(each.amount) for each in rows], height=0.68, color=colors)
    names = [cut(drawable(each.name or ""), _LONGEST_NAME) for each in rows]
    panel.set_yticks(heights, names, fontsize=9)
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(slots - 0.4, -0.6)
    panel.spines["left"].set_bounds(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, float(max(each.amount for each in rows)) or 1)
    for height, each in enumerate(rows):
        panel.annotate(
            f"{compact(each.amount)}  ({share(each.amount, drawn.total)})",
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )


# Fonts


@contextmanager
def _style(names: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """The settings to draw with, whatever the machine's own are; and what makes names drawable."""
    with mpl.rc_context():
        mpl.rcdefaults()
        characters = {each for name in names for each in printable(name)}
        families, covered = _fonts_for(characters)
        mpl.rcParams.update(
            {
                "font.family": families,
                # A name with two "$" is no formula.
                "text.parse_math": False,
                "svg.fonttype": "path",
                "svg.hashsalt": "credit-mongo",
            }
        )
        yield lambda text: "".join(
            each if each in covered else each.encode("unicode_escape").decode()
            for each in printable(text)
        )


def _fonts_for(characters: set[str]) -> tuple[list[str], set[str]]:
    """Fonts of this machine that have them, and which of the characters they have.

    matplotlib's own has Latin, Greek, Cyrillic, Arabic and more. What no font has is written as an
    escape, by which two names can still be told apart; a row of empty boxes could not.
    """
    families = ["DejaVu Sans"]
    covered = characters & _characters_of(font_manager.findfont("DejaVu Sans"))
    missing = characters - covered
    for font in sorted(font_manager.fontManager.ttflist, key=lambda each: each.name):
        if not missing:
            break
        if font.name in families or _NO_FONT in font.name or "Emoji" in font.name:
            continue
        found = missing & _characters_of(font.fname)
        if found:
            families.append(font.name)
            covered |= found
            missing -= found
    return families, covered


def _characters_of(path: str) -> set[str]:
    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (OSError, RuntimeError, ValueError):
        return set()

"""The pictures of a usage report. They need the extra ``report`` (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import matplotlib as mpl
from matplotlib import dates, font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from credit_mongo.maintenance.usage.periods import zone_of
from credit_mongo.maintenance.usage.results import Sums, Usage
from credit_mongo.maintenance.usage.words import (
    Listed,
    Scale,
    change,
    compact,
    fold,
    lists_of,
    period,
    share,
    totals,
)
from credit_mongo.printing import printable

__all__ = ["draw_over_time", "draw_report"]

_GRANTED: Final = "#0b6e4f"
_REFUNDED: Final = "#3b6ea5"
_SPENT: Final = "#b5541c"
_TIERS: Final = "#7a5195"
_CORRECTIONS: Final = "#8c6d1f"
_EXPIRED: Final = "#c9a66b"
_REVOKED: Final = "#a23b52"
_OTHERS: Final = "#9a9a9a"
_GRID: Final = "#dddddd"
_DOTS_PER_INCH: Final = 150
# An id of 36 characters fits on one line.
_NAME_COLUMNS: Final = 40
_NAME_LINES: Final = 2
_INCHES_WIDE: Final = 14
_INCHES_A_ROW: Final = 0.27
_INCHES_A_LINE: Final = 0.15
# This font covers every character, but draws only boxes.
_NO_FONT: Final = "Last Resort"

# These two have separate scales, because one grant may equal a hundred days of charges.
_TAKEN: Final = (("spent", "spent", "", _SPENT),)
_GIVEN: Final = (
    ("granted", "granted", "", _GRANTED),
    ("refunded", "refunded", "", _REFUNDED),
)
# Given credits are drawn above the line, taken ones below it.
_RARE: Final = (
    ("expired", "", "expired", _EXPIRED),
    ("revoked", "", "revoked", _REVOKED),
    ("tier changes", "tier_changes_added", "tier_changes_taken", _TIERS),
    ("corrections", "corrections_added", "corrections_taken", _CORRECTIONS),
    ("other software", "other_added", "other_taken", _OTHERS),
)


def draw_over_time(usage: Usage, scale: Scale) -> str:
    """Draw what was granted and spent over time, as an SVG element without any stored text."""
    with _style([]):
        figure = Figure(figsize=(11, 5 + 1.6 * _has_rare(usage.totals)), layout=_layout())
        _draw_over_time(figure, usage, scale)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    svg = written.getvalue()
    return svg[svg.index("<svg") :]


def draw_report(usage: Usage, database: str, scale: Scale) -> bytes:
    """Draw everything in one PNG picture. If nothing happened, it only says so."""
    lists = lists_of(usage)
    with _style([database, *(name for each in lists for name in each.names)]) as drawable:
        database = fold(drawable(printable(database)), 50)
        if usage.is_empty:
            figure = Figure(figsize=(_INCHES_WIDE, 1.1), layout=_layout())
            _write_heading(figure, usage, database, scale)
        else:
            figure = _draw_all(usage, database, lists, scale, drawable)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_DOTS_PER_INCH)
    return written.getvalue()


def _draw_all(
    usage: Usage,
    database: str,
    lists: Sequence[Listed],
    scale: Scale,
    drawable: Callable[[str], str],
) -> Figure:
    named = [
        (each, [fold(drawable(name), _NAME_COLUMNS, _NAME_LINES) for name in each.names])
        for each in lists
    ]
    pairs = (named[:2], named[2:])
    top = 5.8 + 1.6 * _has_rare(usage.totals)
    heights = [max(_inches(names) for _, names in pair) for pair in pairs]
    figure = Figure(figsize=(_INCHES_WIDE, top + sum(heights)), layout=_layout())
    parts: Any = figure.subfigures(3, 1, height_ratios=(top, *heights))
    above, *below = parts
    _write_heading(above, usage, database, scale)
    _draw_over_time(above, usage, scale)
    for part, pair in zip(below, pairs, strict=True):
        # All bars have the same height, even in short lists.
        slots = max(3, *(len(names) for _, names in pair))
        for panel, (listed, names) in zip(part.subplots(1, 2), pair, strict=True):
            _draw_list(panel, listed, names, slots, scale)
    return figure


def _inches(names: Sequence[str]) -> float:
    lines = max((name.count("\n") for name in names), default=0)
    return 0.9 + (_INCHES_A_ROW + lines * _INCHES_A_LINE) * max(len(names), 3)


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)


def _write_heading(figure: Any, usage: Usage, database: str, scale: Scale) -> None:
    before = dict(totals(usage.before.totals))

    def written(name: str, amount: int) -> str:
        changed = change(amount, before.get(name, 0))
        return f"{name} {scale.compact(amount)}{f' ({changed})' if changed else ''}"

    facts = [written(name, amount) for name, amount in totals(usage.totals)]
    users = change(usage.active_users, usage.before.active_users)
    lines = [
        f"Credits granted and spent: {database}",
        f"{period(usage)}   ·   {usage.transactions:,} transactions   ·   "
        f"{usage.active_users:,} active users{f' ({users})' if users else ''}   ·   "
        f"amounts in {scale.unit}",
        "Nothing happened in this period." if usage.is_empty else "   ".join(facts[:4]),
    ]
    if facts[4:]:
        lines.append("   ".join(facts[4:]))
    if any("(" in fact for fact in (*facts, users and "(")):
        lines.append("In brackets: the change from the period before")
    figure.suptitle("\n".join(lines), fontsize=11, linespacing=1.6)


# Over time


def _has_rare(sums: Sums) -> bool:
    return any(_happened(kind, sums) for kind in _RARE)


def _draw_over_time(figure: Any, usage: Usage, scale: Scale) -> None:
    rare = [kind for kind in _RARE if _happened(kind, usage.totals)]
    parts = [
        (f"Spent by {usage.width}", _TAKEN, 1.2),
        (f"Granted and refunded by {usage.width}", _GIVEN, 1.0),
        *([("Other changes", rare, 0.9)] if rare else []),
    ]
    ratios = [ratio for *_, ratio in parts]
    panels = figure.subplots(len(parts), 1, sharex=True, height_ratios=ratios)
    for panel, (title, kinds, _) in zip(panels, parts, strict=True):
        _draw_bars(panel, usage, kinds, scale)
        panel.set_title(title, loc="left", fontsize=11)


def _happened(kind: tuple[str, str, str, str], sums: Sums) -> bool:
    return any(getattr(sums, field) for field in kind[1:3] if field)


def _draw_bars(
    panel: Any, usage: Usage, kinds: Sequence[tuple[str, str, str, str]], scale: Scale
) -> None:
    starts = [each.start for each in usage.over_time]
    ends = [*starts[1:], _end_of_last(usage, starts)]
    widths = [(end - start) * 0.86 for start, end in zip(starts, ends, strict=True)]
    above = below = [0.0] * len(starts)
    for name, added, taken, color in kinds:
        for field, sign in ((added, 1), (taken, -1)):
            if not field:
                continue
            base = above if sign > 0 else below
            heights = [sign * scale.drawn(getattr(each.sums, field)) for each in usage.over_time]
            label = name if field == (added or taken) else None
            panel.bar(starts, heights, widths, bottom=base, align="edge", color=color, label=label)
            reached = [low + height for low, height in zip(base, heights, strict=True)]
            above, below = (reached, below) if sign > 0 else (above, reached)
    panel.axhline(0, color="#555555", linewidth=0.8)
    # matplotlib.dates has no types.
    ticks: Any = dates
    zone = zone_of(usage.timezone)
    locator = ticks.AutoDateLocator(minticks=3, maxticks=9, tz=zone)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ticks.ConciseDateFormatter(locator, tz=zone))
    # Exclude the end itself, which may be the first moment of the next month.
    panel.set_xlim(starts[0], ends[-1] - timedelta(seconds=1))
    panel.use_sticky_edges = False
    panel.margins(y=0.06)
    if not any(above) and not any(below):
        panel.set_ylim(-1, 1)
        panel.set_yticks([0])
    panel.yaxis.set_major_formatter(lambda value, _: compact(abs(value)))
    both = any(taken for _, _, taken, _ in kinds)
    panel.set_ylabel(f"{scale.unit}\ntaken ↓     given ↑" if both else scale.unit, fontsize=9)
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
    """The end of the period's last part, if that part were complete."""
    if len(starts) > 1:
        return starts[-1] + (starts[-1] - starts[-2])
    spans = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 30.0, "year": 365.0}
    return starts[-1] + timedelta(days=spans[usage.width])


# Lists


def _draw_list(panel: Any, listed: Listed, names: Sequence[str], slots: int, scale: Scale) -> None:
    panel.set_title(listed.title, loc="left", fontsize=11)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.set_xticks([])
    if not names:
        panel.spines["left"].set_visible(False)
        panel.set_yticks([])
        panel.text(0.0, 0.85, "nothing", transform=panel.transAxes, color="#666666", fontsize=10)
        return
    # The unnamed rest has no bar, as it may be a thousand times the rest of the list.
    amounts = [scale.drawn(each.amount) for each in listed.rows]
    color = _SPENT if listed.is_spent else _GRANTED
    panel.barh(range(len(amounts)), amounts, height=0.68, color=color)
    # A monospaced font, so that we know how many characters fit.
    families = ["DejaVu Sans Mono", *mpl.rcParams["font.family"]]
    panel.set_yticks(range(len(names)), names, fontsize=8, fontfamily=families)
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(slots - 0.4, -0.6)
    panel.spines["left"].set_bounds(len(names) - 0.5, -0.5)
    panel.set_xlim(0, max(amounts, default=0) or 1)
    others = [] if listed.others is None else [listed.others]
    for height, each in enumerate((*listed.rows, *others)):
        text = f"{scale.compact(each.amount)}  ({share(each.amount, listed.total)})"
        if listed.is_spent and each.refunded:
            text += f", net {scale.compact(each.net)}"
        is_named = each is not listed.others
        panel.annotate(
            text,
            (1 if is_named else 0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#222222" if is_named else "#666666",
        )


# Fonts


@contextmanager
def _style(names: Iterable[str]) -> Iterator[Callable[[str], str]]:
    """Draw with our own settings, whatever the machine's are. Yields a function for names.

    It makes a name drawable: it escapes each character that no font has.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        characters = {each for name in names for each in printable(name)}
        families, covered = _fonts_for(characters)
        mpl.rcParams.update(
            {
                "font.family": families,
                # A name with two "$" must not become a formula.
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
    """This machine's fonts for the characters, and the characters that they cover.

    matplotlib's own font has Latin, Greek, Cyrillic, Arabic and more. Names show the other
    characters as escapes, which tell two names apart where empty boxes would not.
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

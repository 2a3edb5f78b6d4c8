"""Charts as SVG, drawn here: they need no script, print well, and take their colours from the page.

Beside each chart, its page has the same numbers in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from markupsafe import Markup, escape

__all__ = ["Series", "bars", "steps"]

_WIDTH: Final = 760
_HEIGHT: Final = 220
_LEFT: Final = 64
_RIGHT: Final = 8
_TOP: Final = 10
_BOTTOM: Final = 26
_LINES: Final = 4
_LABELS: Final = 8

Write = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one kind, one for each part. ``color`` is a class of the style sheet."""

    name: str
    color: str
    values: Sequence[int]


def bars(
    label: str, parts: Sequence[str], series: Sequence[Series], *, write: Write, exact: Write
) -> Markup:
    """Draw numbers of parts side by side. ``write`` is for the axis, ``exact`` for each bar."""
    highest = max((value for each in series for value in each.values), default=0)
    scale = _Scale.up_to(0, highest)
    slot = (_WIDTH - _LEFT - _RIGHT) / max(len(parts), 1)
    width = slot * 0.76 / max(len(series), 1)
    drawn = [scale.grid(write), _names_of_parts(parts, slot)]
    for number, each in enumerate(series):
        for part, value in enumerate(each.values):
            x = _LEFT + part * slot + slot * 0.12 + number * width
            y = scale.y(value)
            text = f"{parts[part]}: {exact(value)} {each.name}"
            drawn.append(
                Markup(
                    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                ).format(each.color, x, y, max(width - 1, 0.5), max(scale.y(0) - y, 0))
            )
            drawn.append(Markup("<title>{}</title></rect>").format(text))
    return _svg(label, drawn)


def steps(
    label: str,
    points: Sequence[tuple[datetime, int]],
    *,
    until: datetime,
    write: Write,
    day: Callable[[datetime], str],
) -> Markup:
    """Draw a balance over time. It keeps its value until the next point, and the last one until
    the chart's end."""
    if not points:
        return Markup("")
    values = [value for _, value in points]
    scale = _Scale.up_to(min(0, *values), max(0, *values))
    begin, end = points[0][0], max(until, points[-1][0])
    seconds = max((end - begin).total_seconds(), 1.0)

    def x(moment: datetime) -> float:
        return _LEFT + (moment - begin).total_seconds() / seconds * (_WIDTH - _LEFT - _RIGHT)

    path = [f"M{x(begin):.1f} {scale.y(values[0]):.1f}"]
    for moment, value in points[1:]:
        path.append(f"H{x(moment):.1f}V{scale.y(value):.1f}")
    line = "".join([*path, f"H{x(end):.1f}"])
    area = f"{line}V{scale.y(0):.1f}H{_LEFT}Z"
    drawn = [
        scale.grid(write),
        Markup('<path class="area" d="{}"/><path class="line" d="{}"/>').format(area, line),
        _below(_LEFT, "start", day(begin)),
        _below(_WIDTH - _RIGHT, "end", day(end)) if end > begin else Markup(""),
    ]
    return _svg(label, drawn)


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical axis, from one round number to another."""

    low: float
    high: float
    step: float

    @classmethod
    def up_to(cls, low: int, high: int) -> _Scale:
        spread = float(max(high - low, 1))
        step = _round_up(spread / _LINES)
        first = -step * -(low // step) if low else 0.0
        last = step * -(-high // step)
        return cls(first, max(last, first + step), step)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self, write: Write) -> Markup:
        lines = []
        value = self.low
        while value <= self.high + self.step / 2:
            y = self.y(value)
            lines.append(
                Markup(
                    '<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
                ).format(
                    "zero" if value == 0 else "grid",
                    *(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 8, y + 4, write(value)),
                )
            )
            value += self.step
        return Markup("").join(lines)


def _round_up(size: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    power = 1.0
    while power * 10 <= size:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size)


def _names_of_parts(parts: Sequence[str], slot: float) -> Markup:
    every = -(-len(parts) // _LABELS) or 1
    return Markup("").join(
        _below(_LEFT + (number + 0.5) * slot, "middle", parts[number])
        for number in range(0, len(parts), every)
    )


def _below(x: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
        x, _HEIGHT - 8, anchor, text
    )


def _svg(label: str, drawn: Sequence[Markup]) -> Markup:
    begin = Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        escape(label), _WIDTH, _HEIGHT
    )
    return begin + Markup("").join(drawn) + Markup("</svg>")

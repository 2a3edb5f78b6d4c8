"""The chart: charges a second by callers, on many users and on one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Results
from benchmarks.work import SWEEP, sweep_name

__all__ = ["MissingChartError", "draw"]

_PEERS: Final = (
    ("credit_mongo", "credit_mongo", "#0b6e4f", "o"),
    ("PostgreSQL", "PostgreSQL, a stored function\n(its best pool)", "#3b6ea5", "s"),
    ("a transaction a charge", "a transaction a charge\nby hand, with PyMongo", "#b5541c", "^"),
)


class MissingChartError(Exception):
    """There is nothing to draw, or nothing to draw with."""


def draw(results: Results, callers: tuple[int, ...], path: Path) -> None:
    """Write the PNG of work 9. Raises MissingChartError."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        raise MissingChartError("no chart: install matplotlib (the extra `bench`)") from None
    if not any(run.work == 9 for run in results.runs):
        raise MissingChartError("no chart: work 9 was not measured")
    mpl.use("Agg")
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
    for panel, scenario in zip(panels, SWEEP, strict=True):
        _draw_panel(panel, results, callers, scenario)
    # Up to the next power of ten, so that the scale has a label above the data.
    highest = panels[0].get_ylim()[1]
    panels[0].set_ylim(top=10 ** math.ceil(math.log10(highest)))
    panels[0].set_ylabel("charges per second (logarithmic)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_PEERS), frameon=False)
    figure.suptitle("Durable charges per second, one process, one-member replica set", fontsize=13)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_panel(panel: Any, results: Results, callers: tuple[int, ...], scenario: str) -> None:
    panel.set_title(f"charges {scenario}", fontsize=11)
    panel.set_xscale("log")
    panel.set_yscale("log")
    ends: list[tuple[float, int, str]] = []
    for kind, label, color, marker in _PEERS:
        best = [(n, results.best(9, kind, sweep_name(n, scenario))) for n in callers]
        points = [(n, found[1]) for n, found in best if found is not None and found[1] > 0]
        if not points:
            continue
        at, rates = zip(*points, strict=True)
        panel.plot(at, rates, color=color, marker=marker, linewidth=2, markersize=6, label=label)
        ends.append((rates[-1], at[-1], color))
    _write_ends(panel, sorted(ends))
    panel.set_xticks(callers, [f"{n:,}" for n in callers])
    panel.minorticks_off()
    panel.set_xlim(min(callers) * 0.8, max(callers) * 2.6)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_xlabel("callers at once (logarithmic)")
    panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _write_ends(panel: Any, ends: list[tuple[float, int, str]]) -> None:
    """Write the rate at the end of each line, apart from each other."""
    last = 0.0
    for rate, callers, color in ends:
        height = max(rate, last * 1.35)
        panel.annotate(
            f"{rate:,.0f}",
            (callers, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
        )
        last = height

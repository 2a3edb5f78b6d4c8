"""The charts of a data file: throughput and p99 by the number of callers, on each network."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from benchmarks.results import NETWORKS, Network

__all__ = ["CHARTS", "MissingChartError", "curves", "draw"]

CHARTS: Final = {
    "charges_per_second": ("results.png", "charges a second", "Durable charges a second"),
    "p99_ms": ("results-p99.png", "ms", "Latency of a charge, 99th percentile"),
}
"""By quantity of the data: the file, the unit, the title."""
_PEERS: Final = {
    "credit_mongo": ("credit_mongo", "#0b6e4f", "o"),
    "PostgreSQL": ("PostgreSQL, a stored function (its best pool)", "#3b6ea5", "s"),
    "a transaction a charge": ("a transaction a charge by hand", "#b5541c", "^"),
    "Beanie": ("a transaction a charge with Beanie", "#7d4a8d", "D"),
}


class MissingChartError(Exception):
    """There is nothing to draw, or nothing to draw with."""


def curves(data: dict[str, Any], network: Network, quantity: str) -> dict[str, dict[int, float]]:
    """By kind of peer: the medians of a quantity by callers. Of several peers, the fastest."""
    rounds = defaultdict(list)
    for run in data["runs"]:
        if run["work"] == "callers" and (run["members"], run["delay_ms"]) == network:
            rounds[run["kind"], run["callers"], run["peer"]].append(run)
    found: dict[str, dict[int, float]] = {}
    fastest: dict[tuple[str, int], float] = {}
    for (kind, callers, _), runs in rounds.items():
        rate = statistics.median(run["charges_per_second"] for run in runs)
        if rate > fastest.get((kind, callers), 0):
            fastest[kind, callers] = rate
            value = statistics.median(run[quantity] for run in runs)
            found.setdefault(kind, {})[callers] = value
    return found


def draw(data: dict[str, Any], directory: Path) -> None:
    """Write the charts as PNG. Raises MissingChartError."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        raise MissingChartError("no charts: install matplotlib (the extra `bench`)") from None
    networks = [network for network in NETWORKS if curves(data, network, "p99_ms")]
    if not networks:
        raise MissingChartError("no charts: the work `callers` was not measured")
    mpl.use("Agg")
    for quantity, (file, unit, title) in CHARTS.items():
        rows = math.ceil(len(networks) / 2)
        figure, panels = plt.subplots(
            rows, 2, figsize=(11, 1 + 3.6 * rows), sharey=True, squeeze=False, layout="constrained"
        )
        labels: dict[str, Any] = {}
        for panel, network in zip(panels.flat, networks, strict=False):
            labels |= _draw_panel(panel, curves(data, network, quantity), network)
        for panel in panels.flat[len(networks) :]:
            panel.set_visible(False)
        for panel in panels[:, 0]:
            panel.set_ylabel(f"{unit} (logarithmic)")
        figure.legend(
            labels.values(), labels.keys(), loc="outside lower center", ncols=2, frameon=False
        )
        figure.suptitle(f"{title}, one process, 1,000 users", fontsize=13)
        figure.savefig(directory / file, dpi=130)
        plt.close(figure)


def _draw_panel(panel: Any, found: dict[str, dict[int, float]], network: Network) -> dict[str, Any]:
    """Draw the curves of one network; returns the lines by their labels."""
    panel.set_title(network.title, fontsize=11)
    panel.set_xscale("log")
    panel.set_yscale("log")
    lines = {}
    ends = []
    for kind, (label, color, marker) in _PEERS.items():
        if points := {n: value for n, value in found.get(kind, {}).items() if value > 0}:
            (lines[label],) = panel.plot(
                points.keys(), points.values(), color=color, marker=marker, linewidth=2
            )
            ends.append((list(points.values())[-1], list(points)[-1], color))
    last = 0.0
    for value, end, color in sorted(ends):  # the value at each line's end, apart from others
        last = max(value, last * 1.4)
        panel.annotate(
            f"{value:,.0f}",
            (end, last),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
        )
    callers = sorted({n for points in found.values() for n in points})
    panel.set_xticks(callers, [f"{n:,}" for n in callers])
    panel.minorticks_off()
    panel.set_xlim(min(callers) * 0.8, max(callers) * 2.6)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_xlabel("callers at once (logarithmic)")
    panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    return lines

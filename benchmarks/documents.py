"""Publishes one run: its data, its charts, and the tables of both READMEs between two marks.

``python -m benchmarks --publish`` does it at its end; ``python -m benchmarks.documents`` does it
again from the data that is there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.chart import curves, draw
from benchmarks.report import write_json
from benchmarks.results import NETWORKS

__all__ = ["publish", "with_table"]

_TIMES: Final = "\N{MULTIPLICATION SIGN}"
_BEGIN: Final = "<!-- make bench: begin -->"
_END: Final = "<!-- make bench: end -->"
_ROOT: Final = Path(__file__).parents[1]
_HERE: Final = _ROOT / "benchmarks"
_DATA: Final = _HERE / "results.json"
_PEERS: Final = {
    "credit_mongo": "credit_mongo",
    "PostgreSQL": "PostgreSQL, stored function",
    "a transaction a charge": "a transaction a charge by hand",
    "Beanie": "with Beanie",
}


def publish(data: dict[str, Any]) -> None:
    """Write the data file and the charts, and replace the tables of the READMEs."""
    write_json(data, _DATA)
    draw(data, _HERE)
    for path, table in (
        (_ROOT / "README.md", _short_table(data)),
        (_HERE / "README.md", _long_tables(data)),
    ):
        text = path.read_text(encoding="utf-8")
        path.write_text(with_table(text, table), encoding="utf-8")


def with_table(text: str, table: str) -> str:
    """The text with the table between its two marks."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"there is no {_BEGIN} followed by {_END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _short_table(data: dict[str, Any]) -> str:
    """One line a load: how many times the rate of the others."""
    by_place = defaultdict(list)
    for figure in data["figures"]:
        what, value = figure["what"], figure["measured"]
        if value is not None and what.startswith("times "):
            by_place[figure["place"]].append(f"{value:.1f}{_TIMES} {what.removeprefix('times ')}")
        elif value is not None and what.startswith("median latency"):
            by_place[figure["place"]].append(
                f"takes {value:.2f}{_TIMES} as long as the smallest transaction by hand"
            )
    lines = ["| load | charges a second, beside others |", "|---|---|"]
    lines += [f"| {place} | {', '.join(ratios)} |" for place, ratios in by_place.items()]
    machine = data["machine"]
    how = (
        f"One run of `make bench` on {machine['cores']} shared cores, {machine['date']}, "
        f"commit {machine.get('commit', 'unknown')}: [how it was measured](benchmarks/README.md)."
    )
    return "\n".join([*lines, "", how])


def _long_tables(data: dict[str, Any]) -> str:
    lines = ["| figure | load | measured | to reach | made of |", "|---|---|---|---|---|"]
    for figure in data["figures"]:
        value = figure["measured"]
        measured = "not measured" if value is None else f"{value:.2f}"
        if figure["reached"] is False:
            measured = f"**{measured}**"
        cells = (figure["what"], figure["place"], measured, figure["to_reach"], figure["remark"])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Charges a second, and the 99th percentile of the latency in milliseconds:", ""]
    lines += _by_callers(data)
    lines += ["", "![Charges a second by callers](results.png)"]
    lines += ["", "![99th percentile of the latency by callers](results-p99.png)", "", _how(data)]
    lines += ["", "| machine | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in data["machine"].items()]
    return "\n".join(lines)


def _by_callers(data: dict[str, Any]) -> Iterator[str]:
    yield f"| callers | {' | '.join(_PEERS.values())} |"
    yield f"|---|{'---|' * len(_PEERS)}"
    for network in NETWORKS:
        rates = curves(data, network, "charges_per_second")
        tails = curves(data, network, "p99_ms")
        for callers in sorted({n for points in rates.values() for n in points}):
            cells = [
                f"{rates[kind][callers]:,.0f}, {tails[kind][callers]:,.0f} ms"
                if callers in rates.get(kind, {})
                else ""
                for kind in _PEERS
            ]
            yield f"| {callers:,}, {network.title} | {' | '.join(cells)} |"


def _how(data: dict[str, Any]) -> str:
    machine = data["machine"]
    return (
        f"One run of `make bench` on {machine['cores']} cores that client and servers share, "
        f"{machine['date']}, commit {machine.get('commit', 'unknown')}: every write durable, "
        f"medians of the rounds, and the books of every peer verified after each of "
        f"{len(data['runs'])} runs."
    )


if __name__ == "__main__":
    publish(json.loads(_DATA.read_text(encoding="utf-8")))

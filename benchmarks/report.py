"""The tables on the screen, and the data file."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.load import Outcome
from benchmarks.results import Results

__all__ = ["data_of", "show", "write_json"]

_REACHED: Final = {True: "yes", False: "NO", None: ""}


def show(console: Console, results: Results, found: list[Figure], machine: dict[str, str]) -> None:
    """Print the tables."""
    if found:
        console.print(_figures(found))
    if results.runs:
        console.print(_peers(results))
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False)
    for reason in results.unavailable.values():
        console.print(reason)
    for title, lines in (("the books are off", results.off), ("failed", results.failed)):
        for line in lines:
            console.print(f"[bold red]{title}:[/] {line}")
    console.print(
        f"After {results.checked} runs the books agreed with what was acknowledged: balances, "
        "chains, counts and keys."
    )


def data_of(results: Results, found: list[Figure], machine: dict[str, str]) -> dict[str, Any]:
    """Everything that was measured, as the data file has it."""
    return {
        "machine": machine,
        "figures": [figure.to_dict() for figure in found],
        "runs": [run.to_dict() for run in results.runs],
        "latency_rounds_ms": [
            {"credit_mongo": ours, "by_hand": by_hand} for ours, by_hand in results.latencies
        ],
        "unavailable": results.unavailable,
        "runs_with_books_that_agree": results.checked,
        "books_that_are_off": results.off,
        "failed": results.failed,
    }


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write the data file."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _figures(found: list[Figure]) -> Table:
    table = Table(title="Figures: medians of the rounds")
    table.add_column("figure")
    for name in ("measured", "to reach", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("made of")
    last = ""
    for figure in found:
        if figure.place != last:
            table.add_section()
            table.add_row(f"[bold]{figure.place}[/]")
        reached = _REACHED[figure.reached]
        table.add_row(
            f"   {figure.what}",
            "not measured" if figure.value is None else _number(figure.value),
            f"{figure.sign} {_number(figure.bound)}",
            f"[bold red]{reached}[/]" if figure.reached is False else reached,
            figure.remark,
        )
        last = figure.place
    return table


def _peers(results: Results) -> Table:
    """Every peer in every place: the median, and the range of the rounds."""
    table = Table(title="Runs: medians of the rounds; latencies in ms, client CPU in µs a charge")
    table.add_column("run")
    for name in ("charges/s", "lowest", "highest", "median", "p99", "CPU", "errors", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    for place in results.places:
        table.add_section()
        table.add_row(f"[bold]{place.title}[/]")
        here = [run for run in results.runs if run.place == place]
        for name in results.names(here):
            _add_peer(table, name, [run.outcome for run in here if run.peer == name])
    return table


def _add_peer(table: Table, name: str, outcomes: list[Outcome]) -> None:
    rates = [outcome.rate for outcome in outcomes]
    errors = sum(sum(outcome.errors.values()) for outcome in outcomes)
    unknown = sum(sum(outcome.unknown.values()) for outcome in outcomes)
    table.add_row(
        f"   {name}",
        _number(statistics.median(rates)),
        _number(min(rates)),
        _number(max(rates)),
        _number(statistics.median(outcome.median_ms for outcome in outcomes)),
        _number(statistics.median(outcome.p99_ms for outcome in outcomes)),
        _number(statistics.median(outcome.cpu_microseconds for outcome in outcomes)),
        str(errors),
        str(unknown - errors),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"

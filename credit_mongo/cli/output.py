"""The output of commands: lines, JSON, notes, and progress on a terminal.

Output is never interpreted as markup, and no control character of a stored name reaches the
terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from credit_mongo.printing import printable, printable_lines

__all__ = ["Advance", "AsJson", "note", "progress", "show", "show_facts"]

Advance: TypeAlias = Callable[[int, int | None], None]
"""Called with how many are done, and of how many (None if unknown)."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def show(line: str) -> None:
    """Print one line. It is never wrapped, because it may be a command to copy."""
    print(printable(line))


def note(line: str) -> None:
    """Print one line on stderr, so that a pipe receives only rows."""
    print(printable(line), file=sys.stderr)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print the result as JSON."""
    print(printable_lines(json.dumps(facts, indent=2)))


@contextmanager
def progress(label: str, unit: str) -> Iterator[Advance]:
    """Show a bar on stderr with count, rate and time left. Nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=None)
        # The total may be an estimate that is too small.
        yield lambda done, total: bar.update(
            task, completed=done, total=None if total is None else max(done, total)
        )


class _RateColumn(ProgressColumn):
    """The number of units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")

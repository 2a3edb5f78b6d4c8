"""What commands show: tables and progress on a terminal, plain lines and JSON elsewhere.

Nothing that is shown is taken for markup, and no control character of a stored name reaches the
terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from rich.table import Table
from rich.text import Text

from credit_mongo.printing import printable, printable_lines

__all__ = ["Advance", "AsJson", "progress", "show", "show_facts", "show_rows"]

Advance: TypeAlias = Callable[[int, int | None], None]
"""How many are done, and of how many (None: nobody knows)."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_GAP = 2
# Of text that is folded.
_NARROWEST = 9
_DIGITS = re.compile(r"[-+.,:()\d ]*")


def show(line: str) -> None:
    """One line, never wrapped: it may be a command to be copied."""
    print(printable(line))


def show_facts(facts: Mapping[str, Any]) -> None:
    """The result as JSON."""
    print(printable_lines(json.dumps(facts, indent=2)))


def show_rows(
    columns: Mapping[str, int], rows: Sequence[Sequence[object]], *, whole: str = ""
) -> None:
    """Rows under the names of ``columns``, each with its least width in characters.

    On a terminal a table, and elsewhere a line each, without names, the columns one space apart.
    In the table, the column ``whole`` is never folded: it is to be copied. Nor are numbers. Where
    that does not fit, a row is its facts one below the other.
    """
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [
            max([least, *(len(row[number]) for row in texts)])
            for number, least in enumerate(columns.values())
        ]
        for row in texts:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print(" ".join(padded).rstrip())
    elif texts:
        _show_table(tuple(columns), texts, whole)


def _show_table(names: Sequence[str], rows: Sequence[Sequence[str]], whole: str) -> None:
    """For a terminal, or each row by itself if that is too narrow for the table."""
    console = Console()
    columns = [
        _Column.of(*column, whole) for column in zip(names, zip(*rows, strict=True), strict=True)
    ]
    spare = console.width - sum(column.width + _GAP for column in columns) + _GAP
    if spare < 0:
        longest = max(map(len, names))
        for number, row in enumerate(rows):
            if number:
                print()
            for name, cell in zip(names, row, strict=True):
                print(f"{name:{longest}}  {cell}")
        return
    for column in sorted(columns, key=lambda each: each.wanted):
        more = min(column.wanted, spare)
        column.width += more
        spare -= more
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, column in zip(names, columns, strict=True):
        table.add_column(name, justify="right" if column.is_number else "left", width=column.width)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console.print(table)


@dataclass(slots=True)
class _Column:
    """A table's column: how wide it is at least, and how much more it would be."""

    width: int
    wanted: int
    is_number: bool

    @classmethod
    def of(cls, name: str, cells: Sequence[str], whole: str) -> _Column:
        longest = max(map(len, (name, *cells)))
        is_digits = all(map(_DIGITS.fullmatch, cells))
        if name == whole:
            least = longest
        elif is_digits:
            least = max(map(len, (name, *" ".join(cells).split())))
        else:
            least = max(len(name), min(longest, _NARROWEST))
        text = "".join(cells)
        is_number = is_digits and ":" not in text and any(map(str.isdigit, text))
        return cls(least, longest - least, is_number)


@contextmanager
def progress(label: str, unit: str) -> Iterator[Advance]:
    """A bar on stderr with count, rate and time left; nothing if that is no terminal."""
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
        # An estimate may turn out to be too small.
        yield lambda done, total: bar.update(
            task, completed=done, total=None if total is None else max(done, total)
        )


class _RateColumn(ProgressColumn):
    """How many of them a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")

"""Rows as a table on a terminal, and tab-separated elsewhere.

On a terminal, a number, a date or an id to copy is never broken. Text is broken between words, or
after punctuation if a word is too long. If the table is too wide then, each row's id goes on its
own line. If it is still too wide, every row is printed as a list of its values.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from credit_mongo.core.pricing import in_credits
from credit_mongo.printing import printable

__all__ = ["show_rows"]

_GAP = 2
# Text in narrower columns is hard to read.
_COMFORTABLE = 24
_NUMBER = re.compile(r"[-+.,\d ]*[\d%][-+.,\d %]*")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_WORD = re.compile(r"\S*\s*")
# A part of a long word, with the punctuation that ends it.
_PIECE = re.compile(r"[^\s/@:._,;|-]*[\s/@:._,;|-]*")


def show_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole: str = "",
    amounts: Sequence[str] = (),
    decimal_places: int = 0,
    is_listing: bool = False,
) -> None:
    """Print rows under the names of ``columns``, or nothing if there are no rows.

    A terminal gets a table. Its column ``whole`` is never broken, so that it can be copied. A pipe
    or file gets tab-separated lines below a line with the columns' names. A listing prints that
    line even without rows.

    The columns ``amounts`` are in smallest units. With ``decimal_places``, a terminal shows them in
    credits, and a pipe or file gets a column ``…_credits`` beside each. None is shown as a dash on
    a terminal, and as an empty cell elsewhere.
    """
    if sys.stdout.isatty():
        if rows:
            _show_table(
                columns,
                [
                    [
                        _on_terminal(cell, decimal_places if name in amounts else 0)
                        for name, cell in zip(columns, row, strict=True)
                    ]
                    for row in rows
                ],
                whole,
            )
    elif rows or is_listing:
        _print_lines(columns, rows, amounts if decimal_places else (), decimal_places)


def _on_terminal(cell: object, decimal_places: int) -> str:
    if cell is None:
        return "-"
    return _credits(cell, decimal_places) if decimal_places else printable(str(cell))


def _credits(amount: object, decimal_places: int) -> str:
    # Other software may have written anything.
    if isinstance(amount, int) and not isinstance(amount, bool):
        return in_credits(amount, decimal_places)
    return printable(str(amount))


# Elsewhere


def _print_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    amounts: Sequence[str],
    decimal_places: int,
) -> None:
    names = [name.replace(" ", "_") for name in columns]
    print(
        "\t".join(
            f"{name}\t{name}_credits" if column in amounts else name
            for name, column in zip(names, columns, strict=True)
        )
    )
    for row in rows:
        cells: list[str] = []
        for column, cell in zip(columns, row, strict=True):
            cells.append("" if cell is None else printable(str(cell)))
            if column in amounts:
                cells.append(
                    "" if cell is None else _credits(cell, decimal_places).replace(",", "")
                )
        print("\t".join(cells))


# On a terminal


@dataclass(slots=True)
class _Column:
    """A table's column with its full width and the narrower widths it could have."""

    name: str
    cells: list[str]
    width: int
    comfortable: int
    least: int
    is_right: bool

    @classmethod
    def of(cls, name: str, cells: list[str], *, is_whole: bool) -> _Column:
        longest = max(map(cell_len, (name, *cells)))
        is_number = all(each == "-" or _NUMBER.fullmatch(each) for each in cells)
        least = comfortable = longest
        if not (is_whole or is_number or all(c == "-" or _DATE.fullmatch(c) for c in cells)):
            pieces = (cell_len(piece.rstrip()) for cell in cells for piece in _PIECE.findall(cell))
            least = min(longest, max(cell_len(name), min(max(pieces), _COMFORTABLE)))
            comfortable = min(longest, max(least, _COMFORTABLE))
        is_right = is_number and any(each != "-" for each in cells)
        return cls(name, cells, longest, comfortable, least, is_right)


def _show_table(names: Sequence[str], rows: Sequence[Sequence[str]], whole: str) -> None:
    console = Console()
    columns = [
        _Column.of(name, list(cells), is_whole=name == whole)
        for name, cells in zip(names, zip(*rows, strict=True), strict=True)
    ]
    others = [column for column in columns if column.name != whole]
    below = [f"  {whole} {cell}" for each in columns if each.name == whole for cell in each.cells]
    if _fit(columns, console.width, [column.comfortable for column in columns]):
        _print_table(console, columns, [])
        return
    if below and (
        _fit(others, console.width, [column.comfortable for column in others])
        or _fit(others, console.width, [column.least for column in others])
    ):
        _print_table(console, others, below)
        return
    if _fit(columns, console.width, [column.least for column in columns]):
        _print_table(console, columns, [])
        return
    longest = max(map(len, names))
    for number, row in enumerate(rows):
        if number:
            print()
        for name, cell in zip(names, row, strict=True):
            print(f"{name:{longest}}  {cell}")


def _fit(columns: Sequence[_Column], width: int, least: Sequence[int]) -> bool:
    """Narrow the columns until they fit, the widest first. Returns False if they can't fit."""
    if sum(least) + _GAP * (len(columns) - 1) > width:
        return False
    while sum(column.width + _GAP for column in columns) - _GAP > width:
        can_be_narrower = (
            c for c, at_least in zip(columns, least, strict=True) if c.width > at_least
        )
        max(can_be_narrower, key=lambda column: column.width).width -= 1
    return True


def _print_table(console: Console, columns: Sequence[_Column], below: Sequence[str]) -> None:
    heading = _line([_aligned(column.name, column) for column in columns])
    console.print(Text(heading, style="bold"), soft_wrap=True)
    for number in range(len(columns[0].cells)):
        cells = [list(_folded(column.cells[number], column.width)) for column in columns]
        for index in range(max(map(len, cells))):
            print(
                _line(
                    [
                        _aligned(parts[index] if index < len(parts) else "", column)
                        for parts, column in zip(cells, columns, strict=True)
                    ]
                )
            )
        if below:
            print(below[number])


def _line(cells: Sequence[str]) -> str:
    return (" " * _GAP).join(cells).rstrip()


def _aligned(cell: str, column: _Column) -> str:
    space = " " * (column.width - cell_len(cell))
    return space + cell if column.is_right else cell + space


def _pieces(text: str, width: int) -> Iterator[str]:
    """The words of a text. A word longer than a line comes in parts."""
    for word in _WORD.findall(text):
        if cell_len(word.rstrip()) <= width:
            yield word
        else:
            yield from _PIECE.findall(word)


def _folded(text: str, width: int) -> Iterator[str]:
    """The text in lines of at most ``width`` columns, broken between words or after punctuation."""
    line = ""
    for piece in _pieces(text, width):
        if line and cell_len((line + piece).rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += piece
        while cell_len(line.rstrip()) > width:
            number = 1
            while cell_len(line[: number + 1]) <= width:
                number += 1
            yield line[:number]
            line = line[number:]
    yield line.rstrip()

"""Tables that commands print: on a terminal of any width, they cut nothing that matters.

Elsewhere programs read them: cells between tabs, under the column names.
"""

from __future__ import annotations

import csv
import io
import re
import sys

import pytest

from credit_mongo.cli.tables import show_rows

NAMES = ("user", "when", "balance", "transaction")
MOMENT = "2026-11-23T03:04:52Z"
AMOUNTS = (123456783012, None)
IDS = ("6b03ad54ca4b50c7dd7bd816", "6b03ad53ca4b50c7dd7bd7f8")
ROWS = (
    ("a-rather-long-name|" * 5, MOMENT, AMOUNTS[0], IDS[0]),
    ("名前", MOMENT, AMOUNTS[1], IDS[1]),
)


def on_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Return the lines that a terminal of this width shows."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_rows(NAMES, ROWS, whole="transaction", amounts=("balance",), decimal_places=2)
    return re.sub("\x1b[^m]*m", "", capsys.readouterr().out).splitlines()


@pytest.fixture
def shown(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """The lines that a terminal of this width shows."""
    return on_terminal(request.param, monkeypatch, capsys)


@pytest.mark.parametrize("shown", range(10, 240, 7), indirect=True)
def test_no_number_date_or_id_is_broken_nor_a_name_within_a_word(shown: list[str]) -> None:
    """Each number, date and id stands unbroken on one line, and names break only between words."""
    words = [word for line in shown for word in line.split()]
    assert {*NAMES, "1,234,567,830.12", "-", MOMENT, *IDS, "名前"} <= {*words}
    name = "".join(word for word in words if "|" in word or word.endswith("-"))
    for part in re.findall("[a-z]+.", ROWS[0][0]):
        assert part in name
    assert all(re.fullmatch("([a-z]+[-|])+", word) for word in words if "|" in word)


@pytest.mark.parametrize("shown", [120], indirect=True)
def test_the_numbers_of_a_table_end_where_their_name_ends(shown: list[str]) -> None:
    """Numbers align right with their heading, everything fits, and the long name is folded."""
    heading, *lines = shown
    end = heading.index("balance") + len("balance")
    amounts = [line[:end].split()[-1] for line in lines if IDS[0] in line]
    assert amounts == ["1,234,567,830.12"]
    assert len(lines) > len(ROWS)
    assert max(map(len, shown)) <= 120


@pytest.mark.parametrize("shown", [60], indirect=True)
def test_an_id_that_does_not_fit_stands_below_its_row(shown: list[str]) -> None:
    """The id stands in one piece below its row."""
    assert shown[0].split() == ["user", "when", "balance"]
    assert [line for line in shown if IDS[0] in line] == [f"  transaction {IDS[0]}"]
    assert shown[-1] == f"  transaction {IDS[1]}"
    assert max(map(len, shown)) <= 60


@pytest.mark.parametrize("shown", [30], indirect=True)
def test_where_no_table_fits_each_row_becomes_a_block(shown: list[str]) -> None:
    """Each row becomes a block: one fact a line, with its name."""
    assert shown == [
        f"user         {ROWS[0][0]}",
        f"when         {MOMENT}",
        "balance      1,234,567,830.12",
        f"transaction  {IDS[0]}",
        "",
        "user         名前",
        f"when         {MOMENT}",
        "balance      -",
        f"transaction  {IDS[1]}",
    ]


@pytest.mark.parametrize("decimal_places", [0, 2])
def test_elsewhere_rows_are_separated_by_tabs_below_their_names(
    decimal_places: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Amounts are in units, and also in credits if the number of decimal places is known."""
    rows = [*ROWS, ("a\tb\nc", None, -5, "x"), ("y", MOMENT, -5.5, "z")]
    show_rows(
        ("user", "tier expires", "balance", "id"),
        rows,
        amounts=("balance",),
        decimal_places=decimal_places,
    )
    output = capsys.readouterr().out
    found = list(csv.DictReader(io.StringIO(output), delimiter="\t"))
    assert [row["user"] for row in found] == [ROWS[0][0], "名前", "a\\tb\\nc", "y"]
    assert [row["tier_expires"] for row in found] == [MOMENT, MOMENT, "", MOMENT]
    assert [row["balance"] for row in found] == ["123456783012", "", "-5", "-5.5"]
    if decimal_places:
        in_credits = [row["balance_credits"] for row in found]
        assert in_credits == ["1234567830.12", "", "-0.05", "-5.5"]


def test_a_listing_has_its_names_even_if_it_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads an empty listing still gets column names.

    Other empty tables print nothing.
    """
    show_rows(NAMES, [], is_listing=True)
    show_rows(NAMES, [])
    assert capsys.readouterr().out == "user\twhen\tbalance\ttransaction\n"

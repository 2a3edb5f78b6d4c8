"""What the commands show on a terminal: whatever its width, nothing that counts is cut."""

from __future__ import annotations

import re
import sys

import pytest

from credit_mongo.cli.output import show_rows

NAMES = dict.fromkeys(("user", "when (UTC)", "balance", "transaction"), 0)
MOMENT = "2026-11-23 03:04:52"
NUMBERS = ("123456783012 (1,234,567,830.12)", "0 (0.00)")
IDS = ("6b03ad54ca4b50c7dd7bd816", "6b03ad53ca4b50c7dd7bd7f8")
ROWS = (
    ("a-rather-long-name|" * 5, MOMENT, NUMBERS[0], IDS[0]),
    ("名前", MOMENT, NUMBERS[1], IDS[1]),
)


@pytest.fixture
def shown(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """The lines on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_rows(NAMES, ROWS, whole="transaction")
    return re.sub("\x1b[^m]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("shown", range(10, 240, 7), indirect=True)
def test_no_number_is_folded_and_no_name_or_id_cut(shown: list[str]) -> None:
    """What is to be read as one word stands in one line."""
    words = [word for line in shown for word in line.split()]
    assert {*NAMES} - {"when (UTC)"} <= {*words}
    assert {"123456783012", "(1,234,567,830.12)", "0", "(0.00)", *MOMENT.split(), *IDS} <= {*words}


@pytest.mark.parametrize("shown", [120], indirect=True)
def test_the_numbers_of_a_table_end_where_their_name_ends(shown: list[str]) -> None:
    """As one compares them. All of it is as wide as the terminal, and the long name is folded."""
    heading, *lines = shown
    end = heading.index("balance") + len("balance")
    amounts = [line[:end].split()[-1] for line in lines if any(each in line for each in IDS)]
    assert amounts == ["(1,234,567,830.12)", "(0.00)"]
    assert len(lines) > len(ROWS)
    assert max(map(len, shown)) == 120


@pytest.mark.parametrize("shown", [30], indirect=True)
def test_where_no_table_fits_each_row_stands_by_itself(shown: list[str]) -> None:
    """Its facts one below the other, with their names."""
    assert shown == [
        f"user         {ROWS[0][0]}",
        f"when (UTC)   {MOMENT}",
        f"balance      {NUMBERS[0]}",
        f"transaction  {IDS[0]}",
        "",
        "user         名前",
        f"when (UTC)   {MOMENT}",
        f"balance      {NUMBERS[1]}",
        f"transaction  {IDS[1]}",
    ]

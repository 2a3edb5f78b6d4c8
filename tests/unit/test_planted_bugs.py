"""Each planted bug can be planted, and names tests that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.planted import PLANTED, Bug

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_each_planted_bug_has_its_place(bug: Bug) -> None:
    """The text that it replaces stands exactly once. Otherwise, nothing would show for months."""
    assert (ROOT / "credit_mongo" / bug.file).read_text(encoding="utf-8").count(bug.was) == 1
    assert bug.was != bug.now
    assert all((ROOT / test).exists() for test in bug.tests)


def test_no_two_planted_bugs_have_one_name() -> None:
    """The command line chooses them by name."""
    names = [bug.name for bug in PLANTED]
    assert len({*names}) == len(names)

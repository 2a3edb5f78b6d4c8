"""The reference page of the FastAPI integration is complete."""

from __future__ import annotations

import re
from pathlib import Path

from credit_mongo.integrations import fastapi
from credit_mongo.integrations.fastapi.problems import _KINDS

PAGE = (Path(__file__).parents[2] / "docs/reference/fastapi.md").read_text(encoding="utf-8")


def test_the_page_has_every_public_name() -> None:
    """Each name has its signature and docstring."""
    shown = re.findall(r"^::: credit_mongo\.integrations\.fastapi\.(\w+)$", PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(fastapi.__all__)


def test_the_page_has_the_answer_to_every_error() -> None:
    """Each error has its status, code and attributes, and says whether a retry can help."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)`[^|]*\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    told = {
        code: (int(status), tuple(re.findall(r"`(\w+)`", facts)), passes.strip() == "yes")
        for status, code, facts, passes in rows
    }
    assert len(told) == len(rows)
    assert told == {
        kind.code: (shown.status, shown.facts, shown.may_pass) for kind, shown in _KINDS.items()
    }

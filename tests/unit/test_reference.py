"""The reference pages show every public name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import credit_mongo

PAGES = sorted((Path(__file__).parents[2] / "docs/reference").glob("*.md"))


def _shown(path: str) -> set[str]:
    """What a page shows by one line ``::: path``: an object, or all that a module offers."""
    try:
        found: object = import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        found = getattr(import_module(module), name)
        return {name}
    assert isinstance(found, ModuleType)
    return set(found.__all__)


def test_every_public_name_is_shown() -> None:
    """A name that is new, or whose module has moved, is missed here."""
    paths = [
        path
        for page in PAGES
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    shown = set().union(*map(_shown, paths))
    assert sorted(set(credit_mongo.__all__) - shown) == []

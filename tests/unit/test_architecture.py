"""The package's parts import each other in one direction, as docs/architecture.md says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "credit_mongo"
# Each part may import those before it.
ORDER: Final = ("errors", "core", "config", "storage", "engine", "maintenance", "ledger")
# Small modules that any part may import. They import only errors.
COMMON: Final = frozenset({"errors", "extras", "printing", "private_files"})
# What stands on top of the ledger, and what each may import besides the ledger's parts.
ON_TOP: Final = {
    "cli": frozenset[str](),
    "integrations": frozenset[str](),
    "local": frozenset[str](),
    "testing": frozenset({"local"}),
}


def _part(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def _imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Return which parts a module imports at run time, with the lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for condition in ast.walk(tree)
        if isinstance(condition, ast.If) and ast.unparse(condition.test) == "TYPE_CHECKING"
        for node in ast.walk(condition)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            if (node.module or "").split(".")[0] == PACKAGE.name:
                yield node.lineno, _part(node.module or "")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE.name:
                    yield node.lineno, _part(alias.name)


def _allowed(part: str) -> frozenset[str]:
    if part in COMMON:
        return frozenset({"errors"})
    if part in ORDER:
        before = frozenset(ORDER[: ORDER.index(part)]) | COMMON
        return before | {"drivers"} if part in ("maintenance", "ledger") else before
    if part == "drivers":
        return frozenset({"errors", "core", "config", "storage"}) | COMMON
    return frozenset(ORDER) | COMMON | {"drivers"} | ON_TOP[part]


PARTS: Final = sorted(
    {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    - {"__init__", "__main__"}
)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_those_below_it(part: str) -> None:
    """Imports go one way, so each part can be read and tested without those above it."""
    single = PACKAGE / f"{part}.py"
    paths = [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path in paths
        for line, imported in _imported_parts(path)
        if imported != part and imported not in _allowed(part)
    ]
    assert wrong == []


def test_the_core_knows_no_driver_and_does_no_input_or_output() -> None:
    """Decisions are pure: the core imports no driver and nothing that waits."""
    forbidden = {"asyncio", "beanie", "bson", "logging", "os", "pymongo", "random", "time"}
    found = {
        (path.name, name)
        for path in sorted((PACKAGE / "core").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name.split(".")[0] for alias in node.names]
            if isinstance(node, ast.Import)
            else [(node.module or "").split(".")[0]]
        )
        if name in forbidden
    }
    assert found == set()


def test_the_page_matches_the_package() -> None:
    """Every part and module that the page names exists, and the page leaves out no part."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    house = page.split("## The house")[1].split("\n## ")[0]
    for part in {*PARTS} - (COMMON - {"errors"}):
        name = f"{part}.py" if (PACKAGE / f"{part}.py").exists() else f"{part}/"
        assert f"      {name} " in house, name
    assert " ← ".join(ORDER) in house
    for module in re.findall(
        r"\b((?:core|engine|storage|maintenance|cli|tests)/[\w/]+\.py)\b", page
    ):
        assert (PACKAGE / module).exists() or (ROOT / module).exists(), module

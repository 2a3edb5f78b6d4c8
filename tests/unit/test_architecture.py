"""The house: which part of the package may import which, as docs/architecture.md says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import credit_mongo

ROOT = Path(__file__).parents[2]
PACKAGE = Path(credit_mongo.__file__).parent

# From the bottom up: a module imports from its own package and from the layers below it, never
# from beside or above. A new module needs its place here.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "extras", "printing", "private_files"}),
    frozenset({"core"}),
    frozenset({"config"}),
    frozenset({"drivers"}),
    frozenset({"storage"}),
    frozenset({"engine"}),
    frozenset({"maintenance"}),
    frozenset({"ledger"}),
    frozenset({"__init__"}),
    frozenset({"local"}),
    frozenset({"testing"}),
    frozenset({"studio"}),
    frozenset({"cli", "integrations", "observability"}),
    frozenset({"__main__"}),
)
IMPORTED_BY_NOBODY = LAYERS[-2]
OUTSIDE = frozenset({"scripts", "benchmarks", "tests"})

# Values, and what computes with them. "datetime" is here for its types alone; see below.
PURE_IMPORTS = frozenset(
    {
        "__future__",
        "base64",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "itertools",
        "math",
        "numbers",
        "operator",
        "pydantic",
        "re",
        "typing",
    }
)
IMPURE_NAMES = frozenset(
    {
        "now",
        "utcnow",
        "today",
        "fromtimestamp",
        "open",
        "input",
        "print",
        "exec",
        "eval",
        "globals",
        "breakpoint",
        "__import__",
    }
)


def _parse_all() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = _parse_all()
"""Every module by its dotted name below ``credit_mongo``."""
CORE = [name for name in MODULES if name.startswith("core.")]


def imports_of(tree: ast.Module) -> Iterable[str]:
    """Every module that is imported anywhere in a module, in functions and for types as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module == "credit_mongo":
                yield from (f"credit_mongo.{alias.name}" for alias in node.names)
            else:
                yield node.module


def top_of(name: str) -> str:
    """The package or module right below ``credit_mongo``, or another's top."""
    return name.removeprefix("credit_mongo.").partition(".")[0]


def layer_of(top: str) -> int:
    """How high a module stands."""
    found = [height for height, layer in enumerate(LAYERS) if top in layer]
    assert found, f"credit_mongo.{top} has no place in LAYERS yet: give it one"
    return found[0]


def test_the_walk_finds_the_modules() -> None:
    """The tests below look at something."""
    assert {"core.batch", "core.operations.charge", "core.pricing", "core.membership"} <= set(CORE)
    assert {"ledger.calls", "engine.commit", "errors"} <= MODULES.keys()


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_no_driver_no_clock_and_no_io(name: str) -> None:
    """Decisions are pure: values of the standard library, the core itself, and the errors."""
    for imported in imports_of(MODULES[name]):
        ours = imported.startswith("credit_mongo.core.") or imported == "credit_mongo.errors"
        assert ours or imported.partition(".")[0] in PURE_IMPORTS, f"{name} imports {imported}"


@pytest.mark.parametrize("name", CORE)
def test_the_core_calls_no_clock_and_no_io(name: str) -> None:
    """Not by the back door of a permitted module either, and nothing in it waits."""
    for node in ast.walk(MODULES[name]):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global), ast.dump(node)
        if isinstance(node, ast.Call):
            called = node.func
            used = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            assert used not in IMPURE_NAMES, f"{name}:{node.lineno} calls {used}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    """From ``errors`` up to ``ledger``, and nobody imports what stands outermost."""
    own = top_of(name)
    for imported in imports_of(MODULES[name]):
        ours = imported == "credit_mongo" or imported.startswith("credit_mongo.")
        top = top_of(imported) if imported != "credit_mongo" else "__init__"
        assert ours or top not in OUTSIDE, f"{name} imports {imported}"
        if not ours or top == own:
            continue
        assert own == "__main__" or top not in IMPORTED_BY_NOBODY, f"{name} imports {imported}"
        assert layer_of(top) < layer_of(own), f"{name} imports {imported}"


def test_the_ledger_reaches_maintenance_through_one_door() -> None:
    """What it needs of the jobs beside it is listed in one small module."""
    door = "credit_mongo.maintenance.ledger_methods"
    reached = {
        name
        for module in MODULES
        if top_of(module) == "ledger"
        for name in imports_of(MODULES[module])
        if ".maintenance" in name
    }
    assert reached == {door}


# ``LedgerDatabase`` settles once how the database is read and written, and what its log shows.
DRIVER_WORDS = frozenset(
    {"AsyncCollection", "AsyncDatabase", "as_database", "as_session", "with_options"}
)
KNOWS_THE_DRIVER = frozenset(
    {"cli.connecting", "storage.codecs", "storage.connection", "storage.database", "storage.users"}
)


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n not in KNOWS_THE_DRIVER and top_of(n) != "drivers"]
)
def test_the_driver_is_reached_through_the_ledger_s_database(name: str) -> None:
    """So no setting of the application's client can leak into a read or a write of the ledger's."""
    used = {
        getattr(node, field, None)
        for node in ast.walk(MODULES[name])
        for field in ("attr", "id", "name")
    }
    assert not used & DRIVER_WORDS


REPEATABLE_COMMANDS = frozenset(
    {
        *("hello", "buildInfo", "explain", "rolesInfo", "listCollections", "replSetGetStatus"),
        *("createIndexes", "create", "collMod", "createRole", "updateRole"),
    }
)


@pytest.mark.parametrize("name", [n for n in MODULES if top_of(n) not in ("local", "testing")])
def test_commands_that_can_be_repeated_are(name: str) -> None:
    """By `ask` and `ensure`: the driver repeats no command when a connection breaks."""
    for node in ast.walk(MODULES[name]):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="command"),
                args=[ast.Dict(keys=[ast.Constant(value=command), *_]), *_],
            ):
                assert command not in REPEATABLE_COMMANDS, f"line {node.lineno}"


def test_the_errors_import_nothing_of_ours() -> None:
    """The lowest layer stands on its own."""
    assert not [name for name in imports_of(MODULES["errors"]) if name.startswith("credit_mongo")]


# asyncio shows results of its own tasks and futures in its debug log. A local server has no rows.
SHOWS_RESULTS = frozenset({"create_task", "ensure_future", "shield", "TaskGroup"})
MAY_SHOW_RESULTS = frozenset(
    {"engine.tasks", "local.__main__", "local.replica_set", "local.members", "drivers.synchronous"}
)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - MAY_SHOW_RESULTS))
def test_tasks_are_begun_where_their_results_are_not_shown(name: str) -> None:
    """In engine.tasks. (A driver's thread answers with an object that shows nothing either.)"""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute):
            assert node.attr not in SHOWS_RESULTS, f"{name}, line {node.lineno}: {node.attr}"


# Timers, and tasks that nobody waits for.
MAY_CANCEL = frozenset(
    {
        "engine.tasks",
        "engine.contention",
        "engine.deadlines",
        "engine.heartbeats",
        "engine.lanes",
        "engine.open_holds",
        "local.__main__",
        "maintenance.backup.restoring",
    }
)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - MAY_CANCEL))
def test_tasks_are_stopped_where_a_lost_cancellation_is_repeated(name: str) -> None:
    """In engine.tasks. Whoever cancels a task once and waits for its end may wait for ever."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "cancel", f"{name}, line {node.lineno}"


def test_the_page_shows_the_house_as_it_is() -> None:
    """The page shows the layers in their order, with every part, and the modules it names exist."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    house = page.split("## The house")[1].split("\n## ")[0]
    for top in frozenset().union(*LAYERS[LAYERS.index(frozenset({"core"})) :]) - {"__main__"}:
        name = f"{top}/" if (PACKAGE / top).is_dir() else f"{top}.py"
        assert f"      {name} " in house, name
    order = house.split("Imports go one way: `")[1].split("`")[0].split(" ← ")
    assert [layer_of(top) for top in order] == sorted({layer_of(top) for top in order})
    for module in re.findall(r"\b((?:core|engine|storage|maintenance|tests)/[\w/]+\.py)\b", page):
        assert (PACKAGE / module).exists() or (ROOT / module).exists(), module

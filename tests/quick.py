"""The quick run: every module and every promise once, in five minutes.

Two marks name what `--quick` leaves out:

- ``thorough``: this test.
- ``cases(keep)``: all but ``keep`` of the test's parameter sets. The kept ones are evenly spaced.

A test that is marked with several drivers runs with one of the real ones.

pytest counts them as deselected, not skipped. CI runs everything.
"""

from __future__ import annotations

from collections import defaultdict
from zlib import crc32

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--quick",
        action="store_true",
        help="test every promise once, in five minutes: see tests/quick.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the two marks."""
    config.addinivalue_line("markers", "thorough: --quick leaves this test out")
    config.addinivalue_line(
        "markers", "cases(keep): --quick keeps this many of the test's parameter sets"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what a quick run leaves out."""
    if not config.getoption("--quick"):
        return
    by_function: dict[str, list[pytest.Item]] = defaultdict(list)
    left: set[pytest.Item] = set()
    for item in items:
        if item.get_closest_marker("thorough") or uses_another_driver(item):
            left.add(item)
        elif item.get_closest_marker("cases"):
            by_function[function_of(item)].append(item)
    for alike in by_function.values():
        mark = alike[0].get_closest_marker("cases")
        assert mark is not None
        left.update(set(alike) - set(evenly(alike, mark.args[0])))
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]


def function_of(item: pytest.Item) -> str:
    """Return the id of a test without its parameters."""
    return item.nodeid.partition("[")[0]


def uses_another_driver(item: pytest.Item) -> bool:
    """Whether the quick run has this test with another of its drivers.

    The driver's name depends on the test's, so that each driver gets a share of the tests. The
    mock comes on top: it shows nothing of a real server.
    """
    mark = item.get_closest_marker("drivers")
    if mark is None or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    real = [name for name in mark.args if name != "mongomock"]
    driver = item.callspec.params.get("driver")
    return driver in real and driver != real[crc32(function_of(item).encode()) % len(real)]


def evenly(items: list[pytest.Item], keep: int) -> list[pytest.Item]:
    """Return ``keep`` of the items, evenly spaced, including the first and the last."""
    if keep >= len(items):
        return items
    if keep == 1:
        return items[:1]
    return [items[number * (len(items) - 1) // (keep - 1)] for number in range(keep)]

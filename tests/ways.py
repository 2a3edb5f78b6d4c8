"""The ways in: by each driver, on an application's own collection, and in a container.

A run ends with how many of its tests went each way. A test goes several, say by Motor in a
container; one that needs no database goes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pytest_credit_mongo import _SOURCE

_WAY = "way"
_DRIVERS = {"pymongo": "PyMongo", "motor": "Motor", "mongomock": "mongomock-motor"}
_EXISTING = "existing collection"
_CONTAINER = "container"
_OUTCOMES = {"passed": "passed", "failed": "failed", "error": "failed"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Note with each test which way it goes."""
    for item in items:
        item.user_properties += [(_WAY, way) for way in _ways(item)]


def _ways(item: pytest.Item) -> Iterator[str]:
    fixtures = getattr(item, "fixturenames", ())
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "driver" in parameters:
        yield _DRIVERS[parameters["driver"]]
    elif {"client", "credit_replica_set"}.intersection(fixtures):
        yield _DRIVERS["pymongo"]
    if item.path.stem.startswith("test_existing_"):
        yield _EXISTING


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line: the numbers of each way that a test went."""
    source = config.stash.get(_SOURCE, None)
    is_container = source is not None and source.kind == "container"
    counts: dict[str, dict[str, int]] = {}
    for outcome, counted in _OUTCOMES.items():
        for report in terminalreporter.stats.get(outcome, ()):
            ways = [value for name, value in getattr(report, "user_properties", ()) if name == _WAY]
            if is_container and any(way != _DRIVERS["mongomock"] for way in ways):
                ways.append(_CONTAINER)
            for way in ways:
                counts.setdefault(way, {"passed": 0, "failed": 0})[counted] += 1
    known = (*_DRIVERS.values(), _EXISTING, _CONTAINER)
    told = [
        f"{way} {counts[way]['passed']} passed, {counts[way]['failed']} failed"
        for way in known
        if way in counts
    ]
    if told:
        terminalreporter.write_line(f"ways: {'; '.join(told)}")

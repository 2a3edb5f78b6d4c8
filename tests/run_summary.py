"""The last line of a run: how many tests ran by each driver, on existing users, in a container.

A test counts under each heading that applies, for example Motor and container. A test that needs
no database counts under none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pytest_credit_mongo import _SOURCE

_HEADING = "summary heading"
_DRIVERS = {"pymongo": "PyMongo", "motor": "Motor", "mongomock": "mongomock-motor"}
_EXISTING = "existing collection"
_CONTAINER = "container"
_OUTCOMES = {"passed": "passed", "failed": "failed", "error": "failed"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Note the headings that each test counts under."""
    for item in items:
        item.user_properties += [(_HEADING, heading) for heading in _headings(item)]


def _headings(item: pytest.Item) -> Iterator[str]:
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
    """Write one line with the counts under each heading."""
    source = config.stash.get(_SOURCE, None)
    is_container = source is not None and source.kind == "container"
    counts: dict[str, dict[str, int]] = {}
    for outcome, counted in _OUTCOMES.items():
        for report in terminalreporter.stats.get(outcome, ()):
            properties = getattr(report, "user_properties", ())
            headings = [value for name, value in properties if name == _HEADING]
            if is_container and any(heading != _DRIVERS["mongomock"] for heading in headings):
                headings.append(_CONTAINER)
            for heading in headings:
                counts.setdefault(heading, {"passed": 0, "failed": 0})[counted] += 1
    in_order = (*_DRIVERS.values(), _EXISTING, _CONTAINER)
    parts = [
        f"{heading} {counts[heading]['passed']} passed, {counts[heading]['failed']} failed"
        for heading in in_order
        if heading in counts
    ]
    if parts:
        terminalreporter.write_line(f"tests by database: {'; '.join(parts)}")

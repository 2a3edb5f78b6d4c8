"""The line that sums up a test run."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from credit_mongo.testing.replica_sets import Source
from pytest_credit_mongo import _SOURCE

def pytest_configure(config):
    config.stash[_SOURCE] = Source({kind!r}, "")

@pytest.fixture
def client():
    yield
    raise OSError
"""
TESTS = {
    "test_drivers": """
import pytest

@pytest.mark.parametrize("driver", ["pymongo", "motor", "mongomock"])
def test_each_driver(driver):
    assert driver != "motor"

def test_without_a_database():
    pass
""",
    "test_existing_users": "def test_it(client): pass",
    "test_existing_users_documents": "def test_it(): pass",
}
SUMMARY = (
    "tests by database: PyMongo 2 passed, 1 failed; Motor 0 passed, 1 failed; "
    "mongomock-motor 1 passed, 0 failed; existing collection 2 passed, 1 failed"
)


@pytest.mark.parametrize(
    ("kind", "end"), [("local", ""), ("container", "; container 3 passed, 2 failed")]
)
def test_the_last_line_counts_tests_by_driver_collection_and_container(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kind: str, end: str
) -> None:
    """Failed fixtures count as failures. A mock never counts as run in a container."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST.format(kind=kind))
    pytester.makepyfile(**TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "tests.run_summary")
    assert SUMMARY + end in result.outlines

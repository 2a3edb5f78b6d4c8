"""The last line of a run."""

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
def test_of_each(driver):
    assert driver != "motor"

def test_of_none():
    pass
""",
    "test_existing_users": "def test_it(client): pass",
    "test_existing_users_documents": "def test_it(): pass",
}
WAYS = (
    "ways: PyMongo 2 passed, 1 failed; Motor 0 passed, 1 failed; "
    "mongomock-motor 1 passed, 0 failed; existing collection 2 passed, 1 failed"
)


@pytest.mark.parametrize(
    ("kind", "ending"), [("local", ""), ("container", "; container 3 passed, 2 failed")]
)
def test_it_has_the_numbers_of_each_way(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
) -> None:
    """What fails before or after a test counts as well; a mock is in no container."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST.format(kind=kind))
    pytester.makepyfile(**TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "tests.ways")
    assert WAYS + ending in result.outlines

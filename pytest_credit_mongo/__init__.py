"""Fixtures for the tests of an application that uses credit_mongo. pytest finds them by itself.

- ``credit_ledger``: a `credit_mongo.CreditLedger` with its indexes, on an empty database.
- ``credit_config``: its prices and tiers. Override it with your own.
- ``credit_clock``: its clock, a `credit_mongo.testing.clocks.MovableClock`. The ledger doesn't
  compare it with the server's: ``max_clock_skew_seconds`` only applies if no clock is given.
- ``credit_database``: the test's own database, dropped after the test.
- ``credit_client``: the database's client, of PyMongo's async API.
- ``credit_replica_set``: the URI of a replica set for the whole run: MONGODB_URI, else a container
  if a Docker engine answers and has or can pull the image, else a local ``mongod``. pytest says
  which below the number of collected tests.
- ``credit_mongod_parameters``: a ``dict[str, str]`` for ``mongod --setParameter``. Override it.

They run on the test's event loop, whatever its scope. The loop may come from pytest-asyncio in
either mode, or from anyio's own plugin (with its asyncio backend).

pytest imports this module wherever it is installed, used or not. So this module imports nothing
slow: neither PyMongo nor Beanie nor credit_mongo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from credit_mongo import CreditConfig
    from credit_mongo.testing.clocks import MovableClock
    from credit_mongo.testing.replica_sets import Source

_SOURCE = pytest.StashKey["Source"]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures for each plugin that runs event loops."""
    from pytest_credit_mongo import on_anyio  # noqa: PLC0415

    config.pluginmanager.register(on_anyio, "credit_mongo_on_anyio")
    if config.pluginmanager.hasplugin("asyncio"):
        from pytest_credit_mongo import on_asyncio  # noqa: PLC0415

        config.pluginmanager.register(on_asyncio, "credit_mongo_on_asyncio")


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> str | list[str]:
    """Say which replica set the tests use, if any of them uses one."""
    if not any("credit_replica_set" in getattr(item, "fixturenames", ()) for item in items):
        return []
    from credit_mongo.errors import StorageError  # noqa: PLC0415

    try:
        return f"replica set: {_source(config).description}"
    except StorageError as error:  # the fixture raises it again, as the tests' failure
        return f"replica set: none; {error}"


def _source(config: pytest.Config) -> Source:
    if _SOURCE not in config.stash:
        from credit_mongo.testing.replica_sets import find_source  # noqa: PLC0415

        config.stash[_SOURCE] = find_source()
    return config.stash[_SOURCE]


@pytest.fixture(scope="session")
def credit_mongod_parameters() -> Mapping[str, str]:
    """Parameters for ``mongod --setParameter``, if a replica set is started for the tests."""
    return {}


@pytest.fixture(scope="session")
def credit_replica_set(
    pytestconfig: pytest.Config, credit_mongod_parameters: Mapping[str, str]
) -> Iterator[str]:
    """The URI of a replica set."""
    from credit_mongo.testing.replica_sets import replica_set  # noqa: PLC0415

    with replica_set(_source(pytestconfig), credit_mongod_parameters) as uri:
        yield uri


@pytest.fixture
def credit_config() -> CreditConfig:
    """Prices and tiers. Override it: here, an action named ``action`` costs one credit."""
    from credit_mongo import CreditConfig  # noqa: PLC0415

    return CreditConfig(costs={"action": {"default": 1}})


@pytest.fixture
def credit_clock() -> MovableClock:
    """The ledger's clock. It stands still until the test moves it."""
    from credit_mongo.testing.clocks import MovableClock  # noqa: PLC0415

    return MovableClock()


def _on_the_loop_of_the_test(request: pytest.FixtureRequest, name: str) -> Any:
    if "anyio_backend" in request.fixturenames:
        loop = "anyio"
    elif request.config.pluginmanager.hasplugin("asyncio"):
        marker = request.node.get_closest_marker("asyncio")
        default = request.config.getini("asyncio_default_test_loop_scope")
        loop = "asyncio_" + ((marker and marker.kwargs.get("loop_scope")) or default)
    else:
        pytest.fail(
            f"{name} needs an event loop: install pytest-asyncio, or mark the test for anyio",
            pytrace=False,
        )
    return request.getfixturevalue(f"_{name}_on_{loop}")


# Each also names the fixture below it, so that pytest_report_collectionfinish finds them all.
@pytest.fixture
def credit_client(request: pytest.FixtureRequest, credit_replica_set: str) -> Any:  # noqa: ARG001
    """The ``AsyncMongoClient`` of the test."""
    return _on_the_loop_of_the_test(request, "credit_client")


@pytest.fixture
def credit_database(request: pytest.FixtureRequest, credit_client: Any) -> Any:  # noqa: ARG001
    """The test's own database, empty, and dropped after it."""
    return _on_the_loop_of_the_test(request, "credit_database")


@pytest.fixture
def credit_ledger(request: pytest.FixtureRequest, credit_database: Any) -> Any:  # noqa: ARG001
    """A ledger on ``credit_database``, with its indexes."""
    return _on_the_loop_of_the_test(request, "credit_ledger")

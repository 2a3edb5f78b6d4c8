"""Fixtures for the tests of an application that uses credit_mongo. pytest finds them by itself.

- ``credit_ledger``: a `credit_mongo.CreditLedger` on an empty database, with its indexes.
- ``credit_config``: its prices and tiers. Override it with your own.
- ``credit_clock``: its clock, a `credit_mongo.testing.clocks.MovableClock`. The ledger does not
  compare it with the server's: ``max_clock_skew_seconds`` holds where no clock is given.
- ``credit_database``: the test's own database, dropped after it.
- ``credit_client``: the client that it is on, of PyMongo's async API.
- ``credit_replica_set``: the URI of a replica set, for the whole run: MONGODB_URI, else a container
  if a Docker engine answers and has or can pull the image, else a local ``mongod``. The line below
  the number of collected tests says which.
- ``credit_mongod_parameters``: override it for ``mongod --setParameter``; a ``dict[str, str]``.

They run on the event loop of the test that asks for them, whatever its scope: of pytest-asyncio in
either mode, or of anyio's own plugin (its asyncio backend).

pytest imports this wherever it is installed, used or not, so nothing is imported here that takes
time: neither PyMongo nor Beanie nor credit_mongo.
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
    """Join the plugins that run the tests' event loops."""
    from pytest_credit_mongo import on_anyio  # noqa: PLC0415

    config.pluginmanager.register(on_anyio, "credit_mongo_on_anyio")
    if config.pluginmanager.hasplugin("asyncio"):
        from pytest_credit_mongo import on_asyncio  # noqa: PLC0415

        config.pluginmanager.register(on_asyncio, "credit_mongo_on_asyncio")


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> str | list[str]:
    """Say which replica set the tests run on, if any of them does."""
    if not any("credit_replica_set" in getattr(item, "fixturenames", ()) for item in items):
        return []
    from credit_mongo.errors import StorageError  # noqa: PLC0415

    try:
        return f"replica set: {_source(config).description}"
    except StorageError as error:  # the fixture says it again, as the tests' failure
        return f"replica set: none; {error}"


def _source(config: pytest.Config) -> Source:
    if _SOURCE not in config.stash:
        from credit_mongo.testing.replica_sets import find_source  # noqa: PLC0415

        config.stash[_SOURCE] = find_source()
    return config.stash[_SOURCE]


@pytest.fixture(scope="session")
def credit_mongod_parameters() -> Mapping[str, str]:
    """For ``mongod --setParameter``, of a replica set that is started for the tests."""
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
    """Prices and tiers: to be overridden. These cost a credit for an action named ``action``."""
    from credit_mongo import CreditConfig  # noqa: PLC0415

    return CreditConfig(costs={"action": {"default": 1}})


@pytest.fixture
def credit_clock() -> MovableClock:
    """The ledger's clock, which stands still until the test moves it."""
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
        pytest.fail(f"{name} needs pytest-asyncio, or a test marked for anyio", pytrace=False)
    return request.getfixturevalue(f"_{name}_on_{loop}")


# Each names what it needs through another fixture, so that the report above finds it.
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

"""A replica set in a container. Needs a Docker engine with the image: see ``.ci/containers``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker
import pytest
from pymongo import MongoClient
from testcontainers.core.container import DockerContainer

from credit_mongo import StorageError
from credit_mongo.testing.containers import ContainerReplicaSet, fetch_images, image_to_use
from credit_mongo.testing.replica_sets import find_source, replica_set


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    """The Docker engine."""
    with contextlib.closing(docker.from_env()) as engine:
        yield engine


def containers(engine: docker.DockerClient) -> set[str]:
    """Return every container, running or not."""
    return {container.id for container in engine.containers.list(all=True)}


def test_the_tests_run_on_the_container(credit_replica_set: str) -> None:
    """The other tests of this run use the container that was requested."""
    assert find_source().kind == "container"
    assert credit_replica_set.endswith("/?directConnection=true")


def test_it_is_writable_at_once_and_gone_afterwards(engine: docker.DockerClient) -> None:
    """Transactions work from outside at once, with the given server parameters."""
    before = containers(engine)
    with ContainerReplicaSet(parameters={"enableTestCommands": "1"}) as started:
        assert len(containers(engine) - before) == 1
        with MongoClient[dict[str, int]](started.uri) as client, client.start_session() as session:
            with session.start_transaction():
                client["app"]["rows"].insert_one({"_id": 1}, session=session)
            assert client["app"]["rows"].count_documents({}) == 1
            assert client.admin.command({"getParameter": 1, "enableTestCommands": 1})["ok"] == 1
    assert containers(engine) == before


def test_it_is_gone_after_an_error(engine: docker.DockerClient) -> None:
    """The container is removed however the block ends."""
    before = containers(engine)
    started = replica_set(find_source(), {})
    started.__enter__()
    assert len(containers(engine) - before) == 1
    assert not started.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert containers(engine) == before


def test_a_mongod_that_does_not_start_is_an_error_with_its_log(
    engine: docker.DockerClient,
) -> None:
    """The error has the server's log, and no container remains."""
    before = containers(engine)
    with (
        pytest.raises(StorageError, match="noSuchParameter"),
        ContainerReplicaSet(parameters={"noSuchParameter": "1"}),
    ):
        pytest.fail("it started")
    assert containers(engine) == before


def test_a_mongod_that_ends_before_its_port_is_known_is_an_error_with_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Docker then knows of no port."""
    find = DockerContainer.get_exposed_port

    def find_when_it_has_ended(container: DockerContainer, port: int) -> int:
        container.get_wrapped_container().wait()
        with pytest.raises(ConnectionError):
            find(container, port)
        return find(container, port)

    monkeypatch.setattr(DockerContainer, "get_exposed_port", find_when_it_has_ended)
    with (
        pytest.raises(StorageError, match="noSuchParameter"),
        ContainerReplicaSet(parameters={"noSuchParameter": "1"}),
    ):
        pytest.fail("it started")


def test_an_image_that_is_not_to_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was asked for by name is never replaced by a local mongod."""
    monkeypatch.setenv("CREDIT_MONGO_TEST_IMAGE", "localhost:1/no-such-image:1")
    assert image_to_use() == "localhost:1/no-such-image:1"
    for call in (fetch_images, find_source, ContainerReplicaSet().__enter__):
        with pytest.raises(StorageError, match="localhost:1/no-such-image:1"):
            call()


def test_no_engine_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error without Docker says what to do."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    for call in (fetch_images, find_source, ContainerReplicaSet().__enter__):
        with pytest.raises(StorageError, match="start a Docker engine"):
            call()

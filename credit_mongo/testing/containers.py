"""A replica set of one member in a container. It needs the extra ``containers``."""

from __future__ import annotations

import contextlib
import gc
import os
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pymongo import MongoClient, timeout
from pymongo.errors import PyMongoError

from credit_mongo.errors import StorageError
from credit_mongo.extras import missing

try:
    from docker.errors import DockerException, ImageNotFound
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.docker_client import DockerClient
except ModuleNotFoundError as _error:
    raise missing(_error, "containers") from None

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ContainerReplicaSet", "fetch_images", "image_to_use"]

_DEFAULT_IMAGE: Final = "mongo:8"
_PORT: Final = 27017
_NAME: Final = "rs0"
_START_SECONDS: Final = 90.0
_END_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.1


def image_to_use(image: str | None = None) -> str:
    """Return ``image``, else CREDIT_MONGO_TEST_IMAGE, else ``mongo:8``."""
    return image or os.environ.get("CREDIT_MONGO_TEST_IMAGE") or _DEFAULT_IMAGE


def fetch_images(image: str | None = None) -> None:
    """Pull the images that `ContainerReplicaSet` needs and the Docker engine lacks.

    Raises StorageError if no engine answers, or an image can't be pulled.
    """
    needed = [testcontainers_config.hub_image_name_prefix + image_to_use(image)]
    if not testcontainers_config.ryuk_disabled:
        needed.append(testcontainers_config.ryuk_image)
    with warnings.catch_warnings():
        # If no engine answers, Docker's client leaves its socket open.
        warnings.simplefilter("ignore", ResourceWarning)
        reason = _fetch(needed)
        gc.collect()
    if reason:
        raise StorageError(reason)


def _fetch(needed: list[str]) -> str | None:
    """Why an image can't be had, or None. Doesn't return the error, which holds the socket."""
    try:
        with contextlib.closing(DockerClient().client) as engine:
            for name in needed:
                try:
                    engine.images.get(name)
                except ImageNotFound:
                    engine.images.pull(name)
    except (DockerException, OSError) as error:
        return _without_engine(needed, error)
    return None


def _without_engine(needed: list[str], error: Exception) -> str:
    return (
        f"no container of {' and '.join(needed)} can be started ({error}): start a Docker engine, "
        "or set CREDIT_MONGO_TEST_IMAGE to an image that the engine has and that has a mongod. If "
        "only Ryuk's image can't be pulled, set TESTCONTAINERS_RYUK_DISABLED=true"
    )


class ContainerReplicaSet:
    """A replica set of one member in a container, which runs while its ``with`` block does.

    - ``image``: an image with a ``mongod`` on its PATH and a directory ``/data/db``. None:
      CREDIT_MONGO_TEST_IMAGE, else ``mongo:8``.
    - ``parameters``: for ``mongod --setParameter``, for example ``{"enableTestCommands": "1"}``.

    Entering starts it, waits until it accepts writes, and raises StorageError if no Docker engine
    answers, the image can't be had, or the member isn't writable in 90 seconds. However the block
    ends, the container and its data are removed. If this process is killed, testcontainers' Ryuk
    removes them, unless TESTCONTAINERS_RYUK_DISABLED is ``true``.
    """

    def __init__(
        self, image: str | None = None, *, parameters: Mapping[str, str] | None = None
    ) -> None:
        self._image = image_to_use(image)
        self._parameters = dict(parameters or {})
        self._uri = ""
        self._cleanup = contextlib.ExitStack()

    @property
    def uri(self) -> str:
        """The connection string for this machine. Empty before the first entry.

        It asks for a direct connection, because the member announces its port in the container, and
        Docker publishes another one here. Transactions work.
        """
        return self._uri

    def __enter__(self) -> Self:
        given = [f"--setParameter={name}={value}" for name, value in self._parameters.items()]
        options = f"--replSet {_NAME} --bind_ip_all --quiet --wiredTigerCacheSizeGB 0.25"
        fetch_images(self._image)
        try:
            with contextlib.ExitStack() as stack:
                container = DockerContainer(self._image).with_exposed_ports(_PORT)
                container.with_command(["mongod", *options.split(), *given])
                stack.callback(container.stop)
                self._uri = f"mongodb://{self._start(container)}/?directConnection=true"
                self._wait_until_writable(container)
                self._cleanup = stack.pop_all()
        except (DockerException, OSError) as error:
            raise StorageError(_without_engine([self._image], error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self, container: DockerContainer) -> str:
        """Start it, and return the address of its mongod."""
        try:
            container.start()
            host = container.get_container_host_ip()
            return f"{host}:{container.get_exposed_port(_PORT)}"
        except (TimeoutError, ConnectionError):
            if not _has_ended(container):
                raise
            # It ended before testcontainers saw it run, or its port: its log says why.
            raise self._not_writable(container, "it does not run") from None

    def _not_writable(self, container: DockerContainer, reason: str) -> StorageError:
        log = b"".join(container.get_logs()).decode(errors="replace")[-1500:]
        return StorageError(f"the container of {self._image} is not writable ({reason}): {log}")

    def _wait_until_writable(self, container: DockerContainer) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with MongoClient[dict[str, Any]](self._uri) as client:
            while True:
                try:
                    with timeout(_PROBE_SECONDS):
                        if _is_writable(client):
                            return
                    reason = "it is not the primary"
                except PyMongoError as error:
                    reason = str(error)
                container.reload()
                if container.status == "exited" or time.monotonic() > deadline:
                    raise self._not_writable(container, reason)
                time.sleep(_PAUSE_SECONDS)


def _has_ended(container: DockerContainer) -> bool:
    """Whether it ended. Docker takes the port away a moment before it says so."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        container.reload()
        if container.status in ("exited", "not_started"):
            return bool(container.status == "exited")
        time.sleep(_PAUSE_SECONDS)
    return False


def _is_writable(client: MongoClient[dict[str, Any]]) -> bool:
    hello = client.admin.command("hello")
    if hello.get("isreplicaset"):  # not yet initiated
        members = [{"_id": 0, "host": f"127.0.0.1:{_PORT}"}]
        client.admin.command({"replSetInitiate": {"_id": _NAME, "members": members}})
        return False
    return bool(hello["isWritablePrimary"])

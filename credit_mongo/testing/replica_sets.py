"""Choose the replica set for tests: a given one, a container, or a local mongod."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from credit_mongo.errors import StorageError
from credit_mongo.local import LocalReplicaSet, find_mongod

__all__ = ["Source", "find_source", "replica_set"]


@dataclass(frozen=True)
class Source:
    """Where a replica set for tests comes from. The description has no password."""

    kind: Literal["given", "container", "local"]
    description: str


def find_source() -> Source:
    """Return the replica set to use: MONGODB_URI's, else a container, else a local ``mongod``.

    A container is used if a Docker engine answers and has the image or can pull it. Raises
    StorageError if none of the three is available. Also raises it if CREDIT_MONGO_TEST_IMAGE names
    an image that isn't available: it never falls back to another server.
    """
    if os.environ.get("MONGODB_URI"):
        return Source("given", "the one of MONGODB_URI")
    try:
        image = _fetch_image()
    except StorageError as no_container:
        if os.environ.get("CREDIT_MONGO_TEST_IMAGE"):
            raise
        try:
            return Source("local", f"a local mongod, {find_mongod()}")
        except StorageError as no_mongod:
            raise StorageError(f"set MONGODB_URI; {no_mongod}; {no_container}") from no_mongod
    return Source("container", f"a container of {image}")


def _fetch_image() -> str:
    try:
        from credit_mongo.testing import containers  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise StorageError(f"no container can be started: {error}") from error
    containers.fetch_images()
    return containers.image_to_use()


@contextlib.contextmanager
def replica_set(source: Source, parameters: Mapping[str, str]) -> Iterator[str]:
    """Keep the replica set running during the block. Yields its URI.

    ``parameters`` are for ``mongod --setParameter``. A given replica set ignores them. Raises
    StorageError if the set can't be started.
    """
    if source.kind == "given":
        yield os.environ["MONGODB_URI"]
    elif source.kind == "container":
        from credit_mongo.testing.containers import ContainerReplicaSet  # noqa: PLC0415

        with ContainerReplicaSet(parameters=parameters) as container:
            yield container.uri
    else:
        # A separate event loop, because tests start and end theirs as they like.
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            local = LocalReplicaSet(parameters=parameters)
            loop.run_until_complete(local.__aenter__())
            try:
                yield local.uri
            finally:
                loop.run_until_complete(local.__aexit__())

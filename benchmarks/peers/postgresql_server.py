"""A PostgreSQL of one's own on loopback, in a temporary directory, up while its block runs.

Durable, as the replica set is: ``fsync`` and ``synchronous_commit`` on. It refuses to run as root,
so that root runs it as ``postgres`` or ``nobody``.
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
from pathlib import Path
from typing import Any, Final

from typing_extensions import Self

from benchmarks.peers import PeerUnavailableError

__all__ = ["PostgresServer"]

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
_USER: Final = "benchmark"
_REMEDY: Final = "install Debian's package: apt-get install postgresql"


class PostgresServer:
    """``async with PostgresServer(…) as server``. Raises PeerUnavailableError."""

    def __init__(self, cache_gigabytes: float, connections: int) -> None:
        """The cache is ``shared_buffers``; ``connections`` is how many clients it takes at once."""
        self.version = ""
        self._settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "shared_buffers": f"{round(cache_gigabytes * 1024)}MB",
            # What is usual for a server with many writes: no checkpoint within a run.
            "max_wal_size": "8GB",
            "checkpoint_timeout": "15min",
            "wal_buffers": "16MB",
            "jit": "off",
            "max_connections": connections + 10,
        }
        self._directory = Path()
        self._port = 0
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    @property
    def connection(self) -> dict[str, Any]:
        """The arguments for ``asyncpg.connect``."""
        return {
            "host": "127.0.0.1",
            "port": self._port,
            "user": _USER,
            "password": self._password,
            "database": "postgres",
        }

    async def __aenter__(self) -> Self:
        binaries = _find_binaries()
        self._directory = Path(tempfile.mkdtemp(prefix="benchmark-postgresql-"))
        try:
            await asyncio.to_thread(self._initialize, binaries)
            self._port = _free_port()
            self._process = self._start(binaries)
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
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)  # at once, with all its processes
                process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _options(self) -> dict[str, Any]:
        """How its programs are run: by its own account, and where that may be."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "cwd": self._directory,
            "start_new_session": True,  # Ctrl-C in a terminal is ours to handle
        }
        if self._account is not None:
            options |= {
                "user": self._account.pw_uid,
                "group": self._account.pw_gid,
                "extra_groups": [],
            }
        return options

    def _initialize(self, binaries: Path) -> None:
        secret = self._directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        for path in (self._directory, secret):
            if self._account is not None:
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        options = ["--encoding", "UTF8", "--locale", "C", "--auth", "scram-sha-256", "--no-sync"]
        place = ("--pgdata", self._directory / "data")
        login = ("--username", _USER, "--pwfile", secret)
        done = subprocess.run(
            [binaries / "initdb", *place, *login, *options],
            stdout=subprocess.PIPE,
            check=False,
            **self._options(),
        )
        secret.unlink()
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace")[-300:]
            raise PeerUnavailableError(f"initdb failed: {said}")

    def _start(self, binaries: Path) -> subprocess.Popen[bytes]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        data = str(self._directory / "data")
        command = [str(binaries / "postgres"), "-D", data, "-p", str(self._port)]
        with self._log.open("wb") as log:
            options: dict[str, Any] = {"stdout": log, **self._options()}
            process: subprocess.Popen[bytes] = subprocess.Popen([*command, *settings], **options)
            return process

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        import asyncpg  # noqa: PLC0415 - optional: it is there, or we were not here

        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_SECONDS
        connection: Any = None
        while connection is None:
            try:
                connection = await asyncpg.connect(**self.connection)
            except (OSError, asyncpg.PostgresError) as error:
                if process.poll() is not None or loop.time() > deadline:
                    said = self._log.read_text(errors="replace")[-300:]
                    raise PeerUnavailableError(f"it does not start: {said}") from error
                await asyncio.sleep(0.1)
        self.version = str(await connection.fetchval("SHOW server_version"))
        await connection.close()


def _account() -> pwd.struct_passwd | None:
    """The account to run it as; None for one's own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PeerUnavailableError("it refuses to run as root, and there is no other account")


def _find_binaries() -> Path:
    """The directory of PostgreSQL's programs: the newest of Debian's, else what is on the PATH."""
    try:
        import asyncpg  # noqa: F401, PLC0415
    except ImportError:
        raise PeerUnavailableError("install asyncpg (the extra `bench`)") from None
    found = [
        path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()
    ]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path is None or shutil.which("postgres") is None:
        raise PeerUnavailableError(f"there is no PostgreSQL here; {_REMEDY}")
    return Path(on_path).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

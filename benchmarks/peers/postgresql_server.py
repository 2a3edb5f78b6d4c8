"""A PostgreSQL of one's own on loopback, in a temporary directory, up while its block runs.

Durable, as the replica set is: ``fsync`` and ``synchronous_commit`` on. It refuses to run as root,
so that root runs it as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.own_server import OwnServer
from benchmarks.peers import PeerUnavailableError

__all__ = ["PostgresServer"]

_REMEDY: Final = "install Debian's package: apt-get install postgresql"


class PostgresServer(OwnServer):
    """``async with PostgresServer(…) as server``. Raises PeerUnavailableError."""

    kind: ClassVar[str] = "postgresql"
    accounts: ClassVar[tuple[str, ...]] = ("postgres", "nobody")
    stops_by: ClassVar[signal.Signals] = signal.SIGINT  # PostgreSQL's fast shutdown
    dies_by: ClassVar[signal.Signals] = signal.SIGQUIT  # at once, with all its processes

    def __init__(self, cache_gigabytes: float, connections: int) -> None:
        """The cache is ``shared_buffers``; ``connections`` is how many clients it takes at once."""
        super().__init__()
        self._binaries = _find_binaries()
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

    @property
    def connection(self) -> dict[str, Any]:
        """The arguments for ``asyncpg.connect``."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": "postgres",
        }

    def initialize(self) -> None:
        secret = self.directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        self.own(secret)
        options = ["--encoding", "UTF8", "--locale", "C", "--auth", "scram-sha-256", "--no-sync"]
        place = ("--pgdata", self.directory / "data")
        login = ("--username", self.user, "--pwfile", secret)
        self.run(self._binaries / "initdb", *place, *login, *options)
        secret.unlink()
        said = self.run(self._binaries / "postgres", "--version")
        # "postgres (PostgreSQL) 15.9 (Debian 15.9-0+deb12u1)"
        self.version = said.partition(") ")[2].strip()

    def command(self) -> Sequence[str]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        data = str(self.directory / "data")
        return [str(self._binaries / "postgres"), "-D", data, "-p", str(self.port), *settings]

    def is_ready(self) -> bool:
        asked = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        done = subprocess.run(asked, check=False, stdout=subprocess.DEVNULL, **self.options())
        return done.returncode == 0


def _find_binaries() -> Path:
    """The directory of PostgreSQL's programs: the newest of Debian's, else what is on the PATH."""
    found = [
        path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()
    ]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path is None or shutil.which("postgres") is None:
        raise PeerUnavailableError(f"there is no PostgreSQL here; {_REMEDY}")
    return Path(on_path).parent

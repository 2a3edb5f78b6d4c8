"""A MariaDB of one's own on loopback, in a temporary directory, up while its block runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import ClassVar, Final

from benchmarks.own_server import OwnServer
from benchmarks.peers import PeerUnavailableError

__all__ = ["MariaDbServer"]

_REMEDY: Final = "install Debian's package: apt-get install mariadb-server"


class MariaDbServer(OwnServer):
    """``async with MariaDbServer() as server``. Raises PeerUnavailableError."""

    kind: ClassVar[str] = "mariadb"
    accounts: ClassVar[tuple[str, ...]] = ("mysql", "nobody")
    database: ClassVar[str] = "credits"

    def initialize(self) -> None:
        data = self.directory / "data"
        login = "--auth-root-authentication-method=normal"
        self.run(
            *(_program("mariadb-install-db"), "--no-defaults", login, "--skip-test-db"),
            f"--datadir={data}",
        )
        # The first statements of the server: its user, and nobody without a password.
        first = self.directory / "first.sql"
        first.touch(mode=0o600)
        first.write_text(
            f"CREATE DATABASE {self.database} CHARACTER SET utf8mb4;\n"
            f"CREATE USER '{self.user}'@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{self.user}'@'127.0.0.1';\n"
            "DROP USER 'root'@'localhost';\n"
        )
        self.own(first)
        self.version = self.run(_program("mariadbd"), "--version").split(" Ver ")[-1].split()[0]

    def command(self) -> Sequence[str]:
        return [
            *(_program("mariadbd"), "--no-defaults", f"--datadir={self.directory / 'data'}"),
            *(f"--init-file={self.directory / 'first.sql'}", "--bind-address=127.0.0.1"),
            *(f"--port={self.port}", f"--socket={self.directory / 'socket'}"),
            *("--skip-name-resolve", "--innodb-buffer-pool-size=256M", "--pid-file=pid"),
        ]

    def is_ready(self) -> bool:
        # Not in an argument, where others could see it.
        asked = [_program("mariadb-admin"), "--no-defaults", "--protocol=tcp", "--host=127.0.0.1"]
        login = [f"--port={self.port}", f"--user={self.user}", "ping"]
        options = self.options()
        options["env"] = {"MYSQL_PWD": self.password}
        done = subprocess.run([*asked, *login], check=False, stdout=subprocess.DEVNULL, **options)
        return done.returncode == 0


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise PeerUnavailableError(f"there is no {name} here; {_REMEDY}")
    return found

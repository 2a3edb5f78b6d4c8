"""The keeper: a process that runs a member's mongod until its parent process ends.

Whatever ends the parent, even ``kill -9``, closes the pipe to the keeper's standard input. Then the
keeper ends the mongod and removes its directory, on Linux and macOS. PR_SET_PDEATHSIG can't do
that: it's Linux only, removes no directory, fires when the *thread* that forked ends, and needs
Python code between fork and exec, which is unsafe with other threads around. The keeper starts
every mongod, so it knows all of them. It leads its own session, so Ctrl-C in a terminal reaches
only the application, which stops in its own order.

Each line that the keeper reads is a port on which to start a mongod. It answers ``pid …``, and
``ended …`` when that mongod ends.

``members.py`` runs this file as a script, in a Python that sees only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys

__all__ = ["keep"]


def keep(parent: str, kept: str, directory: str, *command: str) -> None:
    """Start mongods on request, one at a time, until the parent ends."""
    os.umask(0o077)  # no other user may read the data
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which mongod would inherit
    if not kept:
        # Made here, so that every directory has a process that removes it. Only this user can
        # write to the directory above, and mkdir fails if the name is taken.
        try:
            os.mkdir(directory, 0o700)  # noqa: PTH102 - pathlib loads slowly
        except OSError as error:
            return _tell(f"ended {error}")
    process: subprocess.Popen[bytes] | None = None
    try:
        # Check the parent too, because another child of it may hold the pipe open.
        while os.getppid() == int(parent):
            if process is not None and process.poll() is not None:
                _tell(f"ended exit code {process.returncode}")
                process = None
            if not select.select([0], [], [], 0.1)[0]:
                continue
            if not (line := os.read(0, 100)):
                break
            if process is None:
                port = line.decode().strip()
                log = _open_log(directory)
                try:
                    os.write(log, f"--- start on port {port}\n".encode())
                    process = subprocess.Popen(  # noqa: S603
                        [*command, "--dbpath", directory, "--port", port],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                finally:
                    os.close(log)
                _tell(f"pid {process.pid}")
    except OSError as error:  # the command is not a program, or the log is a link
        _tell(f"ended {error}")
    finally:
        _end(process, kept, directory)


def _tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has just ended
        os.write(1, f"{line}\n".encode())


def _open_log(directory: str) -> int:
    """Open the log for appending. Fails on a link, which may lead to any file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(f"{directory}/mongod.log", flags, 0o600)


def _end(process: subprocess.Popen[bytes] | None, kept: str, directory: str) -> None:
    """End the keeper's mongod. Unless its data is kept, kill it and remove its directory."""
    if process is not None:
        process.send_signal(signal.SIGTERM if kept else signal.SIGKILL)
        process.send_signal(signal.SIGCONT)  # a paused process can't react to SIGTERM
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not kept:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # only the last keeper finds it empty
            os.rmdir(os.path.dirname(directory))  # noqa: PTH106, PTH120


if __name__ == "__main__":
    keep(*sys.argv[1:])

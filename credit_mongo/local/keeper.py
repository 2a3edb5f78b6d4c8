"""Run a member's mongod from a process of its own, its keeper, until the parent is no more.

Why a process: whatever ends the parent, ``kill -9`` included, closes the pipe that is this
process's standard input, so the mongod ends and its directory goes, on Linux and macOS.
PR_SET_PDEATHSIG is Linux only, removes no directory, fires when the *thread* that forked ends, and
needs Python code between fork and exec, which is unsafe beside other threads. And as the keeper
starts the mongod, there can be none that it does not know. It leads a session of its own: Ctrl-C in
a terminal reaches the application alone, which then stops in its own order.

Each line it reads is a port to start on; it answers ``pid …``, and ``ended …`` when that ends.

``local_members.py`` runs this file as a script, in a Python that sees the standard library alone.
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
    """Start mongods on request, one after the other, until the parent is no more."""
    os.umask(0o077)  # the data is nobody else's business
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # mongod would inherit SIG_IGN
    if not kept:
        # Made here, so that there is none without a process that removes it. The directory above
        # is this user's alone, and one that exists already is never taken: mkdir fails.
        try:
            os.mkdir(directory, 0o700)  # noqa: PTH102 - pathlib loads slowly
        except OSError as error:
            return _tell(f"ended {error}")
    process: subprocess.Popen[bytes] | None = None
    try:
        # The pipe may also be held open by another child of the parent: so look at the parent.
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
    except OSError as error:  # not a program, or the log is a link
        _tell(f"ended {error}")
    finally:
        _end(process, kept, directory)


def _tell(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has just gone
        os.write(1, f"{line}\n".encode())


def _open_log(directory: str) -> int:
    """Open the log to append to it. A link in its place is an error: it may lead to any file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(f"{directory}/mongod.log", flags, 0o600)


def _end(process: subprocess.Popen[bytes] | None, kept: str, directory: str) -> None:
    """End a keeper's mongod, at once if its data is not kept, and then remove that."""
    if process is not None:
        process.send_signal(signal.SIGTERM if kept else signal.SIGKILL)
        process.send_signal(signal.SIGCONT)  # a paused one could not obey
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not kept:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # the last keeper's is empty
            os.rmdir(os.path.dirname(directory))  # noqa: PTH106, PTH120


if __name__ == "__main__":
    keep(*sys.argv[1:])

"""Where an export goes: a file that is there as a whole or not at all, or the standard output.

Until it is whole, a file has the name ``.export-xxxxxxxx.part`` beside its place, and a lock. The
lock ends with its process: what has the name and no lock was left by a run that was killed, and the
next export into that directory removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.export.formats import Write
from credit_mongo.printing import printable_lines
from credit_mongo.private_files import Directory

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where what a killed run left stays
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

__all__ = ["standard_output", "whole_file"]

_UNFINISHED: Final = re.compile(r"\.export-[0-9a-z_]{8}\.part")
_MOST_LINKS: Final = 40


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Write]:
    """A new file, for its owner alone: it has its name only when all is written to the disk.

    Until then it is beside its place under another name, and if anything fails it is removed. A
    link is followed if it is this user's own and leads to a file that exists.

    Raises OSError, which names ``path``; FileExistsError unless it may ``overwrite``; and
    InvalidRequestError for a name that no file can have.
    """
    if "\0" in str(path):
        raise InvalidRequestError("file", "the name contains a NUL character")
    with contextlib.ExitStack() as opened:
        with _naming(path):
            target = _target_of(path)
            _check(target, overwrite=overwrite)
            directory = opened.enter_context(Directory(target.parent))
            _remove_what_killed_runs_left(directory)
            beside, file = _create_beside(directory)
        opened.callback(directory.remove, beside, missing_ok=True)
        opened.callback(_close, file)
        yield _writing(file.write, path)
        with _naming(path):
            file.flush()
            os.fsync(file.fileno())
            _give_name(directory, beside, target, overwrite=overwrite)
            if not directory.holds(target.name, file):
                raise OSError(errno.EIO, "was replaced by somebody else while it was written")


@contextmanager
def standard_output() -> Iterator[Write]:
    """Straight to it: nothing is left in a buffer that would fail again when Python ends.

    A terminal obeys some characters: there they are escapes. A pipe gets what is stored.
    """
    sys.stdout.flush()
    is_terminal = os.isatty(1)

    def write(data: bytes) -> None:
        left = memoryview(printable_lines(data.decode()).encode() if is_terminal else data)
        while left:
            left = left[os.write(1, left) :]

    yield write


def _writing(write: Write, path: Path) -> Write:
    def to_path(data: bytes) -> None:
        with _naming(path):
            write(data)

    return to_path


def _target_of(path: Path) -> Path:
    """The whole path of the file to write. Links that somebody else has planted lead nowhere."""
    for _ in range(_MOST_LINKS):
        path = path.parent.resolve() / path.name
        if not path.is_symlink():
            return path.resolve()
        if hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid():
            raise OSError(errno.EPERM, "is another user's link, which is not followed")
        if not path.exists():
            raise OSError(errno.EINVAL, "is a link to nothing, which is not followed")
        if not path.is_file():  # such as /dev/stdout
            raise OSError(errno.EINVAL, "exists but is not a file")
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check(path: Path, *, overwrite: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "exists but is not a file")
        if not overwrite:
            raise _exists()


def _exists() -> OSError:
    return FileExistsError(errno.EEXIST, "exists already; --force overwrites it")


def _create_beside(directory: Directory) -> tuple[str, BinaryIO]:
    """A file under a name of its own, and with the lock that says that somebody writes it."""
    while True:
        name = f".export-{secrets.token_hex(4)}.part"
        try:
            file = directory.create(name)
        except FileExistsError:
            continue
        if not _HAS_LOCKS:
            return name, file
        # A file system without locks has no killed run's files removed either.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if directory.holds(name, file):
            return name, file
        file.close()  # another export took it for a killed one's before it had its lock


def _remove_what_killed_runs_left(directory: Directory) -> None:
    if not _HAS_LOCKS:
        return
    for name in filter(_UNFINISHED.fullmatch, directory.names()):
        # Another user's, one that is being written, or gone meanwhile.
        with contextlib.suppress(OSError), directory.open(name, writable=True) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                directory.remove(name)


def _close(file: BinaryIO) -> None:
    # All that counts was flushed; after a failure, closing tries to write the rest once more.
    with contextlib.suppress(OSError):
        file.close()


def _give_name(directory: Directory, beside: str, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        # Unlike a renaming, this never takes the place of what came into being meanwhile.
        try:
            directory.link(beside, path.name)
        except FileExistsError:
            raise _exists() from None
        except OSError:
            # A file system without links.
            _check(path, overwrite=False)
        else:
            return
    directory.rename(beside, path.name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the file system name the file that was asked for, and not the one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise

"""Where an export goes: a file that appears only when it is complete, or the standard output.

Until it is complete, a file has the name ``.export-xxxxxxxx.part`` in the same directory, and a
lock. The lock ends with its process. So a file with such a name and no lock comes from a killed
run, and the next export into that directory removes it.
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
except ModuleNotFoundError:  # Windows: files of killed runs stay
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

__all__ = ["standard_output", "whole_file"]

_UNFINISHED: Final = re.compile(r"\.export-[0-9a-z_]{8}\.part")
_MOST_LINKS: Final = 40


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Write]:
    """Write a new file, readable by its owner alone. It gets its name once it is on the disk.

    Until then it has another name in the same directory. After a failure it is removed. A link is
    followed if it belongs to this user and leads to an existing file.

    Raises:
    - OSError, which names ``path``.
    - FileExistsError if the file exists and ``overwrite`` is False.
    - InvalidRequestError if ``path`` can't be the name of a file.
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
    """Write to the standard output without a buffer, which could fail again when Python ends.

    On a terminal, control characters are escaped. A pipe gets the stored text.
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
    """Return the absolute path of the file to write. Links of other users are refused."""
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
    """Create a file with a unique name, and lock it to show that it is being written."""
    while True:
        name = f".export-{secrets.token_hex(4)}.part"
        try:
            file = directory.create(name)
        except FileExistsError:
            continue
        if not _HAS_LOCKS:
            return name, file
        # On a file system without locks, files of killed runs stay.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if directory.holds(name, file):
            return name, file
        file.close()  # another export removed it before it was locked


def _remove_what_killed_runs_left(directory: Directory) -> None:
    if not _HAS_LOCKS:
        return
    for name in filter(_UNFINISHED.fullmatch, directory.names()):
        # Skip files of other users, files being written, and files already gone.
        with contextlib.suppress(OSError), directory.open(name, writable=True) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                directory.remove(name)


def _close(file: BinaryIO) -> None:
    # Everything that counts was flushed. After a failure, closing writes the rest again.
    with contextlib.suppress(OSError):
        file.close()


def _give_name(directory: Directory, beside: str, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        # Unlike a rename, a link never replaces a file that was created in between.
        try:
            directory.link(beside, path.name)
        except FileExistsError:
            raise _exists() from None
        except OSError:
            # The file system has no links.
            _check(path, overwrite=False)
        else:
            return
    directory.rename(beside, path.name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make file errors name the requested file instead of the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise

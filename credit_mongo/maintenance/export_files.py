"""Where an export goes: a file that is there as a whole or not at all, or the standard output."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.export_formats import Write
from credit_mongo.printing import printable_lines

__all__ = ["standard_output", "whole_file"]


@contextmanager
def whole_file(path: Path, *, overwrite: bool) -> Iterator[Write]:
    """A new file, for its owner alone: it has its name only when all is written to the disk.

    Until then it is beside its place under another name, and if anything fails it is removed.
    Raises OSError, which names ``path``; FileExistsError unless it may ``overwrite``; and
    InvalidRequestError for a name that no file can have.
    """
    if "\0" in str(path):
        raise InvalidRequestError("file", "its name has a NUL")
    with _naming(path):
        path = path.resolve()
        _check(path, overwrite=overwrite)
        descriptor, name = tempfile.mkstemp(prefix=".export-", suffix=".part", dir=path.parent)
    beside = Path(name)
    try:
        # Closing may write as well, and fail.
        with _naming(path), os.fdopen(descriptor, "wb") as file:
            yield _writing(file.write, path)
            file.flush()
            os.fsync(file.fileno())
        with _naming(path):
            _give_name(beside, path, overwrite=overwrite)
    finally:
        beside.unlink(missing_ok=True)


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


def _check(path: Path, *, overwrite: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is there and is no file")
        if not overwrite:
            raise _exists()


def _exists() -> OSError:
    return FileExistsError(errno.EEXIST, "is there already; --force overwrites it")


def _give_name(beside: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        # Unlike a renaming, this never takes the place of what came into being meanwhile.
        try:
            path.hardlink_to(beside)
        except FileExistsError:
            raise _exists() from None
        except OSError:
            # A file system without links.
            _check(path, overwrite=False)
        else:
            return
    beside.replace(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the file system name the file that was asked for, and not the one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None

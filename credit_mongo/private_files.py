"""Files that no other user of the machine can read, replace or redirect.

An attacker usually plants a link, so that our write lands in a file of their choice. So we create
files exclusively, open existing files without following links, and name files relative to an open
directory, which nobody can swap for another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Directory", "why_replaceable", "why_unsafe"]

_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# Windows has none of these. There we use whole paths.
_HAS_DESCRIPTORS: Final = os.open in os.supports_dir_fd
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
# Otherwise opening a planted pipe would wait for its other end.
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
_BINARY: Final = getattr(os, "O_BINARY", 0)


def why_unsafe(status: os.stat_result) -> str | None:
    """Why other users of the machine can change the directory's content. None if they can't.

    A safe directory belongs to this process's user or to root, and neither its group nor others may
    write to it. A sticky bit, as on ``/tmp``, isn't enough: it prevents others from replacing our
    files, but they can create a name before we do.
    """
    if not _HAS_DESCRIPTORS:
        return None  # on Windows, the mode doesn't tell who may write
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user: run as its owner, or choose a directory of your own"
    if status.st_mode & _OTHERS_MAY_WRITE:
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        return (
            f"can be written by other users (mode {mode}): choose one that only you can write to, "
            "or run chmod go-w on it"
        )
    return None


def why_replaceable(path: Path) -> str | None:
    """Why anybody can replace a directory in ``path``. None if nobody can.

    Anybody can if a directory on the way is writable by everybody and has no sticky bit.
    """
    if not _HAS_DESCRIPTORS:
        return None
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return (
                f"{directory} can be written by everybody and has no sticky bit: "
                "run chmod o-w on it, or choose another"
            )
    return None


class Directory:
    """A directory held open until `close`. Its methods take names of files in it.

    They raise OSError with the whole path as its ``filename``.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self._descriptor: int | None = None
        if _HAS_DESCRIPTORS:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def status(self) -> os.stat_result:
        """The directory's owner, mode and so on."""
        return self.path.stat() if self._descriptor is None else os.fstat(self._descriptor)

    def names(self) -> list[str]:
        """The names of everything in the directory."""
        # pathlib takes no descriptor.
        return os.listdir(self.path if self._descriptor is None else self._descriptor)  # noqa: PTH208

    def has(self, name: str) -> bool:
        """Whether a file, or anything else, has this name."""
        try:
            self._status_of(name)
        except FileNotFoundError:
            return False
        return True

    def create(self, name: str, *, buffering: int = -1) -> BinaryIO:
        """Create a file that only its owner can read and write. It's open for both.

        Raises FileExistsError if the name is taken, even by a dangling link.
        """
        with self._naming(name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
            descriptor = os.open(self._at(name), flags, 0o600, dir_fd=self._descriptor)
        return os.fdopen(descriptor, "w+b", buffering=buffering)

    def open(self, name: str, *, writable: bool = False) -> BinaryIO:
        """Open an existing regular file without truncating it."""
        with self._naming(name):
            flags = (os.O_RDWR if writable else os.O_RDONLY) | _NO_LINK | _NO_WAIT | _BINARY
            descriptor = os.open(self._at(name), flags, dir_fd=self._descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "is not a regular file")
        return os.fdopen(descriptor, "r+b" if writable else "rb")

    def holds(self, name: str, opened: BinaryIO) -> bool:
        """Whether the path still leads to the opened file."""
        try:
            found = (self.path / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(found, os.fstat(opened.fileno()))

    def rename(self, old: str, new: str) -> None:
        """Rename a file. It replaces an existing one of the new name."""
        with self._naming(new):
            os.replace(
                self._at(old),
                self._at(new),
                src_dir_fd=self._descriptor,
                dst_dir_fd=self._descriptor,
            )

    def link(self, old: str, new: str) -> None:
        """Give a file a second name. Raises FileExistsError if that name is taken."""
        with self._naming(new):
            if self._descriptor is None:
                os.link(self._at(old), self._at(new))
                return
            os.link(
                old,
                new,
                src_dir_fd=self._descriptor,
                dst_dir_fd=self._descriptor,
                follow_symlinks=False,
            )

    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a file. Of a link, this removes the link itself and not its target."""
        with self._naming(name), contextlib.ExitStack() as ignored:
            if missing_ok:
                ignored.enter_context(contextlib.suppress(FileNotFoundError))
            os.unlink(self._at(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """Sync the directory so that its names survive a crash, where the system supports it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def _status_of(self, name: str) -> os.stat_result:
        with self._naming(name):
            return os.stat(self._at(name), dir_fd=self._descriptor, follow_symlinks=False)

    def _at(self, name: str) -> str:
        return str(self.path / name) if self._descriptor is None else name

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            raise

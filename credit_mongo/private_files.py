"""Files that no other user of the machine can read, replace, or lead somewhere else.

A planted link is the usual way to turn one user's write into another's file: so files are created
exclusively, existing ones are opened without following a link, and everything happens relative to a
directory that is held open, which nobody can swap for another meanwhile.
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
# Windows has none of these; there, names are whole paths.
_HAS_DESCRIPTORS: Final = os.open in os.supports_dir_fd
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
# A pipe that somebody put there would keep us waiting for its other end.
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
_BINARY: Final = getattr(os, "O_BINARY", 0)


def why_unsafe(status: os.stat_result) -> str | None:
    """Why other users of the machine can change what is in the directory; None if they can't.

    It has to belong to this process's user or to root, and neither its group nor others may write
    to it. The sticky bit, as ``/tmp`` has it, doesn't make up for that: it keeps files from being
    replaced, but everybody can create a name before we do.
    """
    if not _HAS_DESCRIPTORS:
        return None  # Windows: the mode says nothing of who may write
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
    """Why anybody can put another directory in the place of one in ``path``; None if they can't.

    That takes a directory on the way that everybody may write to, without the sticky bit.
    """
    if not _HAS_DESCRIPTORS:
        return None
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{directory} can be written by everybody and has no sticky bit: chmod o-w"
    return None


class Directory:
    """A directory that is held open until `close`; names are those of files in it.

    Every method raises OSError, with the whole path as its ``filename``.
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
        """Let it go. A second time does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def status(self) -> os.stat_result:
        """Its owner and mode."""
        return self.path.stat() if self._descriptor is None else os.fstat(self._descriptor)

    def names(self) -> list[str]:
        """Of all that is in it."""
        # pathlib takes no descriptor.
        return os.listdir(self.path if self._descriptor is None else self._descriptor)  # noqa: PTH208

    def has(self, name: str) -> bool:
        """Whether there is a file, or anything else, of this name."""
        try:
            self._status_of(name)
        except FileNotFoundError:
            return False
        return True

    def create(self, name: str, *, buffering: int = -1) -> BinaryIO:
        """A new file, for its owner alone, to be written and read.

        Raises FileExistsError if the name is taken, be it by a link to nowhere.
        """
        with self._naming(name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
            descriptor = os.open(self._at(name), flags, 0o600, dir_fd=self._descriptor)
        return os.fdopen(descriptor, "w+b", buffering=buffering)

    def open(self, name: str, *, writable: bool = False) -> BinaryIO:
        """A regular file that is there; nothing of it is cut off."""
        with self._naming(name):
            flags = (os.O_RDWR if writable else os.O_RDONLY) | _NO_LINK | _NO_WAIT | _BINARY
            descriptor = os.open(self._at(name), flags, dir_fd=self._descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "is no regular file")
        return os.fdopen(descriptor, "r+b" if writable else "rb")

    def holds(self, name: str, opened: BinaryIO) -> bool:
        """Whether the path, as anybody finds it later, leads to the opened file."""
        try:
            found = (self.path / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(found, os.fstat(opened.fileno()))

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, and take the place of one that has it."""
        with self._naming(new):
            os.replace(
                self._at(old),
                self._at(new),
                src_dir_fd=self._descriptor,
                dst_dir_fd=self._descriptor,
            )

    def link(self, old: str, new: str) -> None:
        """Give a file another name as well. Raises FileExistsError if that is taken."""
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
        """Remove a file; a link itself, and not what it leads to."""
        with self._naming(name), contextlib.ExitStack() as ignored:
            if missing_ok:
                ignored.enter_context(contextlib.suppress(FileNotFoundError))
            os.unlink(self._at(name), dir_fd=self._descriptor)

    def sync(self) -> None:
        """So that names survive a crash of the machine, where directories can be synced."""
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

"""Where backups are kept: a directory, or anything that fsspec knows.

In a directory, a backup is written under a hidden name, synced, and renamed. Elsewhere there may be
no renaming: there the manifest is written last, and what has no manifest is no backup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from credit_mongo.errors import BackupError, InvalidRequestError
from credit_mongo.extras import missing
from credit_mongo.private_files import Directory, why_replaceable, why_unsafe

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MANIFEST", "Place", "Writing", "place_of"]

MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"\d{8}T\d{6}Z-(?:full|incremental)-[0-9a-f]{8}")
_LARGEST_MANIFEST: Final = 1 << 24
_UNFINISHED: Final = re.compile(rf"\.({_NAME.pattern})\.part")
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def place_of(field: str, where: object) -> Place:
    """Return the place that a path or a URL names. Raises InvalidRequestError."""
    if not isinstance(where, str | os.PathLike):
        raise InvalidRequestError(field, f"must be a str or a path, not {type(where).__name__}")
    url = _URL.fullmatch(where) if isinstance(where, str) else None
    if url is not None and url[1] != "file":
        return _RemotePlace(field, str(where))
    try:
        path = Path(url[2] if url is not None else where).expanduser().resolve()
        is_other = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, ValueError):
        raise InvalidRequestError(field, "is not a valid path") from None
    if is_other:
        raise InvalidRequestError(field, f"{path} exists but is not a directory")
    return _LocalPlace(field, path)


class Writing(ABC):
    """A backup that is being written."""

    @abstractmethod
    def create(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Create a file of the backup. Leaving the context completes it."""

    @abstractmethod
    def finish(self, manifest: bytes) -> None:
        """Write the manifest. From then on the backup is there."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove what was written. Raises nothing."""


class Place(ABC):
    """Keeps backups. All methods block, and raise OSError or BackupError."""

    text: str
    """The place, without secrets."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all backups, the oldest first. None if the place doesn't exist."""

    @abstractmethod
    def open(self, backup: str, path: str) -> BinaryIO:
        """Open a file of a backup for reading. Raises FileNotFoundError."""

    @abstractmethod
    def begin(self, backup: str) -> Writing:
        """Begin a backup."""

    @abstractmethod
    def remove(self, backup: str) -> None:
        """Remove a backup: first its manifest, so that no part of it looks whole."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what runs that were killed have left."""

    def manifest_of(self, backup: str) -> bytes:
        """Return a backup's manifest as it is stored."""
        with self.open(backup, MANIFEST) as file:
            return file.read(_LARGEST_MANIFEST)


class _LocalPlace(Place):
    def __init__(self, field: str, path: Path) -> None:
        self._field = field
        self._path = path
        self.text = str(path)

    def names(self) -> list[str]:
        if not self._path.exists():
            return []
        with Directory(self._path) as directory:
            found = directory.names()
        return sorted(name for name in found if _NAME.fullmatch(name))

    def open(self, backup: str, path: str) -> BinaryIO:
        whole = self._path / backup / path
        with Directory(whole.parent) as directory:
            return directory.open(whole.name)

    def begin(self, backup: str) -> Writing:
        self._make()
        return _LocalWriting(self._path, backup)

    def _make(self) -> None:
        parent = self._path.parent
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        self._path.mkdir(mode=0o700, exist_ok=True)
        for reason in (why_unsafe(self._path.stat()), why_replaceable(parent)):
            if reason is not None:
                raise InvalidRequestError(self._field, f"{self._path} {reason}")

    def remove(self, backup: str) -> None:
        hidden = self._path / f".{backup}.part"
        (self._path / backup).rename(hidden)
        _sync(self._path)
        shutil.rmtree(hidden)

    def remove_unfinished(self) -> None:
        if self._path.exists():
            for name in os.listdir(self._path):  # noqa: PTH208 - names are all that is needed
                if _UNFINISHED.fullmatch(name):
                    shutil.rmtree(self._path / name)


class _LocalWriting(Writing):
    def __init__(self, path: Path, backup: str) -> None:
        self._place = path
        self._name = backup
        self._hidden = path / f".{backup}.part"
        self._hidden.mkdir(mode=0o700)
        self._directories = [self._hidden]

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        whole = self._hidden / path
        if whole.parent not in self._directories:
            whole.parent.mkdir(mode=0o700)
            self._directories.append(whole.parent)
        with (
            _naming(whole),
            Directory(whole.parent) as directory,
            directory.create(whole.name) as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())

    def finish(self, manifest: bytes) -> None:
        with self.create(MANIFEST) as file:
            file.write(manifest)
        for directory in self._directories:
            _sync(directory)
        os.rename(self._hidden, self._place / self._name)  # noqa: PTH104 - must not replace
        _sync(self._place)

    def abandon(self) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The error of a full disk doesn't name the file."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    with Directory(path) as directory:
        directory.sync()


class _RemotePlace(Place):
    def __init__(self, field: str, url: str) -> None:
        # A URL may have a user name and a password.
        self.text = re.sub(r"://.*@", "://…@", url)
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise InvalidRequestError(field, str(missing(error, "remote"))) from None
        try:
            self._files, self._root = cast("tuple[Any, str]", url_to_fs(url))
        except ImportError:
            scheme = url.partition("://")[0]
            raise InvalidRequestError(
                field, f"fsspec needs another package for {scheme}://: install it (s3fs for s3://)"
            ) from None
        except (ValueError, TypeError, OSError):
            raise InvalidRequestError(field, f"{self.text} is nothing that fsspec knows") from None

    def names(self) -> list[str]:
        with self._told():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            names = (str(each).rstrip("/").rpartition("/")[2] for each in found)
            return sorted(
                name
                for name in names
                if _NAME.fullmatch(name) and self._files.exists(self._at(name, MANIFEST))
            )

    def open(self, backup: str, path: str) -> BinaryIO:
        with self._told():
            opened = self._files.open(self._at(backup, path), "rb")
            return cast(BinaryIO, _Told(opened, self._told))

    def begin(self, backup: str) -> Writing:
        return _RemoteWriting(self, backup)

    def remove(self, backup: str) -> None:
        with self._told():
            self._files.rm_file(self._at(backup, MANIFEST))
            self._files.rm(self._at(backup), recursive=True)

    def remove_unfinished(self) -> None:
        with self._told():
            whole = self.names()
            with contextlib.suppress(FileNotFoundError):
                for each in self._files.ls(self._root, detail=False):
                    name = str(each).rstrip("/").rpartition("/")[2]
                    if _NAME.fullmatch(name) and name not in whole:
                        self._files.rm(self._at(name), recursive=True)

    def _at(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The libraries of the places raise errors of all kinds, which may quote secrets."""
        try:
            yield
        except (BackupError, FileNotFoundError):
            raise
        except Exception as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if isinstance(number, int) else type(error).__name__
            raise BackupError(
                "", f"{self.text} can't be used: {reason}. Check the address and the credentials"
            ) from error


class _Told:
    """A file whose errors are told as those of its place."""

    def __init__(self, file: Any, told: Any) -> None:
        self._file = file
        self._told = told
        self.written = 0

    def read(self, size: int = -1) -> bytes:
        with self._told():
            found: bytes = self._file.read(size)
            return found

    def write(self, data: bytes) -> int:
        with self._told():
            written: int = self._file.write(data)
            self.written += len(data)
            return written

    def close(self) -> None:
        with self._told():
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RemoteWriting(Writing):
    def __init__(self, place: _RemotePlace, backup: str) -> None:
        self._place = place
        self._name = backup
        self._sizes: dict[str, int] = {}

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        place = self._place
        with place._told():
            where = place._at(self._name, path)
            with contextlib.suppress(FileExistsError):
                place._files.makedirs(where.rpartition("/")[0], exist_ok=True)
            file = place._files.open(where, "wb")
        told = _Told(file, place._told)
        try:
            yield cast(BinaryIO, told)
        except BaseException:
            # Otherwise closing would complete the file.
            with contextlib.suppress(Exception):
                file.discard()
            with contextlib.suppress(Exception):
                file.closed = True
            raise
        with place._told():
            file.close()
        self._sizes[path] = told.written

    def finish(self, manifest: bytes) -> None:
        self._check()
        with self.create(MANIFEST) as file:
            file.write(manifest)

    def _check(self) -> None:
        """Raise BackupError if a file is gone: a backup of another database may have removed it."""
        place = self._place
        for path, size in self._sizes.items():
            try:
                with place._told():
                    place._files.invalidate_cache()
                    stored = place._files.size(place._at(self._name, path))
            except FileNotFoundError:
                stored = None
            if stored != size:
                raise BackupError(
                    self._name,
                    f"{path} was removed while the backup was made: give each database a place "
                    "of its own",
                )

    def abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._place._files.rm(self._place._at(self._name), recursive=True)

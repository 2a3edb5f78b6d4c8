"""Archive files: rows in a directory, as BSON like mongodump's, gzipped, or as Parquet.

A file grows by one gzip member for each batch. The member is on the disk, and was read back, before
the transaction that deletes its rows is committed; the manifest, which that transaction writes,
says up to which byte the file counts. What a crash leaves behind that byte was not deleted and is
cut off by the next run. Parquet has its index at its end and can't grow so: it is made of a whole
BSON file, read back, and only then is the BSON file removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from credit_mongo.config import CollectionNames
from credit_mongo.errors import InvalidRequestError, StorageError
from credit_mongo.maintenance.archive_borders import Place
from credit_mongo.maintenance.archive_parquet import check_pyarrow, to_parquet
from credit_mongo.maintenance.archive_places import ArchiveCopyError
from credit_mongo.maintenance.archive_runs import Lane
from credit_mongo.rows import Raw

__all__ = ["FILE_FORMATS", "FileFormat", "Files", "check_directory"]

FileFormat: TypeAlias = Literal["bson", "parquet"]
FILE_FORMATS: Final[tuple[FileFormat, ...]] = ("bson", "parquet")

_ROWS_PER_FILE: Final = 1_000_000
_LEVEL: Final = 3
_BLOCK: Final = 1 << 20
_BSON: Final = ".bson.gz"
_PARQUET: Final = ".parquet"
_UNFINISHED: Final = ".part"


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the manifest has it."""

    name: str
    kind: str
    count: int = 0
    bytes: int = 0
    """How much of the file counts, in bytes."""
    sha256: str = ""
    """Of the documents, uncompressed and in their order."""
    complete: bool = False


def check_directory(directory: object) -> Path:
    """The directory as a whole path. Raises InvalidRequestError if it can't be one."""
    if not isinstance(directory, str | os.PathLike):
        kind = type(directory).__name__
        raise InvalidRequestError("directory", f"must be a str or a path, not {kind}")
    try:
        path = Path(directory).expanduser().resolve()
        is_other = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, ValueError):
        raise InvalidRequestError("directory", "is no path") from None
    if is_other:
        raise InvalidRequestError("directory", "is there and is no directory")
    return path


class Files:
    """Files in a directory. Nothing else may be there than what this archive has put there."""

    kind: Place = "files"
    lanes = 1

    def __init__(
        self,
        database: AsyncDatabase[Raw],
        names: CollectionNames,
        directory: Path,
        file_format: FileFormat,
        *,
        rows_per_file: int = _ROWS_PER_FILE,
    ) -> None:
        self._manifests = database[names.archive_manifests]
        self._collections = {"transactions": names.transactions, "auditLogs": names.audit_logs}
        self._directory = directory
        self._format: FileFormat = file_format
        self._rows_per_file = rows_per_file
        self._done: list[_File] = []
        self._open: _Growing | None = None
        self._lock = asyncio.Lock()

    def describe(self) -> Raw:
        return {"kind": "files", "directory": str(self._directory), "format": self._format}

    async def check(self) -> None:
        """Raises InvalidRequestError if the directory has what is not this archive's; OSError."""
        if self._format == "parquet":
            check_pyarrow()
        if not self._directory.exists():
            parent = self._directory.absolute().parent
            # Before anything is written anywhere.
            if not parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
            return
        own = {str(manifest["_id"]) async for manifest in self._manifests.find(self._here())}
        for name in os.listdir(self._directory):  # noqa: PTH208 - names are all that is needed
            parts = name.split(".")
            if len(parts) < 3 or parts[-3 if name.endswith(_PARQUET) else -4 :][0] not in own:  # noqa: PLR2004
                raise InvalidRequestError(
                    "directory", f"is not empty: {name!r} is none of this archive's files"
                )

    def _here(self) -> Raw:
        return {"destination.kind": "files", "destination.directory": str(self._directory)}

    async def open(self) -> None:
        await self.check()
        await asyncio.to_thread(self._make)
        interrupted = self._manifests.find({"state": "interrupted", **self._here()})
        async for manifest in interrupted:
            await self._recover(manifest)

    def _make(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # What is to be written can be: better known before anything is moved.
        probe = self._directory / f"{ObjectId()}.probe.bson.gz"
        probe.touch(mode=0o600)
        probe.unlink()

    async def _recover(self, manifest: Raw) -> None:
        """Cut off what a crash has left behind what counts, and complete the files."""
        files = [_File(**entry) for entry in manifest.get("files", ())]
        known = {file.name for file in files}
        mark = f".{manifest['_id']}."
        for name in os.listdir(self._directory):  # noqa: PTH208
            is_made = name.endswith(_PARQUET) and name.replace(_PARQUET, _BSON) in known
            if mark in name and name not in known and not is_made:
                (self._directory / name).unlink()
        destination = manifest.get("destination", {})
        for number, file in enumerate(files):
            if not file.complete:
                files[number] = await asyncio.to_thread(
                    self._complete, file, destination.get("format", "bson")
                )
                changed = {"files": [asdict(each) for each in files]}
                await self._manifests.update_one({"_id": manifest["_id"]}, {"$set": changed})
        state = {"$set": {"state": "recovered"}}
        await self._manifests.update_one({"_id": manifest["_id"]}, state)

    def _complete(self, file: _File, file_format: str) -> _File:
        source = self._directory / file.name
        target = source.with_name(file.name.replace(_BSON, _PARQUET))
        if file_format == "parquet" and not source.exists() and target.exists():
            # Made, read back and named; only the manifest did not know yet.
            return replace(file, name=target.name, bytes=target.stat().st_size, complete=True)
        if not source.exists() or source.stat().st_size < file.bytes:
            raise StorageError(
                f"{source} is shorter than what was archived there: bring it back first"
            )
        with source.open("r+b") as opened:
            opened.truncate(file.bytes)
            os.fsync(opened.fileno())
        if _digest(source) != file.sha256:
            raise ArchiveCopyError(str(source))
        if file_format != "parquet":
            return replace(file, complete=True)
        unfinished = target.with_name(target.name + _UNFINISHED)
        try:
            digest = to_parquet(source, unfinished, file.kind)
            if digest != file.sha256:
                raise ArchiveCopyError(str(target))
            with unfinished.open("r+b") as opened:
                os.fsync(opened.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_directory(self._directory)
        source.unlink()
        return replace(file, name=target.name, bytes=target.stat().st_size, complete=True)

    async def copy(
        self,
        lane: Lane,
        kind: str,
        rows: Sequence[bytes],
        ids: Sequence[Any],  # noqa: ARG002 - a file has them in its rows
        session: AsyncClientSession,
    ) -> list[Raw]:
        data = b"".join(rows)
        async with self._lock:
            grown = await asyncio.to_thread(self._append, lane, kind, data, len(rows))
        if not session.in_transaction:
            # Given up meanwhile; the next try writes over it.
            raise asyncio.CancelledError
        return [asdict(file) for file in (*self._done, grown)]

    def _append(self, lane: Lane, kind: str, data: bytes, count: int) -> _File:
        if self._open is None:
            number = len(self._done) + 1
            name = f"{self._collections[kind]}.{lane.manifest_id}.{number}{_BSON}"
            self._open = _Growing(self._directory, _File(name, kind))
        return self._open.append(data, count)

    def _close_file(self) -> None:
        if self._open is None:
            return
        growing, self._open = self._open, None
        growing.close()
        if growing.file.count:
            self._done.append(self._complete(growing.file, self._format))
        else:
            growing.remove()

    async def confirm(self) -> None:
        assert self._open is not None  # noqa: S101 - it was copied there
        self._open.confirm()
        if self._open.file.count >= self._rows_per_file:
            await asyncio.to_thread(self._close_file)

    async def finish(self, lane: Lane) -> list[Raw]:  # noqa: ARG002 - there is one
        await asyncio.to_thread(self._close_file)
        return [asdict(file) for file in self._done]

    async def close(self) -> None:
        if self._open is not None:
            growing, self._open = self._open, None
            with contextlib.suppress(OSError):
                await asyncio.to_thread(growing.leave)


class _Growing:
    """A file that batches are added to."""

    def __init__(self, directory: Path, file: _File) -> None:
        self._path = directory / file.name
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._opened: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        _sync_directory(directory)
        self._sha256 = hashlib.sha256()
        self.file = file
        self._next: tuple[_File, Any] = (file, self._sha256)

    def append(self, data: bytes, count: int) -> _File:
        """Add a batch in place of one that was not confirmed, and read it back from the file."""
        opened, file = self._opened, self.file
        member = gzip.compress(data, _LEVEL, mtime=0)
        opened.truncate(file.bytes)
        opened.seek(file.bytes)
        left = memoryview(member)
        while left:
            left = left[opened.write(left) :]
        os.fsync(opened.fileno())
        opened.seek(file.bytes)
        if gzip.decompress(_read(opened, len(member))) != data:
            raise ArchiveCopyError(str(self._path))
        digest = self._sha256.copy()
        digest.update(data)
        grown = replace(
            file,
            count=file.count + count,
            bytes=file.bytes + len(member),
            sha256=digest.hexdigest(),
        )
        self._next = (grown, digest)
        return grown

    def confirm(self) -> None:
        self.file, self._sha256 = self._next

    def close(self) -> None:
        self._opened.truncate(self.file.bytes)
        self._opened.close()

    def leave(self) -> None:
        """As it is: the end of the last batch may not be known. The next run sees to that."""
        self._opened.close()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _read(opened: BinaryIO, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (part := opened.read(size - len(parts))):
        parts += part
    return bytes(parts)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return ""
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    """So that a name survives a crash of the machine, where directories can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

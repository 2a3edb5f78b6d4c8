"""Archive files: rows in a directory, as gzipped BSON like mongodump's, or as Parquet.

A file grows by one gzip member for each batch. The archive writes the member to disk and reads it
back before it commits the transaction that deletes the rows. The same transaction writes to the
manifest how many bytes of the file count. A crash may leave bytes after these. Their rows were not
deleted, and the next run cuts the bytes off. Parquet can't grow like this, because its index is at
the end. So the archive converts each finished BSON file, reads the Parquet file back by its final
name, and only then removes the BSON file.

A run holds the directory open, and only this process's user can write to it. Before rows are
deleted, the archive checks that the path in the manifest leads to the file that was read back.
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
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.engine import tasks
from credit_mongo.errors import ArchiveCopyError, InvalidRequestError, StorageError
from credit_mongo.maintenance.archive.borders import Place
from credit_mongo.maintenance.archive.manifests import (
    BSON,
    PARQUET,
    FileEntry,
    files_of,
    manifest_of,
)
from credit_mongo.maintenance.archive.parquet import check_pyarrow, digest_of, to_parquet
from credit_mongo.maintenance.archive.runs import Lane
from credit_mongo.private_files import Directory, why_replaceable, why_unsafe
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["FILE_FORMATS", "FileFormat", "Files", "check_directory"]

FileFormat: TypeAlias = Literal["bson", "parquet"]
FILE_FORMATS: Final[tuple[FileFormat, ...]] = ("bson", "parquet")

_ROWS_PER_FILE: Final = 1_000_000
_LEVEL: Final = 3
_BLOCK: Final = 1 << 20
_UNFINISHED: Final = ".part"
_NO_GZIP: Final = (EOFError, zlib.error, gzip.BadGzipFile)


def check_directory(directory: object) -> Path:
    """Return the directory as an absolute path. Raises InvalidRequestError if it can't be used."""
    if not isinstance(directory, str | os.PathLike):
        kind = type(directory).__name__
        raise InvalidRequestError("directory", f"must be a str or a path, not {kind}")
    try:
        path = Path(directory).expanduser().resolve()
        is_other = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, ValueError):
        raise InvalidRequestError("directory", "is not a valid path") from None
    if is_other:
        raise InvalidRequestError("directory", "exists but is not a directory")
    return path


class Files:
    """Files in a directory. It may hold nothing but files of this archive."""

    kind: Place = "files"
    lanes = 1

    def __init__(
        self,
        database: LedgerDatabase,
        directory: Path,
        file_format: FileFormat,
        *,
        rows_per_file: int = _ROWS_PER_FILE,
    ) -> None:
        names = database.names
        self._manifests = database[names.archive_manifests]
        self._collections = {"transactions": names.transactions, "auditLogs": names.audit_logs}
        self._path = directory
        self._directory: Directory | None = None
        self._format: FileFormat = file_format
        self._rows_per_file = rows_per_file
        self._done: list[FileEntry] = []
        self._open: _Growing | None = None
        self._lock = asyncio.Lock()

    def describe(self) -> Raw:
        return {"kind": "files", "directory": str(self._path), "format": self._format}

    async def check(self) -> None:
        """Raises InvalidRequestError if the directory holds other files. Raises OSError."""
        if self._format == "parquet":
            check_pyarrow()
        if not self._path.exists():
            parent = self._path.parent
            # Fail before anything is written.
            if not parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
            return
        with Directory(self._path) as directory:
            _check_that_it_is_ours(directory)
            names = directory.names()
        own = {str(manifest["_id"]) async for manifest in self._manifests.find(self._here())}
        for name in names:
            if manifest_of(name) not in own:
                raise InvalidRequestError(
                    "directory", f"is not empty: {name!r} is not a file of this archive"
                )

    def _here(self) -> Raw:
        return {"destination.kind": "files", "destination.directory": str(self._path)}

    async def open(self) -> None:
        await self.check()
        self._directory = await tasks.in_thread(self._make)
        interrupted = self._manifests.find({"state": "interrupted", **self._here()})
        async for manifest in interrupted:
            await self._recover(manifest)

    def _make(self) -> Directory:
        self._path.mkdir(mode=0o700, exist_ok=True)
        directory = Directory(self._path)
        try:
            # Another user may have created it first.
            _check_that_it_is_ours(directory)
            # Test that files can be created here, before any row is moved.
            probe = f"{ObjectId()}.probe{BSON}"
            directory.create(probe).close()
            directory.remove(probe)
        except BaseException:
            directory.close()
            raise
        return directory

    async def _recover(self, manifest: Raw) -> None:
        """Cut off the bytes that a crash left after the counted ones, and complete the files."""
        files = files_of(manifest)
        known = {file.name for file in files}
        mark = f".{manifest['_id']}."
        for name in self._opened.names():
            is_made = name.endswith(PARQUET) and name.removesuffix(PARQUET) + BSON in known
            if mark in name and name not in known and not is_made:
                self._opened.remove(name)
        destination = manifest.get("destination", {})
        for number, file in enumerate(files):
            if not file.complete:
                files[number] = await tasks.in_thread(
                    self._complete, file, destination.get("format", "bson")
                )
                changed = {"files": [each.model_dump() for each in files]}
                await self._manifests.update_one({"_id": manifest["_id"]}, {"$set": changed})
        state = {"$set": {"state": "recovered"}}
        await self._manifests.update_one({"_id": manifest["_id"]}, state)

    @property
    def _opened(self) -> Directory:
        assert self._directory is not None  # noqa: S101 - a run opens it first
        return self._directory

    def _complete(self, file: FileEntry, file_format: str) -> FileEntry:
        directory = self._opened
        target = file.name.removesuffix(BSON) + PARQUET
        if file_format == "parquet" and not directory.has(file.name) and directory.has(target):
            # The Parquet file was finished, but the manifest was not updated.
            if (completed := self._completed(file, target)) is None:
                raise self._harmed(target, "differs from")
            return completed
        if not directory.has(file.name):
            raise self._harmed(file.name, "is shorter than")
        with directory.open(file.name, writable=True) as source:
            if os.fstat(source.fileno()).st_size < file.bytes:
                raise self._harmed(file.name, "is shorter than")
            source.truncate(file.bytes)
            os.fsync(source.fileno())
            if _digest(source) != file.sha256 or not directory.holds(file.name, source):
                raise self._harmed(file.name, "differs from")
            if file_format != "parquet":
                return file.with_facts(complete=True)
            unfinished = target + _UNFINISHED
            try:
                with directory.create(unfinished) as written:
                    source.seek(0)
                    to_parquet(source, written, file.kind)
                    written.flush()
                    os.fsync(written.fileno())
                directory.rename(unfinished, target)
            finally:
                directory.remove(unfinished, missing_ok=True)
        directory.sync()
        if (completed := self._completed(file, target)) is None:
            raise ArchiveCopyError(str(self._path / target))
        directory.remove(file.name)
        return completed

    def _completed(self, file: FileEntry, target: str) -> FileEntry | None:
        """Read the Parquet file back by its final name. Return None if it differs."""
        with self._opened.open(target) as written:
            size = os.fstat(written.fileno()).st_size
            if digest_of(written) != file.sha256 or not self._opened.holds(target, written):
                return None
        return file.with_facts(name=target, bytes=size, complete=True)

    def _harmed(self, name: str, how: str) -> StorageError:
        return StorageError(
            f"{self._path / name} {how} what was archived there: bring it back first"
        )

    async def copy(
        self,
        lane: Lane,
        kind: str,
        rows: Sequence[bytes],
        ids: Sequence[Any],  # noqa: ARG002 - the rows hold their ids
        session: AsyncClientSession,
    ) -> list[Raw]:
        data = b"".join(rows)
        async with self._lock:
            grown = await tasks.in_thread(self._append, lane, kind, data, len(rows))
        if not session.in_transaction:
            # This attempt was abandoned. The next one overwrites these bytes.
            raise asyncio.CancelledError
        return [file.model_dump() for file in (*self._done, grown)]

    def _append(self, lane: Lane, kind: str, data: bytes, count: int) -> FileEntry:
        if self._open is None:
            number = len(self._done) + 1
            name = f"{self._collections[kind]}.{lane.manifest_id}.{number}{BSON}"
            self._open = _Growing(
                self._opened, FileEntry.model_validate({"name": name, "kind": kind})
            )
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
        assert self._open is not None  # noqa: S101 - copy() opened it
        self._open.confirm()
        if self._open.file.count >= self._rows_per_file:
            await tasks.in_thread(self._close_file)

    async def finish(self, lane: Lane) -> list[Raw]:  # noqa: ARG002 - there is one lane
        await tasks.in_thread(self._close_file)
        return [file.model_dump() for file in self._done]

    async def close(self) -> None:
        # An abandoned batch may still be writing.
        async with self._lock:
            if self._open is not None:
                growing, self._open = self._open, None
                with contextlib.suppress(OSError):
                    await tasks.in_thread(growing.leave)
            if self._directory is not None:
                self._directory.close()


class _Growing:
    """A file that grows batch by batch."""

    def __init__(self, directory: Directory, file: FileEntry) -> None:
        self._directory = directory
        self._opened: BinaryIO = directory.create(file.name, buffering=0)
        directory.sync()
        self._sha256 = hashlib.sha256()
        self.file = file
        self._next: tuple[FileEntry, Any] = (file, self._sha256)

    def append(self, data: bytes, count: int) -> FileEntry:
        """Add a batch and read it back. Overwrite the previous batch if it was not confirmed."""
        opened, file = self._opened, self.file
        member = gzip.compress(data, _LEVEL, mtime=0)
        opened.truncate(file.bytes)
        opened.seek(file.bytes)
        left = memoryview(member)
        while left:
            left = left[opened.write(left) :]
        os.fsync(opened.fileno())
        opened.seek(file.bytes)
        is_same = _decompressed(_read(opened, len(member))) == data
        if not (is_same and self._directory.holds(file.name, opened)):
            raise ArchiveCopyError(str(self._directory.path / file.name))
        digest = self._sha256.copy()
        digest.update(data)
        grown = file.with_facts(
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
        """Close without truncating: the last batch may be committed. The next run finds out."""
        self._opened.close()

    def remove(self) -> None:
        self._directory.remove(self.file.name, missing_ok=True)


def _read(opened: BinaryIO, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (part := opened.read(size - len(parts))):
        parts += part
    return bytes(parts)


def _decompressed(member: bytes) -> bytes | None:
    """Return the content of a gzip member, or None if it is damaged."""
    try:
        return gzip.decompress(member)
    except _NO_GZIP:
        return None


def _digest(opened: BinaryIO) -> str:
    """Return the SHA-256 of a BSON file's documents in hex, or "" if it is damaged."""
    digest = hashlib.sha256()
    opened.seek(0)
    try:
        with gzip.open(opened) as documents:
            while block := documents.read(_BLOCK):
                digest.update(block)
    except _NO_GZIP:
        return ""
    return digest.hexdigest()


def _check_that_it_is_ours(directory: Directory) -> None:
    for reason in (why_unsafe(directory.status()), why_replaceable(directory.path.parent)):
        if reason is not None:
            raise InvalidRequestError("directory", reason)

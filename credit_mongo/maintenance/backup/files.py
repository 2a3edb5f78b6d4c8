"""One file of a backup: compressed, encrypted if there is a key, and hashed as it is stored."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.encryption import Decryption, Encryption, Key

__all__ = ["FileFacts", "FileWriter", "check_file", "documents_of", "read_file"]

_LEVEL: Final = 1
_GZIP: Final = 16 + zlib.MAX_WBITS
_BLOCK: Final = 1 << 18
_MOST_INFLATED: Final = 1 << 20
_LENGTH: Final = struct.Struct("<i")
_LARGEST_DOCUMENT: Final = 17 * 1024 * 1024
_SMALLEST_DOCUMENT: Final = 5


class FileFacts(NamedTuple):
    """What a manifest says of a file, as it is stored."""

    path: str
    bytes: int
    sha256: str
    documents: int


class FileWriter:
    """Writes one file. Not to be used by two threads at once."""

    def __init__(self, path: str, sink: BinaryIO, encryption: Encryption | None) -> None:
        self._path = path
        self._sink = sink
        self._compression = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._encryption = encryption
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._documents = 0

    def add(self, data: bytes, documents: int) -> None:
        """Write some whole documents. Raises OSError."""
        self._documents += documents
        self._write(self._compression.compress(data))

    def end(self) -> FileFacts:
        """Write the rest. The sink stays open. Raises OSError."""
        self._write(self._compression.flush())
        if self._encryption is not None:
            self._store(self._encryption.end())
        return FileFacts(self._path, self._bytes, self._sha256.hexdigest(), self._documents)

    def _write(self, data: bytes) -> None:
        self._store(data if self._encryption is None else self._encryption.add(data))

    def _store(self, data: bytes) -> None:
        if data:
            self._sha256.update(data)
            self._bytes += len(data)
            self._sink.write(data)


def check_file(backup: str, facts: FileFacts, source: BinaryIO) -> None:
    """Read a file as it is stored. Raises BackupError if a byte of it was changed, and OSError."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        size += len(block)
    if size != facts.bytes:
        what = "is shorter" if size < facts.bytes else "is longer"
        raise BackupError(backup, f"{facts.path} {what} than its manifest says: {_REMEDY}")
    if digest.hexdigest() != facts.sha256:
        raise BackupError(backup, f"{facts.path} was changed since it was written: {_REMEDY}")


_REMEDY: Final = "use another copy of this backup, or another backup"


def read_file(backup: str, path: str, source: BinaryIO, key: Key | None) -> Iterator[bytes]:
    """Yield a file's plain content in pieces. Raises BackupError if it is damaged, and OSError."""
    inflation = zlib.decompressobj(_GZIP)
    decryption = None if key is None else Decryption(key, f"{backup}/{path}")
    try:
        while block := source.read(_BLOCK):
            yield from _inflated(inflation, block if decryption is None else decryption.add(block))
        if decryption is not None:
            yield from _inflated(inflation, decryption.end())
    except ValueError as error:
        raise BackupError(backup, f"{path} {error}") from None
    except zlib.error:
        raise BackupError(backup, f"{path} is damaged: {_REMEDY}") from None
    if not inflation.eof or inflation.unused_data:
        raise BackupError(backup, f"{path} is damaged: {_REMEDY}")


def _inflated(inflation: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    while data and not inflation.eof:
        yield inflation.decompress(data, _MOST_INFLATED)
        data = inflation.unconsumed_tail


def documents_of(
    backup: str, path: str, pieces: Iterator[bytes], most_bytes: int, most_documents: int
) -> Iterator[list[bytes]]:
    """Yield a file's BSON documents in batches. Raises BackupError if it holds anything else."""
    batch: list[bytes] = []
    size, held = 0, b""
    for piece in pieces:
        data = held + piece if held else piece
        position, end = 0, len(data)
        while end - position >= _SMALLEST_DOCUMENT:
            (length,) = _LENGTH.unpack_from(data, position)
            if not _SMALLEST_DOCUMENT <= length <= _LARGEST_DOCUMENT:
                raise BackupError(backup, f"{path} is damaged: {_REMEDY}")
            if length > end - position:
                break
            if batch and (size + length > most_bytes or len(batch) == most_documents):
                yield batch
                batch, size = [], 0
            batch.append(data[position : position + length])
            size += length
            position += length
        held = data[position:]
    if held:
        raise BackupError(backup, f"{path} ends within a document: {_REMEDY}")
    if batch:
        yield batch

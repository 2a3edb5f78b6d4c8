"""Parquet files of the archive: readable columns, and each original document in BSON."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO, Final

from bson import decode, json_util

from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.columns import AUDIT_COLUMNS, COLUMNS, MOMENTS, NUMBERS, PARTS
from credit_mongo.storage.codecs import NAIVE

__all__ = ["check_pyarrow", "digest_of", "to_parquet"]

_ROW_GROUP: Final = 10_000
_MOST_BYTES: Final = 8 << 20
_DOCUMENT: Final = "document"
_EXTENDED: Final = json_util.RELAXED_JSON_OPTIONS
_JSON: Final = PARTS | {"details"}
_LENGTH_BYTES: Final = 4


def check_pyarrow() -> None:
    """Raises InvalidRequestError if pyarrow is missing."""
    try:
        import pyarrow as pa  # noqa: F401, PLC0415 - it is an extra
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            "format", "parquet needs pyarrow: pip install 'credit-mongo[parquet]'"
        ) from error


def to_parquet(source: BinaryIO, target: BinaryIO, kind: str) -> None:
    """Write the documents of a gzipped BSON file as Parquet."""
    import pyarrow as pa  # noqa: PLC0415 - it is an extra
    from pyarrow import parquet  # noqa: PLC0415

    columns = COLUMNS if kind == "transactions" else AUDIT_COLUMNS
    types = {name: pa.int64() for name in NUMBERS}
    types |= {name: pa.timestamp("ms", tz="UTC") for name in MOMENTS}
    fields = [(name, types.get(name, pa.string())) for name in columns]
    schema = pa.schema([*fields, (_DOCUMENT, pa.binary())])
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for documents in _documents(source):
            rows = [decode(document, NAIVE) for document in documents]
            values: list[Sequence[Any]] = [
                [_cell(name, row.get(field)) for row in rows] for name, field in columns.items()
            ]
            values.append(documents)
            arrays = [
                pa.array(column, schema.field(number).type) for number, column in enumerate(values)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def digest_of(opened: BinaryIO) -> str:
    """Return the SHA-256 of a Parquet file's documents in hex, or "" if it can't be read."""
    import pyarrow as pa  # noqa: PLC0415 - it is an extra
    from pyarrow import parquet  # noqa: PLC0415

    digest = hashlib.sha256()
    try:
        with parquet.ParquetFile(opened) as written:
            for batch in written.iter_batches(_ROW_GROUP, columns=[_DOCUMENT]):
                for document in batch.column(0):
                    digest.update(document.as_py())
    except pa.ArrowException:
        return ""
    return digest.hexdigest()


def _documents(source: BinaryIO) -> Iterator[list[bytes]]:
    documents: list[bytes] = []
    size = 0
    with gzip.open(source) as opened:
        while head := opened.read(_LENGTH_BYTES):
            length = int.from_bytes(head, "little")
            documents.append(head + opened.read(length - _LENGTH_BYTES))
            size += length
            if len(documents) == _ROW_GROUP or size >= _MOST_BYTES:
                yield documents
                documents, size = [], 0
    if documents:
        yield documents


def _cell(name: str, value: Any) -> Any:
    if name in _JSON:
        return None if value is None else json_util.dumps(value, json_options=_EXTENDED)
    if name in MOMENTS:
        return value if isinstance(value, datetime) else None
    if name in NUMBERS:
        return value if isinstance(value, int) else None
    return value if value is None or isinstance(value, str) else str(value)

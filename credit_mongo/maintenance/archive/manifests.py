"""The files that a manifest names. Only entries as the archive writes them are accepted."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from credit_mongo.errors import ArchiveManifestError
from credit_mongo.storage.rows import Raw

__all__ = ["BSON", "PARQUET", "FileEntry", "files_of", "manifest_of"]

BSON: Final = ".bson.gz"
PARQUET: Final = ".parquet"


class FileEntry(BaseModel):
    """A file, as described in the manifest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\.[0-9a-f]{24}\.[1-9][0-9]*\.(bson\.gz|parquet)$"
    )
    kind: Literal["transactions", "auditLogs"]
    count: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    """How many bytes of the file count. Bytes after them belong to an unfinished batch."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """The hash of the uncompressed documents, in their order."""
    complete: bool = False

    def with_facts(self, **facts: Any) -> FileEntry:
        """Return a copy with other facts."""
        return self.model_copy(update=facts)


_ENTRIES: Final = TypeAdapter(list[FileEntry])


def files_of(manifest: Raw) -> list[FileEntry]:
    """Read the files of a manifest. Raises ArchiveManifestError for entries no run writes.

    The archive opens, truncates and removes files by these names. So each must belong to this
    manifest.
    """
    manifest_id = manifest["_id"]
    try:
        files = _ENTRIES.validate_python(manifest.get("files", []))
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, ("files", *wrong["loc"])))
        raise ArchiveManifestError(manifest_id, field, wrong["input"]) from None
    for number, file in enumerate(files):
        is_own = manifest_of(file.name) == str(manifest_id)
        if not is_own or not (file.complete or file.name.endswith(BSON)):
            raise ArchiveManifestError(manifest_id, f"files.{number}.name", file.name)
    return files


def manifest_of(name: str) -> str:
    """Return the manifest's id in a file name such as ``collection.id.number.bson.gz``."""
    parts = name.split(".")
    return (["", *parts])[-3 if name.endswith(PARQUET) else -4 :][0]

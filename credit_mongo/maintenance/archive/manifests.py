"""The files that a manifest names: what an archive writes there, and nothing else, is read."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from credit_mongo.errors import ArchiveManifestError
from credit_mongo.storage.rows import Raw

__all__ = ["BSON", "PARQUET", "FileEntry", "files_of", "manifest_of"]

BSON: Final = ".bson.gz"
PARQUET: Final = ".parquet"


class FileEntry(BaseModel):
    """A file as the manifest has it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\.[0-9a-f]{24}\.[1-9][0-9]*\.(bson\.gz|parquet)$"
    )
    kind: Literal["transactions", "auditLogs"]
    count: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    """How much of the file counts, in bytes."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Of the documents, uncompressed and in their order."""
    complete: bool = False

    def with_facts(self, **facts: Any) -> FileEntry:
        """The same file, of which something else is known."""
        return self.model_copy(update=facts)


_ENTRIES: Final = TypeAdapter(list[FileEntry])


def files_of(manifest: Raw) -> list[FileEntry]:
    """The files of a manifest. Raises ArchiveManifestError for what no archive has written there.

    A name leads to a file that is opened, cut and removed: it has to be one of this manifest's own.
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
    """The manifest's id in the name of a file, ``collection.id.number.bson.gz`` or the like."""
    parts = name.split(".")
    return (["", *parts])[-3 if name.endswith(PARQUET) else -4 :][0]

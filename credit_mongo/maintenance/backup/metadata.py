"""A collection's options and indexes, as mongodump writes them beside its documents."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from bson import json_util
from bson.binary import Binary

from credit_mongo.errors import BackupError
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["Metadata", "bson_path", "describe", "metadata_path"]

_CANONICAL: Final = json_util.CANONICAL_JSON_OPTIONS
_LONGEST_NAME: Final = 238


def _file_name(collection: str) -> str:
    escaped = quote(collection, safe="")
    if len(escaped) <= _LONGEST_NAME:
        return escaped
    # As mongodump cuts names that are too long for a file. The metadata have the whole name.
    digest = hashlib.sha1(collection.encode(), usedforsecurity=False).digest()
    return f"{escaped[:208]}%24{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def bson_path(database: str, collection: str) -> str:
    """Where a backup has a collection's documents."""
    return f"{database}/{_file_name(collection)}.bson.gz"


def metadata_path(database: str, collection: str) -> str:
    """Where a backup has a collection's options and indexes."""
    return f"{database}/{_file_name(collection)}.metadata.json.gz"


@dataclass(frozen=True, slots=True)
class Metadata:
    """A collection's options and indexes."""

    collection: str
    options: Raw
    indexes: tuple[Raw, ...]
    uuid: str

    def to_bytes(self) -> bytes:
        """Return them as extended JSON (canonical), as mongodump does."""
        content = {
            "options": self.options,
            "indexes": list(self.indexes),
            "uuid": self.uuid,
            "collectionName": self.collection,
            "type": "collection",
        }
        return json_util.dumps(content, json_options=_CANONICAL).encode()

    @classmethod
    def read(cls, backup: str, collection: str, stored: bytes) -> Metadata:
        """Read them. Raises BackupError."""
        try:
            content: Mapping[str, Any] = json_util.loads(stored.decode(), json_options=_CANONICAL)
            indexes = tuple(dict(index) for index in content["indexes"])
            return cls(collection, dict(content["options"]), indexes, str(content["uuid"]))
        except (ValueError, LookupError, TypeError):
            raise BackupError(backup, f"the metadata of {collection} can't be read") from None


async def describe(database: LedgerDatabase, collection: str) -> Metadata | None:
    """Return a collection's metadata, or None if there is no such collection.

    Raises BackupError if the name is that of a view, and PyMongoError.
    """
    found = await database.describe(collection)
    if found is None:
        return None
    if found["type"] != "collection":
        raise BackupError("", f"{collection} is a {found['type']}, which can't be backed up")
    uuid = found["info"].get("uuid")
    indexes = await database[collection].list_indexes()
    return Metadata(
        collection,
        dict(found["options"]),
        tuple(dict(index) for index in indexes),
        bytes(uuid).hex() if isinstance(uuid, Binary | bytes) else getattr(uuid, "hex", ""),
    )

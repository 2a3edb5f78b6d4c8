"""What a backup says of itself: a JSON file whose every byte is proven by its last member.

The file is written in one form only (keys sorted, no spaces), so a changed byte always shows. With
a key, the manifest is sealed, too: nobody without the key can write one that passes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Final

from bson import Timestamp

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.errors import BackupError, CreditError
from credit_mongo.maintenance.backup.encryption import Key
from credit_mongo.maintenance.backup.files import FileFacts
from credit_mongo.storage.forms import FORM

__all__ = ["Balances", "Manifest", "Segment", "Time", "moment_of"]

FORMAT: Final = 1
"""The form of backups that this version writes, and the highest that it reads."""

Time = tuple[int, int]
"""A cluster time: seconds since 1970, and the number of the operation within the second."""


def moment_of(time: Time) -> datetime:
    """Return a cluster time's second."""
    return datetime.fromtimestamp(time[0], timezone.utc)


def to_timestamp(time: Time) -> Timestamp:
    """Return a cluster time as the server knows it."""
    return Timestamp(*time)


@dataclass(frozen=True, slots=True)
class Balances:
    """The accounts at the backup's cluster time: how many, and the sums of two of their fields.

    The sums are exact, however large.
    """

    users: int
    credits: int
    seq: int

    def to_dict(self) -> dict[str, Any]:
        """Return them for JSON: sums as text, since other readers of JSON round large numbers."""
        return {"users": self.users, "credits": str(self.credits), "seq": str(self.seq)}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Balances:
        """Read them from JSON."""
        return cls(facts["users"], int(facts["credits"]), int(facts["seq"]))


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a collection that was read at one cluster time: the ids above ``after``.

    ``after`` is an id's type and bytes in hex; None: from the beginning.
    """

    after: str | None
    time: Time


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup's facts."""

    name: str
    kind: str
    """"full" or "incremental"."""
    database: str
    history: str
    """The database's own id, by which its backups are known. A restored one gets another."""
    number: int
    """How many backups of the database were begun up to this one."""
    predecessor: tuple[str, str] | None
    """Of an incremental backup: the name and the SHA-256 of the one before."""
    start: Time | None
    """Of an incremental backup: where the one before it ends."""
    end: Time
    """The cluster time that the backup shows."""
    started_at: str
    ended_at: str
    stored_form: dict[str, Any]
    collections: dict[str, str]
    users: dict[str, Any] | None
    counts: dict[str, int]
    balances: Balances | None
    """None: the server no longer knew them."""
    files: tuple[FileFacts, ...]
    segments: dict[str, tuple[Segment, ...]] = field(default_factory=dict)
    """Of a full backup that took several snapshots: what was read at which time."""
    is_encrypted: bool = False
    sha256: str = ""

    @property
    def is_full(self) -> bool:
        """Whether it needs no other backup."""
        return self.kind == "full"

    @property
    def moment(self) -> datetime:
        """The second that the backup shows."""
        return moment_of(self.end)

    def file(self, path: str) -> FileFacts | None:
        """Return the facts of a file, or None if the backup has none of this name."""
        return next((file for file in self.files if file.path == path), None)

    @property
    def names(self) -> CollectionNames:
        """The names of the ledger's collections."""
        return CollectionNames(**self.collections)

    @property
    def mapping(self) -> UserMapping | None:
        """The mapping of existing users."""
        return None if self.users is None else UserMapping(**self.users)

    def to_bytes(self, key: Key | None) -> bytes:
        """Return the manifest as it is stored."""
        content = {
            "format": FORMAT,
            **{
                name: getattr(self, name)
                for name in (
                    *("name", "kind", "database", "history", "number", "predecessor", "start"),
                    *("end", "counts", "collections", "users"),
                )
            },
            "startedAt": self.started_at,
            "endedAt": self.ended_at,
            "storedForm": self.stored_form,
            "balances": None if self.balances is None else self.balances.to_dict(),
            "files": [file._asdict() for file in self.files],
            "segments": {
                name: [{"after": each.after, "time": each.time} for each in segments]
                for name, segments in self.segments.items()
            },
            "encrypted": key is not None,
        }
        if key is not None:
            content["seal"] = key.seal_of(_canonical(content))
        return _canonical({**content, "sha256": _digest(content)})

    @classmethod
    def read(cls, name: str, stored: bytes) -> Manifest:
        """Read a manifest. Raises BackupError if it was changed, or is of a newer version."""
        try:
            content = json.loads(stored)
            form = content["format"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise BackupError(name, f"its manifest can't be read: {_REMEDY}") from None
        if isinstance(form, int) and form > FORMAT:
            raise BackupError(
                name, f"a newer version of credit_mongo wrote it, in form {form}: install that one"
            )
        try:
            told = content.pop("sha256")
            is_whole = _canonical({**content, "sha256": _digest(content)}) == stored
            manifest = replace(cls._of(name, content), sha256=told) if is_whole else None
        except BackupError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, CreditError):
            raise BackupError(name, f"its manifest can't be read: {_REMEDY}") from None
        if manifest is None:
            raise BackupError(name, f"its manifest was changed: {_REMEDY}")
        return manifest

    @classmethod
    def _of(cls, name: str, content: dict[str, Any]) -> Manifest:
        form = content["storedForm"]
        if form["lowestWriter"] > FORM:
            raise BackupError(
                name,
                "its ledger was written by a newer version of credit_mongo, which allows form "
                f"{form['lowestWriter']} or later to use it: install a newer version",
            )
        before, start = content["predecessor"], content["start"]
        manifest = cls(
            **{
                name: content[name]
                for name in (
                    *("name", "kind", "database", "history", "number", "counts", "collections"),
                    "users",
                )
            },
            predecessor=None if before is None else (before[0], before[1]),
            start=None if start is None else _time(start),
            end=_time(content["end"]),
            started_at=content["startedAt"],
            ended_at=content["endedAt"],
            stored_form=form,
            balances=None if content["balances"] is None else Balances.of(content["balances"]),
            files=tuple(FileFacts(**file) for file in content["files"]),
            segments={
                name: tuple(Segment(each["after"], _time(each["time"])) for each in segments)
                for name, segments in content["segments"].items()
            },
            is_encrypted=content["encrypted"],
        )
        _ = manifest.names, manifest.mapping  # checked when they are built
        return manifest

    @staticmethod
    def check_seal(name: str, stored: bytes, key: Key | None) -> None:
        """Raise BackupError if the key doesn't fit."""
        content = json.loads(stored)
        seal = content.pop("seal", None)
        if seal is None:
            if key is not None:
                raise BackupError(
                    name, "is not encrypted: leave out --encrypt-with to use it all the same"
                )
            return
        if key is None:
            raise BackupError(name, "is encrypted: give its key file by --encrypt-with")
        content.pop("sha256")
        if not hmac.compare_digest(seal, key.seal_of(_canonical(content))):
            raise BackupError(name, "was encrypted with another key")


_REMEDY: Final = "use another copy of this backup, or another backup"


def _time(value: Any) -> Time:
    seconds, number = value
    if not isinstance(seconds, int) or not isinstance(number, int):
        raise TypeError
    return seconds, number


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()

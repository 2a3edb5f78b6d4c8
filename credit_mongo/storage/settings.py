"""The settings that give a ledger's rows their meaning, stored beside them in the database.

A balance of 1350 is 13.50 credits or 1,350: no row says which. No row says which documents are
users, either. So ``ensure_indexes`` stores both, in one document for each ledger of the database.
A ledger that opens with other settings is refused.

A document's ``_id`` is the name of the ledger's transactions collection. A unique index on
``names`` makes the server refuse two ledgers that share a collection, whoever writes first.

A newer version of the library may need more collections, and may store rows in a form that older
versions can't read. Its ``ensure_indexes`` adds the names, and raises ``version`` and
``lowestWriter``. It never changes a setting that is already stored, and never lowers a version.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pymongo.errors import DuplicateKeyError

from credit_mongo.config import SETTINGS_COLLECTION, CollectionNames, CreditConfig
from credit_mongo.config.parts import Part
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.errors import ConfigurationError
from credit_mongo.storage.database import Collection, LedgerDatabase
from credit_mongo.storage.forms import FORM, LOWEST_WRITER
from credit_mongo.storage.rows import Raw

__all__ = [
    "FORM",
    "LOWEST_WRITER",
    "RESTORING",
    "SETTINGS_COLLECTION",
    "LedgerSettings",
    "SettingsChange",
    "ensure_settings_index",
    "keep_settings",
    "stored_settings",
]

_State: TypeAlias = Literal["created", "kept", "changed"]

RESTORING: Final = "restoring"
"""The field of the document that stands in place of a ledger's settings while it is restored."""
_MOST_TRIES: Final = 5
_UNIQUE_NAMES: Final = {"key": {"names": 1}, "name": "names_1", "unique": True, "sparse": True}


class SettingsChange(NamedTuple):
    """What was done about a ledger's settings (in a dry run: what would be done)."""

    state: _State
    reason: str = ""
    """What was added to settings that an older version had stored."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """The settings that all readers and writers of a ledger must share."""

    collections: CollectionNames
    users: UserMapping | None
    decimal_places: int | None
    """None: not known, and so not compared."""

    @classmethod
    def of(cls, config: CreditConfig) -> LedgerSettings:
        """Return the settings of a configuration."""
        return cls(config.collections, config.users, config.decimal_places)

    def check(self, rows: Iterable[Raw]) -> Raw | None:
        """Compare these settings with all that the database has. Return this ledger's row, if any.

        Raises ConfigurationError if this ledger was set up with others, or if another ledger of the
        database has one of its collections.
        """
        found = None
        for row in rows:
            if row["_id"] == self.collections.transactions:
                self._check_that_it_is(self.from_row(row))
                found = row
            else:
                self._check_that_it_is_apart_from(row)
        return found

    def missing_in(self, row: Raw) -> dict[str, Any]:
        """Return the settings that an older version didn't store, by their path in the row."""
        parts: tuple[tuple[str, Part | None], ...] = (
            ("collections", self.collections),
            ("users", self.users),
        )
        return {
            f"{name}.{field}": value
            for name, part in parts
            if part is not None
            for field, value in part.model_dump().items()
            if field not in row[name]
        }

    def _check_that_it_is(self, kept: LedgerSettings) -> None:
        for field, own, theirs in self._compared(kept):
            if own != theirs:
                query = json.dumps({"_id": kept.collections.transactions}, ensure_ascii=False)
                raise ConfigurationError(
                    field,
                    f"is {own!r}, but the ledger in this database was set up with {theirs!r}. "
                    f"Configure {theirs!r}. Only if its data was converted to {own!r}, forget the "
                    f"old setting by db.{SETTINGS_COLLECTION}.deleteOne({query}) in mongosh, and "
                    "run credit-mongo init --config",
                )

    def _compared(self, kept: LedgerSettings) -> Iterator[tuple[str, object, object]]:
        if self.decimal_places is not None and kept.decimal_places is not None:
            yield "decimal_places", self.decimal_places, kept.decimal_places
        yield from _fields("collections", self.collections, kept.collections)
        if self.users is None or kept.users is None:
            yield "users", self.users, kept.users
        else:
            yield from _fields("users", self.users, kept.users)

    def _check_that_it_is_apart_from(self, other: Raw) -> None:
        # By the row itself. A newer version may have written it in a form of its own, and that
        # other ledger's update must not stop this one.
        kept = other.get("collections")
        theirs = list(kept.items()) if isinstance(kept, Mapping) else []
        for field, name in self.collections.model_dump().items():
            kind = next((kind for kind, each in theirs if each == name), None)
            if kind is not None:
                raise ConfigurationError(
                    f"collections.{field}",
                    f"{name!r} is the collection for {kind} of another ledger in this "
                    f"database, whose transactions are in {other['_id']!r}. "
                    "Ledgers share no collection: name all of them, say by "
                    "CollectionNames.with_prefix('acme_')",
                )

    def to_row(self) -> Raw:
        """Return the settings as they are stored."""
        names = self.collections.model_dump()
        return {
            "_id": self.collections.transactions,
            "version": FORM,
            "lowestWriter": LOWEST_WRITER,
            "decimalPlaces": self.decimal_places,
            "collections": names,
            "names": sorted(names.values()),
            "users": None if self.users is None else self.users.model_dump(),
            "createdAt": datetime.now(timezone.utc),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LedgerSettings:
        """Return the settings of a row. Settings that only a newer version knows are left out.

        Raises ConfigurationError if the row can't be read, if a newer version wrote it and doesn't
        allow this one to use the ledger, or if the ledger is only half restored.
        """
        if RESTORING in row:
            raise ConfigurationError(
                "",
                "the restore of this ledger has not ended: run the same credit-mongo restore again "
                "to complete it",
            )
        place = f"the document {row.get('_id')!r} in {SETTINGS_COLLECTION}"
        lowest = row.get("lowestWriter")
        if isinstance(lowest, int | float) and lowest > FORM:
            raise ConfigurationError(
                "",
                f"a newer version of credit_mongo wrote {place}, and allows form {lowest} or later "
                f"to use the ledger; this version knows form {FORM}. Install a newer version",
            )
        try:
            users = row.get("users")
            return cls(
                _stored_names(_known(CollectionNames, row["collections"])),
                None if users is None else UserMapping(**_known(UserMapping, users)),
                operator.index(row["decimalPlaces"]),
            )
        except (LookupError, TypeError, AttributeError, ConfigurationError):
            remedy = "remove it, and run credit-mongo init --config to write it anew"
            raise ConfigurationError("", f"{place} can't be read: {remedy}") from None

    def check_that_names_are_known(self) -> None:
        """Raise ConfigurationError if an older version stored these, and a new name is not certain.

        A configuration that names no new collection gives it its default name, or the default name
        behind the prefix of all the others. Only if some of the others have their own default names
        is there certainly no prefix.
        """
        own = type(self.collections).model_fields
        stored = {
            field: getattr(self.collections, field) for field in _set_fields(self.collections)
        }
        has_prefix = all(own[field].default != name for field, name in stored.items())
        for field in own:
            if field not in stored and (has_prefix or own[field].default in stored.values()):
                raise ConfigurationError(
                    "config",
                    f"an older version of credit_mongo stored the ledger's settings, which don't "
                    f"name the collection for {field}: give --config. "
                    "credit-mongo init --config stores the name for all other commands",
                )


async def stored_settings(database: LedgerDatabase) -> Sequence[Raw]:
    """Return the rows of every ledger in the database. Raises PyMongoError."""
    # Not a document of the application's, should it have a collection of this name.
    rows = _collection(database).find({"names": {"$exists": True}}, sort=[("_id", 1)])
    return await rows.to_list()


def _fields(name: str, own: Part, kept: Part) -> Iterator[tuple[str, object, object]]:
    # An older version kept no setting for what has come since: there is nothing to compare.
    for field, value in kept.model_dump(exclude_unset=True).items():
        yield f"{name}.{field}", getattr(own, field), value


def _set_fields(part: Part) -> list[str]:
    """Return the fields that were given, and not left to their defaults, in their order."""
    return list(part.model_dump(exclude_unset=True))


def _stored_names(names: dict[str, Any]) -> CollectionNames:
    # Checked with other names for what is missing: a default may be the name of something else.
    missing = {
        field: f"missing.{field}" for field in CollectionNames.model_fields if field not in names
    }
    CollectionNames(**missing, **names)
    return CollectionNames.model_construct(set(names), **names)


def _known(part: type[Part], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in part.model_fields}


def _collection(database: LedgerDatabase) -> Collection:
    # What another process has just written is a duplicate at once, and must be seen at once.
    return database.read_locally()[SETTINGS_COLLECTION]


async def keep_settings(
    database: LedgerDatabase, settings: LedgerSettings, *, dry_run: bool = False
) -> SettingsChange:
    """Store the settings if they aren't stored yet, or add what an older version didn't store.

    A setting that is stored is never changed. If several processes do this at once with different
    settings, one succeeds. Raises ConfigurationError in the others, and PyMongoError.
    """
    for _ in range(_MOST_TRIES):
        row = settings.check(await stored_settings(database))
        missing = {} if row is None else settings.missing_in(row)
        if row is None:
            change = SettingsChange("created")
        elif missing or _is_older(row):
            change = SettingsChange("changed", _words(missing))
        else:
            return SettingsChange("kept")
        if dry_run or await _write(database, settings, row, missing):
            return change
    raise ConfigurationError(
        "",
        f"a document in {SETTINGS_COLLECTION} that is no ledger's is in the way of "
        f"{settings.collections.transactions!r}: rename or remove it",
    )


async def ensure_settings_index(database: LedgerDatabase) -> None:
    """Create the index that keeps ledgers from sharing a collection. Raises PyMongoError."""
    await database.ensure({"createIndexes": SETTINGS_COLLECTION, "indexes": [_UNIQUE_NAMES]})


async def _write(
    database: LedgerDatabase, settings: LedgerSettings, row: Raw | None, missing: Mapping[str, Any]
) -> bool:
    """Return whether it is done. If not, another process was first: see whether it agrees."""
    await ensure_settings_index(database)
    try:
        if row is None:
            await _collection(database).insert_one(settings.to_row())
            return True
        # Only on the row as it was read. A newer version may have raised its lowest writer.
        unchanged = {"_id": row["_id"], "lowestWriter": row.get("lowestWriter")}
        absent = {path: {"$exists": False} for path in missing}
        done = await _collection(database).update_one(unchanged | absent, _extension(missing))
    except DuplicateKeyError:
        return False
    return done.matched_count == 1


def _extension(missing: Mapping[str, Any]) -> Raw:
    names = sorted(value for path, value in missing.items() if path.startswith("collections."))
    update: Raw = {"$max": {"version": FORM, "lowestWriter": LOWEST_WRITER}}
    if missing:
        update["$set"] = dict(missing)
        update["$addToSet"] = {"names": {"$each": names}}
    return update


def _is_older(row: Raw) -> bool:
    return any(
        not isinstance(row.get(field), int | float) or row[field] < form
        for field, form in (("version", FORM), ("lowestWriter", LOWEST_WRITER))
    )


def _words(missing: Mapping[str, Any]) -> str:
    added = [f"{path} {value!r}" for path, value in missing.items()]
    return f"added {', '.join(added)}" if added else f"raised to form {FORM}"

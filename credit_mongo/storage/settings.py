"""What gives a ledger's rows their meaning, kept beside them in the database.

A balance of 1350 is 13.50 credits or 1,350, by a number that stands in no row; which documents are
users is in none either. So ``ensure_indexes`` writes both down, one document for each ledger of the
database, and whoever opens the ledger with other settings is refused.

A document's ``_id`` is the name of the ledger's transactions collection. A unique index on
``names`` makes the server refuse two ledgers that share a collection, whoever writes first.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, TypeAlias

from pymongo.errors import DuplicateKeyError

from credit_mongo.config import SETTINGS_COLLECTION, CollectionNames, CreditConfig
from credit_mongo.config.parts import Part
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.errors import ConfigurationError
from credit_mongo.storage.database import Collection, LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = [
    "SETTINGS_COLLECTION",
    "LedgerSettings",
    "SettingsState",
    "keep_settings",
    "stored_settings",
]

SettingsState: TypeAlias = Literal["created", "kept"]

FORM: Final = 1
"""The version of the stored form that this library writes."""
_LOWEST_WRITER: Final = 1
_MOST_TRIES: Final = 5
_UNIQUE_NAMES: Final = {"key": {"names": 1}, "name": "names_1", "unique": True, "sparse": True}


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """What all who read or write a ledger have to agree on."""

    collections: CollectionNames
    users: UserMapping | None
    decimal_places: int | None
    """None: not known, and so not compared."""

    @classmethod
    def of(cls, config: CreditConfig) -> LedgerSettings:
        """Those of a configuration."""
        return cls(config.collections, config.users, config.decimal_places)

    def check(self, rows: Iterable[Raw]) -> bool:
        """Whether these settings are among those kept in the database, by their rows.

        Raises ConfigurationError if this ledger was set up with others, or if another ledger of the
        database has one of its collections.
        """
        is_kept = False
        for row in rows:
            if row["_id"] == self.collections.transactions:
                self._check_that_it_is(self.from_row(row))
                is_kept = True
            else:
                self._check_that_it_is_apart_from(row)
        return is_kept

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
        """As it is stored."""
        names = self.collections.model_dump()
        return {
            "_id": self.collections.transactions,
            "version": FORM,
            "lowestWriter": _LOWEST_WRITER,
            "decimalPlaces": self.decimal_places,
            "collections": names,
            "names": sorted(names.values()),
            "users": None if self.users is None else self.users.model_dump(),
            "createdAt": datetime.now(timezone.utc),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> LedgerSettings:
        """From the database. What a newer version has added is left out, if that version allows it.

        Raises ConfigurationError.
        """
        place = f"the document {row.get('_id')!r} in {SETTINGS_COLLECTION}"
        lowest = row.get("lowestWriter")
        if isinstance(lowest, int) and lowest > FORM:
            raise ConfigurationError(
                "",
                f"a newer version of credit_mongo wrote {place}, and allows form {lowest} or later "
                f"to use the ledger; this version knows form {FORM}. Install a newer version",
            )
        try:
            users = row.get("users")
            return cls(
                CollectionNames(**_known(CollectionNames, row["collections"])),
                None if users is None else UserMapping(**_known(UserMapping, users)),
                operator.index(row["decimalPlaces"]),
            )
        except (LookupError, TypeError, AttributeError, ConfigurationError):
            remedy = "remove it, and run credit-mongo init --config to write it anew"
            raise ConfigurationError("", f"{place} can't be read: {remedy}") from None

    @classmethod
    async def all_in(cls, database: LedgerDatabase) -> tuple[LedgerSettings, ...]:
        """Those of every ledger in the database. Raises ConfigurationError and PyMongoError."""
        return tuple([cls.from_row(row) for row in await stored_settings(database)])


async def stored_settings(database: LedgerDatabase) -> Sequence[Raw]:
    """The rows of every ledger in the database. Raises PyMongoError."""
    # Not a document of the application's, should it have a collection of this name.
    rows = _collection(database).find({"names": {"$exists": True}}, sort=[("_id", 1)])
    return await rows.to_list()


def _fields(name: str, own: Part, kept: Part) -> Iterator[tuple[str, object, object]]:
    # An older version kept no setting for what has come since: there is nothing to compare.
    for field, value in kept.model_dump(exclude_unset=True).items():
        yield f"{name}.{field}", getattr(own, field), value


def _known(part: type[Part], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in part.model_fields}


def _collection(database: LedgerDatabase) -> Collection:
    # What another process has just written is a duplicate at once, and must be seen at once.
    return database.read_locally()[SETTINGS_COLLECTION]


async def keep_settings(
    database: LedgerDatabase, settings: LedgerSettings, *, dry_run: bool = False
) -> SettingsState:
    """Write the settings down if they are not kept yet; what is kept is never changed.

    Of many at once with different settings, one succeeds. Raises ConfigurationError for the others,
    and PyMongoError.
    """
    for _ in range(_MOST_TRIES):
        if settings.check(await stored_settings(database)):
            return "kept"
        if dry_run:
            return "created"
        await database.command({"createIndexes": SETTINGS_COLLECTION, "indexes": [_UNIQUE_NAMES]})
        try:
            await _collection(database).insert_one(settings.to_row())
        except DuplicateKeyError:
            continue  # another process was first: see whether it agrees
        return "created"
    raise ConfigurationError(
        "",
        f"a document in {SETTINGS_COLLECTION} that is no ledger's is in the way of "
        f"{settings.collections.transactions!r}: rename or remove it",
    )

"""Creates the collections, indexes and validator of the ledger, and never drops anything.

``documents.py`` says what the ledger needs. This module compares that with the database and makes
the missing parts. If something of the application's is in the way, the module keeps and reports it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from bson import json_util
from pymongo import IndexModel
from pymongo.errors import OperationFailure

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.drivers import AnyDatabase
from credit_mongo.maintenance.ttl_indexes import deleting_indexes
from credit_mongo.maintenance.unique_indexes import refuses_rows
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.documents import credit_documents, users_validator
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import UNAUTHORIZED
from credit_mongo.storage.settings import (
    SETTINGS_COLLECTION,
    LedgerSettings,
    keep_settings,
    stored_settings,
)

__all__ = ["IndexChange", "IndexReport", "ensure_all", "ensure_indexes"]

IndexKind: TypeAlias = Literal["collection", "index", "validator", "settings"]
IndexState: TypeAlias = Literal["created", "kept", "changed", "conflict"]
# A collection or an index, in the words of the server.
_Description: TypeAlias = Mapping[str, Any]

_NAMESPACE_EXISTS: Final = 48
_CANNOT_CREATE_INDEX: Final = 67
_INVALID_OPTIONS: Final = 72
_INDEX_OPTIONS_CONFLICT: Final = 85
_INDEX_KEY_SPECS_CONFLICT: Final = 86
_INDEX_BUILD_IN_PROGRESS: Final = 12587
_PAUSE_SECONDS: Final = 0.2

# Options that don't change how an index works. Old servers add "background" and "ns".
_NO_OPTIONS: Final = frozenset({"v", "key", "name", "ns", "background"})
# The options that collMod can change.
_ADJUSTABLE: Final = frozenset({"expireAfterSeconds", "hidden"})

_OF_PAID_REQUESTS: Final = (
    IndexModel("expiresAt", expireAfterSeconds=0),
    # Only for unfinished runs, which are few, however many requests are remembered.
    IndexModel("leaseUntil", sparse=True),
    # For erasures, the only queries by user.
    IndexModel("userId"),
)
_IN_PAID_REQUESTS: Final = frozenset(
    {
        *("_id", "fingerprint", "userId", "action", "amount", "variables", "state", "run"),
        *("startedAt", "leaseUntil", "expiresAt", "transactionId", "cost"),
    }
)

# "moderate", because "users" may be the application's collection, with older documents that have
# no credits yet. "strict" would refuse every update of those, even the application's. "moderate"
# checks new documents, and updates of valid ones.
_ENFORCED: Final = {"validationLevel": "moderate", "validationAction": "error"}


@dataclass(frozen=True, slots=True)
class IndexChange:
    """One thing that the ledger needs, and what was done about it (in a dry run: what would be)."""

    collection: str
    """The collection's name."""
    name: str
    """The index's name in the database. For a validator ``"validator"``, for a collection ``""``,
    for the ledger's settings the name of the transactions collection."""
    kind: IndexKind
    state: IndexState
    """``conflict`` means that something of the application's is in the way. It stays."""
    reason: str = ""
    """What was changed, or why there is a conflict."""
    remedy: str = ""
    """What resolves the conflict, usually a command for mongosh. Run ``ensure_indexes`` again
    afterwards."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What was done about everything the ledger needs. Without ``conflicts``, all is in place."""

    changes: tuple[IndexChange, ...]

    @property
    def created(self) -> tuple[IndexChange, ...]:
        """What was missing and is now created."""
        return self._in_state("created")

    @property
    def kept(self) -> tuple[IndexChange, ...]:
        """What was already there."""
        return self._in_state("kept")

    @property
    def changed(self) -> tuple[IndexChange, ...]:
        """Indexes that had another TTL or were hidden, and are now corrected."""
        return self._in_state("changed")

    @property
    def conflicts(self) -> tuple[IndexChange, ...]:
        """What is still missing because something else is in the way, each with its remedy."""
        return self._in_state("conflict")

    def to_dict(self) -> dict[str, list[dict[str, str]]]:
        """Return the changes by state (``created``, ``kept``, ``changed``, ``conflicts``)."""
        return {
            name: [asdict(change) for change in getattr(self, name)]
            for name in ("created", "kept", "changed", "conflicts")
        }

    def _in_state(self, state: IndexState) -> tuple[IndexChange, ...]:
        return tuple(change for change in self.changes if change.state == state)


@dataclass(frozen=True, slots=True)
class _Step:
    """A change, and the command that makes it, if it needs one."""

    change: IndexChange
    command: Raw | None = None
    remedies: Mapping[int, str] = field(default_factory=dict)
    """Remedies by error code: the server's refusal with one of these codes is a conflict."""


async def ensure_indexes(
    database: AnyDatabase,
    names: CollectionNames,
    users: UserMapping | None = None,
    *,
    decimal_places: int | None = None,
    validators: bool = True,
    dry_run: bool = False,
) -> IndexReport:
    """Create the collections, indexes and (with ``validators``) the users' validator if missing.

    The function first stores the ledger's settings: the names, the mapping and ``decimal_places``
    of the configuration. Without ``decimal_places``, it only compares them. If the ledger in the
    database was set up with other settings, it raises ConfigurationError and creates nothing.

    You can run it again, and in several processes at once. It keeps indexes that fit, whatever
    their names, and corrects a different TTL or a hidden index. It never drops or overwrites
    anything. If something is in the way, it reports a conflict with the remedy and continues.
    Conflicts are also a unique index of the application's that would refuse the ledger's rows, and
    a TTL index on a collection whose rows must stay. With ``dry_run`` it writes nothing.

    The validator makes sure that ``credits`` is always a whole number of 0 or more, whoever writes
    it. No user can be inserted without ``credits``, not even by the application. With ``users``,
    the documents belong to the application: they may lack ``credits``, and the validator uses the
    mapped names.

    If a collection has many documents, the server may need long to build its indexes. New
    collections need the role readWrite. Changing a TTL or the validator of an existing collection
    also needs dbAdmin; without that role, the change is reported as a conflict.

    Raises ConfigurationError and PyMongoError.
    """
    return await ensure_all(
        LedgerDatabase.of(database, names, users),
        decimal_places=decimal_places,
        validators=validators,
        dry_run=dry_run,
    )


async def ensure_all(
    database: LedgerDatabase,
    *,
    decimal_places: int | None,
    validators: bool = True,
    dry_run: bool = False,
) -> IndexReport:
    """Do the work of ``ensure_indexes`` for a ledger."""
    names, users = database.names, database.mapping
    settings = LedgerSettings(names, users, decimal_places)
    changes = await _keep_settings(database, settings, dry_run=dry_run)
    for wanted in _all_wanted(names, users):
        each = wanted if validators else replace(wanted, validator=None)
        changes += await _ensure_collection(database, each, dry_run=dry_run)
    # A TTL index that conflicts with one of the ledger's is already reported, with the same remedy.
    known = {change.remedy for change in changes}
    deleting = await _deleting_indexes(database)
    return IndexReport((*changes, *(each for each in deleting if each.remedy not in known)))


async def _deleting_indexes(database: LedgerDatabase) -> list[IndexChange]:
    conflicts = []
    for kind, name in {**database.names.model_dump(), "settings": SETTINGS_COLLECTION}.items():
        _, indexes = await _look(database, name)
        for index in deleting_indexes(kind, indexes, database.mapping):
            reason = "it is a TTL index, so the server deletes rows that the ledger must keep"
            change = IndexChange(name, index, "index", "conflict", reason, _drop_index(name, index))
            conflicts.append(change)
    return conflicts


async def _keep_settings(
    database: LedgerDatabase, settings: LedgerSettings, *, dry_run: bool
) -> list[IndexChange]:
    names = settings.collections
    is_kept = settings.check(await stored_settings(database))
    if settings.decimal_places is None:
        return []
    for wanted in () if is_kept else _all_wanted(names, settings.users):
        found, _ = await _look(database, wanted.collection)
        if found is not None and _unusable(found):
            # The remedy is another name. Once stored in the settings, this one could not change.
            return []
    state = await keep_settings(database, settings, dry_run=dry_run)
    return [IndexChange(SETTINGS_COLLECTION, names.transactions, "settings", state)]


@dataclass(frozen=True, slots=True)
class _Wanted:
    collection: str
    indexes: Sequence[_Description]
    validator: Raw | None
    written: frozenset[str]
    """The fields of the rows that the ledger inserts. Empty if the application inserts the
    documents, because it knows its own rules."""


def _all_wanted(names: CollectionNames, users: UserMapping | None) -> Iterator[_Wanted]:
    if users is not None:
        validator = {"$jsonSchema": users_validator(users)}
        indexes = [IndexModel(users.membership_tier).document]
        yield _Wanted(names.users, indexes, validator, frozenset())
    for document in credit_documents(names, users):
        yield _Wanted(
            collection=document.Settings.name,
            indexes=[model.document for model in document.Settings.indexes],
            validator={"$jsonSchema": document.validator} if document.validator else None,
            written=frozenset(field.alias or name for name, field in document.model_fields.items()),
        )
    # For the FastAPI integration. Created here, because the application's role must not create
    # indexes: it could make the server delete rows with a TTL index.
    yield _Wanted(
        names.paid_requests,
        indexes=[each.document for each in _OF_PAID_REQUESTS],
        validator=None,
        written=_IN_PAID_REQUESTS,
    )


async def _ensure_collection(
    database: LedgerDatabase, wanted: _Wanted, *, dry_run: bool
) -> list[IndexChange]:
    while True:
        steps = _plan(wanted, *await _look(database, wanted.collection))
        if dry_run:
            return [step.change for step in steps]
        try:
            return [await _carry_out(database, step) for step in steps]
        except OperationFailure as error:
            # Another process has created the collection in the meantime: look again.
            if error.code != _NAMESPACE_EXISTS:
                raise


async def _look(
    database: LedgerDatabase, collection: str
) -> tuple[_Description | None, Sequence[_Description]]:
    """Return the collection's entry in listCollections (or None) and its indexes."""
    found = await database.describe(collection)
    if found is None or found["type"] != "collection":
        return found, []
    return found, await database[collection].list_indexes()


async def _carry_out(database: LedgerDatabase, step: _Step) -> IndexChange:
    while step.command is not None:
        try:
            await database.command(step.command)
            break
        except OperationFailure as error:
            if error.code == _INDEX_BUILD_IN_PROGRESS:
                # Unlike createIndexes, collMod doesn't wait for a running build.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            remedy = step.remedies.get(error.code or 0)
            if remedy is None:
                raise
            name = (error.details or {}).get("codeName", "error")
            reason = f"the server refused the change: {name} (code {error.code})"
            return replace(step.change, state="conflict", reason=reason, remedy=remedy)
    return step.change


def _plan(
    wanted: _Wanted, found: _Description | None, indexes: Sequence[_Description]
) -> list[_Step]:
    collection = IndexChange(wanted.collection, "", "collection", "kept")
    if found is None:
        steps = _creation(wanted, collection)
    elif reason := _unusable(found):
        remedy = "give the ledger another collection: CreditConfig(collections=…)"
        return [_Step(replace(collection, state="conflict", reason=reason, remedy=remedy))]
    else:
        steps = [_Step(collection)]
        if wanted.validator is not None:
            steps.append(_validator_step(wanted.collection, wanted.validator, found["options"]))
    steps += [_index_step(wanted.collection, index, indexes) for index in wanted.indexes]
    return steps + _in_the_way(wanted, indexes)


def _in_the_way(wanted: _Wanted, existing: Sequence[_Description]) -> list[_Step]:
    """Return unique indexes that would refuse the ledger's second row, before it is written."""
    own = [_keys(index) for index in wanted.indexes]
    reason = "it is unique, but the ledger's rows lack its fields or have equal values in them"
    return [
        _Step(
            IndexChange(
                wanted.collection,
                index["name"],
                "index",
                "conflict",
                reason,
                _drop_index(wanted.collection, index["name"]),
            )
        )
        for index in existing
        # Indexes on the ledger's own keys are already reported.
        if wanted.written and _keys(index) not in own and refuses_rows(index, wanted.written)
    ]


def _creation(wanted: _Wanted, collection: IndexChange) -> list[_Step]:
    # Created with its validator, because the role readWrite allows that but not collMod.
    command: Raw = {"create": wanted.collection}
    steps = [_Step(replace(collection, state="created"), command)]
    if wanted.validator is not None:
        command |= {"validator": wanted.validator, **_ENFORCED}
        steps.append(_Step(IndexChange(wanted.collection, "validator", "validator", "created")))
    return steps


def _unusable(found: _Description) -> str:
    """Return why the ledger cannot keep its documents in the collection, or "" if it can."""
    if found["type"] != "collection":
        return f"it is a {found['type']}, not a collection"
    if found["options"].get("capped"):
        return "it is capped, so transactions cannot write to it"
    if "collation" in found["options"]:
        return "its collation may treat different user ids or keys as equal"
    return ""


# Validators


def _validator_step(collection: str, validator: Raw, options: _Description) -> _Step:
    change = IndexChange(collection, "validator", "validator", "kept")
    existing = options.get("validator")
    if not existing:
        command: Raw = {"collMod": collection, "validator": validator, **_ENFORCED}
        remedies = {UNAUTHORIZED: _run_command(command)}
        return _Step(replace(change, state="created"), command, remedies)
    if not _contains(existing, validator):
        reason = "it has another validator, and a collection can only have one"
        remedy = _merging(collection, validator)
        return _Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    if options.get("validationLevel") == "off" or options.get("validationAction") == "warn":
        reason = "the validator exists but is not enforced"
        remedy = _run_command({"collMod": collection, **_ENFORCED})
        return _Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    return _Step(change)


def _contains(existing: _Description, validator: Raw) -> bool:
    """Return whether every document that passes the existing validator passes the wanted one."""
    return all(existing.get(name) == value for name, value in validator.items()) or any(
        _contains(part, validator) for part in existing.get("$and", ())
    )


def _merging(collection: str, validator: Raw) -> str:
    """Return a command that merges both validators.

    mongosh fetches the existing one, which may contain values that JSON cannot express.
    """
    name, wanted = json.dumps(collection), json.dumps(validator)
    existing = f"db.getCollectionInfos({{name: {name}}})[0].options.validator"
    return f"db.runCommand({{collMod: {name}, validator: {{$and: [{existing}, {wanted}]}}}})"


# Indexes


def _index_step(collection: str, wanted: _Description, existing: Sequence[_Description]) -> _Step:
    change = IndexChange(collection, wanted["name"], "index", "kept")
    same_keys = [index for index in existing if _keys(index) == _keys(wanted)]
    for index in same_keys:
        if not _difference(index, wanted):
            return _Step(replace(change, name=index["name"]))
    for index in same_keys:
        if _is_adjustable(index, wanted):
            return _adjustment(replace(change, name=index["name"]), index, wanted)
    for index in same_keys:
        # The server allows both indexes if their names differ, unless collMod could make them
        # equal. And a unique index would refuse the ledger's rows.
        difference = _difference(index, wanted)
        if index["name"] == wanted["name"] or "unique" in difference or difference <= _ADJUSTABLE:
            return _Step(_options_conflict(change, index, wanted))
    for index in existing:
        if index["name"] == wanted["name"]:
            return _Step(_name_conflict(change, index, wanted))
    command: Raw = {"createIndexes": collection, "indexes": [wanted]}
    look = f"db.getCollection({json.dumps(collection)}).getIndexes()"
    # Another process has created an index in the meantime, or the collection has too many.
    codes = (_CANNOT_CREATE_INDEX, _INDEX_OPTIONS_CONFLICT, _INDEX_KEY_SPECS_CONFLICT)
    return _Step(replace(change, state="created"), command, dict.fromkeys(codes, look))


def _keys(index: _Description) -> list[tuple[str, Any]]:
    return list(index["key"].items())


def _options(index: _Description) -> Raw:
    # Some servers store options given as false. (A TTL of 0 is not False.)
    return {
        name: value
        for name, value in index.items()
        if name not in _NO_OPTIONS and value is not False
    }


def _difference(index: _Description, wanted: _Description) -> set[str]:
    found, options = _options(index), _options(wanted)
    return {name for name in found.keys() | options.keys() if found.get(name) != options.get(name)}


def _is_adjustable(index: _Description, wanted: _Description) -> bool:
    """Return whether collMod can turn the index into the wanted one.

    It can set and change a TTL, but not remove it.
    """
    removes_ttl = "expireAfterSeconds" in index and "expireAfterSeconds" not in wanted
    return _difference(index, wanted) <= _ADJUSTABLE and not removes_ttl


def _adjustment(change: IndexChange, index: _Description, wanted: _Description) -> _Step:
    settings: Raw = {}
    reasons: list[str] = []
    if index.get("expireAfterSeconds") != wanted.get("expireAfterSeconds"):
        settings["expireAfterSeconds"] = wanted["expireAfterSeconds"]
        before = index.get("expireAfterSeconds", "no TTL")
        reasons.append(f"expireAfterSeconds: {before} → {wanted['expireAfterSeconds']}")
    if index.get("hidden", False) != wanted.get("hidden", False):
        settings["hidden"] = wanted.get("hidden", False)
        reasons.append(f"hidden: {index.get('hidden', False)} → {settings['hidden']}")
    command: Raw = {"collMod": change.collection, "index": {"name": change.name, **settings}}
    remedies = {
        UNAUTHORIZED: _run_command(command),
        # Before MongoDB 5.1, collMod cannot add a TTL to an index without one.
        _INVALID_OPTIONS: _drop_index(change.collection, change.name),
    }
    changed = replace(change, state="changed", reason=", ".join(reasons))
    return _Step(changed, command, remedies)


def _options_conflict(
    change: IndexChange, index: _Description, wanted: _Description
) -> IndexChange:
    found, options = json_util.dumps(_options(index)), json_util.dumps(_options(wanted))
    return replace(
        change,
        state="conflict",
        reason=f"the index {index['name']!r} on its keys has the options {found}, not {options}",
        remedy=_drop_index(change.collection, index["name"]),
    )


def _name_conflict(change: IndexChange, index: _Description, wanted: _Description) -> IndexChange:
    keys, found = json.dumps(wanted["key"]), json.dumps(index["key"])
    # Under another name, the index leaves the application's as it is.
    options = json_util.dumps({"name": f"credit_mongo_{wanted['name']}", **_options(wanted)})
    collection = json.dumps(change.collection)
    return replace(
        change,
        state="conflict",
        reason=f"the index of this name has the keys {found}, not {keys}",
        remedy=f"db.getCollection({collection}).createIndex({keys}, {options})",
    )


# Commands for mongosh. They use getCollection, because db.NAME fails for "stats" or "audit-logs".


def _drop_index(collection: str, name: str) -> str:
    return f"db.getCollection({json.dumps(collection)}).dropIndex({json.dumps(name)})"


def _run_command(command: Raw) -> str:
    return f"db.runCommand({json.dumps(command)})"

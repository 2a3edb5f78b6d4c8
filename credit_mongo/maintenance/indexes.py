"""The collections, the indexes and the validator that the ledger wants, brought about without loss.

What is wanted stands with the documents (``documents.py``); this compares it with what is there,
and does the difference. Whatever of the application's is in the way stays, and is reported.
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
from credit_mongo.storage.settings import SETTINGS_COLLECTION, LedgerSettings, keep_settings

__all__ = ["IndexChange", "IndexReport", "ensure_all", "ensure_indexes"]

IndexKind: TypeAlias = Literal["collection", "index", "validator", "settings"]
IndexState: TypeAlias = Literal["created", "kept", "changed", "conflict"]
# A collection or an index, in the words of the server.
_Description: TypeAlias = Mapping[str, Any]

_UNAUTHORIZED: Final = 13
_NAMESPACE_EXISTS: Final = 48
_CANNOT_CREATE_INDEX: Final = 67
_INVALID_OPTIONS: Final = 72
_INDEX_OPTIONS_CONFLICT: Final = 85
_INDEX_KEY_SPECS_CONFLICT: Final = 86
_INDEX_BUILD_IN_PROGRESS: Final = 12587
_PAUSE_SECONDS: Final = 0.2

# What tells nothing of how an index works; "background" and "ns" stand in indexes of old servers.
_NO_OPTIONS: Final = frozenset({"v", "key", "name", "ns", "background"})
# What collMod changes.
_ADJUSTABLE: Final = frozenset({"expireAfterSeconds", "hidden"})

_OF_PAID_REQUESTS: Final = (
    IndexModel("expiresAt", expireAfterSeconds=0),
    # Of runs that are not over alone: few, however many requests are remembered.
    IndexModel("leaseUntil", sparse=True),
    # For erasures, which are all that asks by user.
    IndexModel("userId"),
)
_IN_PAID_REQUESTS: Final = frozenset(
    {
        *("_id", "fingerprint", "userId", "action", "amount", "variables", "state", "run"),
        *("startedAt", "leaseUntil", "expiresAt", "transactionId", "cost"),
    }
)

# "moderate", because "users" may be the application's own, with documents from before that have no
# credits yet: "strict" would refuse every update of those, the application's as well. What was
# valid once must stay so, and every new document must be.
_ENFORCED: Final = {"validationLevel": "moderate", "validationAction": "error"}


@dataclass(frozen=True, slots=True)
class IndexChange:
    """One thing that was wanted, and what became of it (in a dry run: what would)."""

    collection: str
    """The collection's name."""
    name: str
    """The index's name as it is in the database; ``"validator"``; ``""`` for the collection, and
    the name of the transactions collection for the ledger's settings."""
    kind: IndexKind
    state: IndexState
    """``conflict``: something of the application's is in the way, and stays."""
    reason: str = ""
    """What was changed, or why there is a conflict."""
    remedy: str = ""
    """What resolves the conflict, mostly a command for mongosh. Run ``ensure_indexes`` again then.
    """


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What became of all that was wanted. Nothing is left to do when it has no ``conflicts``."""

    changes: tuple[IndexChange, ...]

    @property
    def created(self) -> tuple[IndexChange, ...]:
        """What was missing."""
        return self._in_state("created")

    @property
    def kept(self) -> tuple[IndexChange, ...]:
        """What was there."""
        return self._in_state("kept")

    @property
    def changed(self) -> tuple[IndexChange, ...]:
        """What was there, with another TTL or hidden."""
        return self._in_state("changed")

    @property
    def conflicts(self) -> tuple[IndexChange, ...]:
        """What is still missing because something else is in the way; each with its remedy."""
        return self._in_state("conflict")

    def to_dict(self) -> dict[str, list[dict[str, str]]]:
        """The changes by state (``created``, ``kept``, ``changed``, ``conflicts``), for JSON."""
        return {
            name: [asdict(change) for change in getattr(self, name)]
            for name in ("created", "kept", "changed", "conflicts")
        }

    def _in_state(self, state: IndexState) -> tuple[IndexChange, ...]:
        return tuple(change for change in self.changes if change.state == state)


@dataclass(frozen=True, slots=True)
class _Step:
    """What the change will be once the command, if it needs one, is done."""

    change: IndexChange
    command: Raw | None = None
    remedies: Mapping[int, str] = field(default_factory=dict)
    """By error code: refused with one of these, it is a conflict, and this resolves it."""


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

    First the ledger's settings are written down: the names, the mapping and ``decimal_places`` of
    the configuration. Without ``decimal_places`` they are compared alone. If the ledger in the
    database was set up with others, ConfigurationError is raised and nothing is created.

    It can be run again, and by several processes at once. An index that fits is kept whatever its
    name; one that differs in its TTL, or is hidden, is changed; nothing is ever dropped or
    overwritten: what is in the way is reported as a conflict with its remedy, and the rest is done.
    A unique index of the application's that would refuse the ledger's rows is a conflict, too, and
    so is a TTL index on a collection whose rows must stay; its other indexes are not looked at.
    With ``dry_run`` nothing is written.

    The validator keeps ``credits`` a whole number ≥ 0, whoever writes it: users that have one keep
    one, and none can be inserted without, by the application neither. With ``users``, whose
    documents are the application's, they may be without, and the fields are those of the mapping.

    On collections with documents it takes as long as the server needs to build the indexes. New
    collections need the role readWrite; changing a TTL or the validator of an existing collection
    also needs dbAdmin, and is a conflict without. Raises PyMongoError.
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
    """The same for a ledger."""
    names, users = database.names, database.mapping
    settings = LedgerSettings(names, users, decimal_places)
    changes = await _keep_settings(database, settings, dry_run=dry_run)
    for wanted in _all_wanted(names, users):
        each = wanted if validators else replace(wanted, validator=None)
        changes += await _ensure_collection(database, each, dry_run=dry_run)
    # One that is in the way of an index of the ledger's is named already, with the same remedy.
    known = {change.remedy for change in changes}
    deleting = await _deleting_indexes(database)
    return IndexReport((*changes, *(each for each in deleting if each.remedy not in known)))


async def _deleting_indexes(database: LedgerDatabase) -> list[IndexChange]:
    conflicts = []
    for kind, name in {**database.names.model_dump(), "settings": SETTINGS_COLLECTION}.items():
        _, indexes = await _look(database, name)
        for index in deleting_indexes(kind, indexes, database.mapping):
            reason = "it is a TTL index, by which the server deletes what the ledger keeps"
            change = IndexChange(name, index, "index", "conflict", reason, _drop_index(name, index))
            conflicts.append(change)
    return conflicts


async def _keep_settings(
    database: LedgerDatabase, settings: LedgerSettings, *, dry_run: bool
) -> list[IndexChange]:
    names = settings.collections
    is_kept = settings.check(await LedgerSettings.all_in(database))
    if settings.decimal_places is None:
        return []
    for wanted in () if is_kept else _all_wanted(names, settings.users):
        found, _ = await _look(database, wanted.collection)
        if found is not None and _unusable(found):
            # Its remedy is another name, which could not be given once this one is written down.
            return []
    state = await keep_settings(database, settings, dry_run=dry_run)
    return [IndexChange(SETTINGS_COLLECTION, names.transactions, "settings", state)]


@dataclass(frozen=True, slots=True)
class _Wanted:
    collection: str
    indexes: Sequence[_Description]
    validator: Raw | None
    written: frozenset[str]
    """The fields of the rows that the ledger inserts; none where documents are inserted by the
    application, which knows its own rules."""


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
    # Of the FastAPI integration, here because the role of an application creates no index: with
    # that it could have the server delete rows.
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
            # Another process created the collection since we looked: see what is there now.
            if error.code != _NAMESPACE_EXISTS:
                raise


async def _look(
    database: LedgerDatabase, collection: str
) -> tuple[_Description | None, Sequence[_Description]]:
    """The collection as listCollections has it (None without one), and its indexes."""
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
                # collMod does not wait for it, as createIndexes does.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            remedy = step.remedies.get(error.code or 0)
            if remedy is None:
                raise
            name = (error.details or {}).get("codeName", "error")
            reason = f"the server refuses it: {name} (code {error.code})"
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
    """Unique indexes that would refuse the ledger's second row; named before it is written."""
    own = [_keys(index) for index in wanted.indexes]
    reason = "it is unique, and rows of the ledger have no such fields, or the same values in them"
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
        # Those on the ledger's own keys are conflicts already.
        if wanted.written and _keys(index) not in own and refuses_rows(index, wanted.written)
    ]


def _creation(wanted: _Wanted, collection: IndexChange) -> list[_Step]:
    # With its validator at once: a user with the role readWrite may do that, but not collMod.
    command: Raw = {"create": wanted.collection}
    steps = [_Step(replace(collection, state="created"), command)]
    if wanted.validator is not None:
        command |= {"validator": wanted.validator, **_ENFORCED}
        steps.append(_Step(IndexChange(wanted.collection, "validator", "validator", "created")))
    return steps


def _unusable(found: _Description) -> str:
    """Why the ledger cannot keep its documents there; "" if it can."""
    if found["type"] != "collection":
        return f"it is a {found['type']}, not a collection"
    if found["options"].get("capped"):
        return "it is capped, and transactions cannot write there"
    if "collation" in found["options"]:
        return "its collation may take different user ids, or keys, for the same"
    return ""


# Validators


def _validator_step(collection: str, validator: Raw, options: _Description) -> _Step:
    change = IndexChange(collection, "validator", "validator", "kept")
    existing = options.get("validator")
    if not existing:
        command: Raw = {"collMod": collection, "validator": validator, **_ENFORCED}
        remedies = {_UNAUTHORIZED: _run_command(command)}
        return _Step(replace(change, state="created"), command, remedies)
    if not _contains(existing, validator):
        reason = "the collection has another validator, and has only one"
        remedy = _merging(collection, validator)
        return _Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    if options.get("validationLevel") == "off" or options.get("validationAction") == "warn":
        reason = "the validator is there, but not enforced"
        remedy = _run_command({"collMod": collection, **_ENFORCED})
        return _Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    return _Step(change)


def _contains(existing: _Description, validator: Raw) -> bool:
    """Whether a document that passes the existing validator always passes the wanted one, too."""
    return all(existing.get(name) == value for name, value in validator.items()) or any(
        _contains(part, validator) for part in existing.get("$and", ())
    )


def _merging(collection: str, validator: Raw) -> str:
    """It has mongosh fetch the existing one, which may hold values that JSON has no form for."""
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
        # The server has others beside ours, if their names differ. But it takes two indexes that
        # collMod could make the same for the same, and a unique one would refuse the ledger's rows.
        difference = _difference(index, wanted)
        if index["name"] == wanted["name"] or "unique" in difference or difference <= _ADJUSTABLE:
            return _Step(_options_conflict(change, index, wanted))
    for index in existing:
        if index["name"] == wanted["name"]:
            return _Step(_name_conflict(change, index, wanted))
    command: Raw = {"createIndexes": collection, "indexes": [wanted]}
    look = f"db.getCollection({json.dumps(collection)}).getIndexes()"
    # An index that came since we looked, or one too many.
    codes = (_CANNOT_CREATE_INDEX, _INDEX_OPTIONS_CONFLICT, _INDEX_KEY_SPECS_CONFLICT)
    return _Step(replace(change, state="created"), command, dict.fromkeys(codes, look))


def _keys(index: _Description) -> list[tuple[str, Any]]:
    return list(index["key"].items())


def _options(index: _Description) -> Raw:
    # Some servers keep what was given as false. (A TTL of 0 is not false.)
    return {
        name: value
        for name, value in index.items()
        if name not in _NO_OPTIONS and value is not False
    }


def _difference(index: _Description, wanted: _Description) -> set[str]:
    found, options = _options(index), _options(wanted)
    return {name for name in found.keys() | options.keys() if found.get(name) != options.get(name)}


def _is_adjustable(index: _Description, wanted: _Description) -> bool:
    """Whether collMod makes the wanted index of it. A TTL it can set and change, not remove."""
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
        _UNAUTHORIZED: _run_command(command),
        # Before MongoDB 5.1, no TTL can be given to an index that has none.
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
    # Under another name, it takes nothing from the application.
    options = json_util.dumps({"name": f"credit_mongo_{wanted['name']}", **_options(wanted)})
    collection = json.dumps(change.collection)
    return replace(
        change,
        state="conflict",
        reason=f"the index of this name has the keys {found}, not {keys}",
        remedy=f"db.getCollection({collection}).createIndex({keys}, {options})",
    )


# Commands for mongosh. getCollection, because db.NAME fails for names like "stats" or "audit-logs".


def _drop_index(collection: str, name: str) -> str:
    return f"db.getCollection({json.dumps(collection)}).dropIndex({json.dumps(name)})"


def _run_command(command: Raw) -> str:
    return f"db.runCommand({json.dumps(command)})"

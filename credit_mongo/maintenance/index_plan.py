"""What is missing of the ledger's collections and indexes, compared with what is there. Pure.

``documents.py`` says what the ledger needs. Each difference becomes a step: a change to report, and
the command that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from bson import json_util
from pymongo import IndexModel

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.maintenance.unique_indexes import refuses_rows
from credit_mongo.storage.documents import credit_documents, earlier_validators, users_validator
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.server_errors import UNAUTHORIZED

__all__ = [
    "Description",
    "IndexChange",
    "IndexReport",
    "Step",
    "Wanted",
    "all_wanted",
    "drop_index",
    "plan",
    "why_unusable",
]

IndexKind: TypeAlias = Literal["collection", "index", "validator", "settings"]
IndexState: TypeAlias = Literal["created", "kept", "changed", "conflict"]
# A collection or an index, in the words of the server.
Description: TypeAlias = Mapping[str, Any]

_CANNOT_CREATE_INDEX: Final = 67
_INVALID_OPTIONS: Final = 72
_INDEX_OPTIONS_CONFLICT: Final = 85
_INDEX_KEY_SPECS_CONFLICT: Final = 86

# Options that don't change how an index works. Old servers add "background" and "ns".
_NO_OPTIONS: Final = frozenset({"v", "key", "name", "ns", "background"})
# The options that collMod can change.
_ADJUSTABLE: Final = frozenset({"expireAfterSeconds", "hidden"})

# Of the transactions. The index that has taken its place begins with its field.
_FORMER: Final = IndexModel("action").document

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
    afterwards. For a kept index that the ledger no longer needs, the command that drops it."""


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
        """Indexes that had another TTL or were hidden, and are now corrected; and settings and
        validators of an older version, which are now up to date."""
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
class Step:
    """A change, and the command that makes it, if it needs one."""

    change: IndexChange
    command: Raw | None = None
    remedies: Mapping[int, str] = field(default_factory=dict)
    """Remedies by error code: the server's refusal with one of these codes is a conflict."""


@dataclass(frozen=True, slots=True)
class Wanted:
    collection: str
    indexes: Sequence[Description]
    validator: Raw | None
    former: Sequence[Description] = field(default=(), kw_only=True)
    """Indexes that earlier versions made. The ledger no longer needs them."""
    written: frozenset[str]
    """The fields of the rows that the ledger inserts. Empty if the application inserts the
    documents, because it knows its own rules."""
    earlier_validators: Sequence[Raw] = ()
    """Those that earlier versions set, to be replaced."""


def all_wanted(names: CollectionNames, users: UserMapping | None) -> Iterator[Wanted]:
    if users is not None:
        validator = {"$jsonSchema": users_validator(users)}
        indexes = [IndexModel(users.membership_tier).document]
        earlier = _schemas(earlier_validators(users))
        yield Wanted(names.users, indexes, validator, frozenset(), earlier)
    for document in credit_documents(names, users):
        yield Wanted(
            collection=document.Settings.name,
            indexes=[model.document for model in document.Settings.indexes],
            validator={"$jsonSchema": document.validator} if document.validator else None,
            former=[_FORMER] if document.Settings.name == names.transactions else (),
            written=frozenset(field.alias or name for name, field in document.model_fields.items()),
            earlier_validators=(
                _schemas(earlier_validators(None)) if document.Settings.name == names.users else ()
            ),
        )
    # For the FastAPI integration. Created here, because the application's role must not create
    # indexes: it could make the server delete rows with a TTL index.
    yield Wanted(
        names.paid_requests,
        indexes=[each.document for each in _OF_PAID_REQUESTS],
        validator=None,
        written=_IN_PAID_REQUESTS,
    )


def _schemas(schemas: Sequence[Raw]) -> list[Raw]:
    return [{"$jsonSchema": schema} for schema in schemas]


def plan(wanted: Wanted, found: Description | None, indexes: Sequence[Description]) -> list[Step]:
    collection = IndexChange(wanted.collection, "", "collection", "kept")
    if found is None:
        steps = _creation(wanted, collection)
    elif reason := why_unusable(found):
        remedy = "give the ledger another collection: CreditConfig(collections=…)"
        return [Step(replace(collection, state="conflict", reason=reason, remedy=remedy))]
    else:
        steps = [Step(collection)]
        if wanted.validator is not None:
            steps.append(_validator_step(wanted, wanted.validator, found["options"]))
    steps += [_index_step(wanted.collection, index, indexes) for index in wanted.indexes]
    return steps + _in_the_way(wanted, indexes) + _left_over(wanted, indexes)


def _in_the_way(wanted: Wanted, existing: Sequence[Description]) -> list[Step]:
    """Return unique indexes that would refuse the ledger's second row, before it is written."""
    own = [_keys(index) for index in wanted.indexes]
    reason = "it is unique, but the ledger's rows lack its fields or have equal values in them"
    return [
        Step(
            IndexChange(
                wanted.collection,
                index["name"],
                "index",
                "conflict",
                reason,
                drop_index(wanted.collection, index["name"]),
            )
        )
        for index in existing
        # Indexes on the ledger's own keys are already reported.
        if wanted.written and _keys(index) not in own and refuses_rows(index, wanted.written)
    ]


def _left_over(wanted: Wanted, existing: Sequence[Description]) -> list[Step]:
    """Return indexes of earlier versions. They stay, because the application may use them."""
    return [
        Step(
            IndexChange(
                wanted.collection,
                index["name"],
                "index",
                "kept",
                "the ledger no longer needs it, and every charge writes to it",
                drop_index(wanted.collection, index["name"]),
            )
        )
        for index in existing
        for former in wanted.former
        if index["name"] == former["name"]
        and _keys(index) == _keys(former)
        and not _difference(index, former)
    ]


def _creation(wanted: Wanted, collection: IndexChange) -> list[Step]:
    # Created with its validator, because the role readWrite allows that but not collMod.
    command: Raw = {"create": wanted.collection}
    steps = [Step(replace(collection, state="created"), command)]
    if wanted.validator is not None:
        command |= {"validator": wanted.validator, **_ENFORCED}
        steps.append(Step(IndexChange(wanted.collection, "validator", "validator", "created")))
    return steps


def why_unusable(found: Description) -> str:
    """Return why the ledger cannot keep its documents in the collection, or "" if it can."""
    if found["type"] != "collection":
        return f"it is a {found['type']}, not a collection"
    if found["options"].get("capped"):
        return "it is capped, so transactions cannot write to it"
    if "collation" in found["options"]:
        return "its collation may treat different user ids or keys as equal"
    return ""


# Validators


def _validator_step(wanted: Wanted, validator: Raw, options: Description) -> Step:
    collection = wanted.collection
    change = IndexChange(collection, "validator", "validator", "kept")
    existing = options.get("validator")
    if not existing:
        command: Raw = {"collMod": collection, "validator": validator, **_ENFORCED}
        remedies = {UNAUTHORIZED: _run_command(command)}
        return Step(replace(change, state="created"), command, remedies)
    for earlier in wanted.earlier_validators:
        if _contains(existing, earlier):
            renewed = _with_replaced(existing, earlier, validator)
            # Whether it is enforced stays as it is: the next run says if it is not.
            command = {"collMod": collection, "validator": renewed}
            remedies = {UNAUTHORIZED: _run_command(command)}
            reason = "an earlier version of the library had set it"
            return Step(replace(change, state="changed", reason=reason), command, remedies)
    if not _contains(existing, validator):
        reason = "it has another validator, and a collection can only have one"
        remedy = _merging(collection, validator)
        return Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    if options.get("validationLevel") == "off" or options.get("validationAction") == "warn":
        reason = "the validator exists but is not enforced"
        remedy = _run_command({"collMod": collection, **_ENFORCED})
        return Step(replace(change, state="conflict", reason=reason, remedy=remedy))
    return Step(change)


def _contains(existing: Description, validator: Raw) -> bool:
    """Return whether every document that passes the existing validator passes the wanted one."""
    return all(existing.get(name) == value for name, value in validator.items()) or any(
        _contains(part, validator) for part in existing.get("$and", ())
    )


def _with_replaced(existing: Description, earlier: Raw, validator: Raw) -> Raw:
    """Return a validator in which the earlier one is replaced, also within an ``$and``."""
    if all(existing.get(name) == value for name, value in earlier.items()):
        return {**existing, **validator}
    parts = [_with_replaced(part, earlier, validator) for part in existing.get("$and", ())]
    return {**existing, "$and": parts} if parts else dict(existing)


def _merging(collection: str, validator: Raw) -> str:
    """Return a command that merges both validators.

    mongosh fetches the existing one, which may contain values that JSON cannot express.
    """
    name, wanted = json.dumps(collection), json.dumps(validator)
    existing = f"db.getCollectionInfos({{name: {name}}})[0].options.validator"
    return f"db.runCommand({{collMod: {name}, validator: {{$and: [{existing}, {wanted}]}}}})"


# Indexes


def _index_step(collection: str, wanted: Description, existing: Sequence[Description]) -> Step:
    change = IndexChange(collection, wanted["name"], "index", "kept")
    same_keys = [index for index in existing if _keys(index) == _keys(wanted)]
    for index in same_keys:
        if not _difference(index, wanted):
            return Step(replace(change, name=index["name"]))
    for index in same_keys:
        if _is_adjustable(index, wanted):
            return _adjustment(replace(change, name=index["name"]), index, wanted)
    for index in same_keys:
        # The server allows both indexes if their names differ, unless collMod could make them
        # equal. And a unique index would refuse the ledger's rows.
        difference = _difference(index, wanted)
        if index["name"] == wanted["name"] or "unique" in difference or difference <= _ADJUSTABLE:
            return Step(_options_conflict(change, index, wanted))
    for index in existing:
        if index["name"] == wanted["name"]:
            return Step(_name_conflict(change, index, wanted))
    command: Raw = {"createIndexes": collection, "indexes": [wanted]}
    look = f"db.getCollection({json.dumps(collection)}).getIndexes()"
    # Another process has created an index in the meantime, or the collection has too many.
    codes = (_CANNOT_CREATE_INDEX, _INDEX_OPTIONS_CONFLICT, _INDEX_KEY_SPECS_CONFLICT)
    return Step(replace(change, state="created"), command, dict.fromkeys(codes, look))


def _keys(index: Description) -> list[tuple[str, Any]]:
    return list(index["key"].items())


def _options(index: Description) -> Raw:
    # Some servers store options given as false. (A TTL of 0 is not False.)
    return {
        name: value
        for name, value in index.items()
        if name not in _NO_OPTIONS and value is not False
    }


def _difference(index: Description, wanted: Description) -> set[str]:
    found, options = _options(index), _options(wanted)
    return {name for name in found.keys() | options.keys() if found.get(name) != options.get(name)}


def _is_adjustable(index: Description, wanted: Description) -> bool:
    """Return whether collMod can turn the index into the wanted one.

    It can set and change a TTL, but not remove it.
    """
    removes_ttl = "expireAfterSeconds" in index and "expireAfterSeconds" not in wanted
    return _difference(index, wanted) <= _ADJUSTABLE and not removes_ttl


def _adjustment(change: IndexChange, index: Description, wanted: Description) -> Step:
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
        _INVALID_OPTIONS: drop_index(change.collection, change.name),
    }
    changed = replace(change, state="changed", reason=", ".join(reasons))
    return Step(changed, command, remedies)


def _options_conflict(change: IndexChange, index: Description, wanted: Description) -> IndexChange:
    found, options = json_util.dumps(_options(index)), json_util.dumps(_options(wanted))
    return replace(
        change,
        state="conflict",
        reason=f"the index {index['name']!r} on its keys has the options {found}, not {options}",
        remedy=drop_index(change.collection, index["name"]),
    )


def _name_conflict(change: IndexChange, index: Description, wanted: Description) -> IndexChange:
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


def drop_index(collection: str, name: str) -> str:
    return f"db.getCollection({json.dumps(collection)}).dropIndex({json.dumps(name)})"


def _run_command(command: Raw) -> str:
    return f"db.runCommand({json.dumps(command)})"
